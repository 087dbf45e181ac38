"""What looks after runs that ended badly: MLflow is told what it does not know, and people, where they wish it.

Neither costs anything, and neither can harm a run: what fails here is said in the sensor's ticks alone.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from bert_pipeline import settings
from orchestration.tracking.outstanding import deliver_all
from orchestration.workshop import Workshop

WEBHOOK = "BERT_PIPELINE_FAILURE_WEBHOOK"
"""The address that is told of failed runs. It may be a secret: it is neither posted, nor logged."""
SECONDS = 10.0
"""How long the webhook is waited for."""


@dg.sensor(minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def mlflow_is_told(context: dg.SensorEvaluationContext, workshop: Workshop) -> dg.SkipReason:
    """Tells MLflow how a training ended, and what it lacks of it, where the process could not: it was killed, or
    MLflow was down.
    """
    try:
        delivered = deliver_all(workshop.mlflow, Path(workshop.store))
    except Exception as error:  # MLflow is down: the next tick tries again
        reason = str(error).partition("\n")[0]
        return dg.SkipReason(f"MLflow at {workshop.mlflow.tracking_uri} cannot be told: {reason}")
    return dg.SkipReason(f"MLflow was told of {', '.join(delivered)}" if delivered else "MLflow knows everything")


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING if settings.failure_webhook() else dg.DefaultSensorStatus.STOPPED
)
def failure_webhook(context: dg.RunFailureSensorContext, workshop: Workshop) -> dg.SkipReason | None:
    """Posts each failed run to the address in BERT_PIPELINE_FAILURE_WEBHOOK; off where that is not set."""
    url = settings.failure_webhook()
    if not url:
        return dg.SkipReason(f"{WEBHOOK} is not set")
    if trouble := _post(url, told_of(context, workshop)):
        # Shown at the sensor's tick; Dagster goes on with the next failed run.
        raise RuntimeError(f"{WEBHOOK} was not told of run {context.dagster_run.run_id}: {trouble}")
    return None


def told_of(context: dg.RunFailureSensorContext, workshop: Workshop) -> dict[str, Any]:
    """What failed and where to read on. Neither messages of errors nor settings, which may hold secrets."""
    run = context.dagster_run
    recipe = run.tags.get("dagster/partition", "")
    steps = sorted({event.step_key for event in context.get_step_failure_events() if event.step_key})
    where = f"failed in {', '.join(steps)}" if steps else "was lost: its process ended"
    retried = run.tags.get("dagster/will_retry") == "true"
    page = workshop.run_page(run.run_id)
    return {
        "text": f"bert-pipeline: run {run.run_id[:8]} of recipe {recipe or '-'} {where}"
        + f"{'; it is tried again' if retried else ''}. {page}",
        "run_id": run.run_id,
        "job": run.job_name,
        "recipe": recipe,
        "failed": steps,
        "will_retry": retried,
        "page": page,
    }


def _post(url: str, content: Mapping[str, Any]) -> str | None:
    """None, or why it could not be told, in words that do not name the address."""
    if not url.startswith(("http://", "https://")):
        return "its value is no address; remedy: http://... or https://..."
    body = json.dumps(content).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except Exception as error:  # whatever it is, a run that failed has failed already; its text may name the address
        return type(error).__name__
    return None
