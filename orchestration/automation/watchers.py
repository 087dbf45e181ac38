"""Sensors that follow up on failed runs: one completes MLflow's records, one posts failures to a webhook.

Neither starts a run or affects one: their own failures appear only in the sensor's ticks.
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
"""Variable with the URL to post failed runs to. The URL may be a secret: it is never posted or logged."""
SECONDS = 10.0
"""Timeout of a post to the webhook."""


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Report to MLflow how trainings ended, and the metrics that it lacks, if their process could not: the "
    "process was killed, or MLflow was down. If a tick says that MLflow cannot be reached, start its server; the next "
    "tick tries again.",
)
def mlflow_is_told(context: dg.SensorEvaluationContext, workshop: Workshop) -> dg.SkipReason:
    try:
        delivered = deliver_all(workshop.mlflow, Path(workshop.store))
    except Exception as error:  # MLflow is down: the next tick tries again
        reason = str(error).partition("\n")[0]
        return dg.SkipReason(f"MLflow at {workshop.mlflow.tracking_uri} cannot be reached: {reason}")
    return dg.SkipReason(f"reported to MLflow: {', '.join(delivered)}" if delivered else "MLflow is up to date")


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING if settings.failure_webhook() else dg.DefaultSensorStatus.STOPPED,
    description="Post each failed run as JSON to the URL in BERT_PIPELINE_FAILURE_WEBHOOK. Off if that is not set.",
)
def failure_webhook(context: dg.RunFailureSensorContext, workshop: Workshop) -> dg.SkipReason | None:
    url = settings.failure_webhook()
    if not url:
        return dg.SkipReason(f"{WEBHOOK} is not set")
    if trouble := _post(url, describe_failure(context, workshop)):
        # Shown in the sensor's tick; Dagster continues with the next failed run.
        raise RuntimeError(f"run {context.dagster_run.run_id} was not posted to {WEBHOOK}: {trouble}")
    return None


def describe_failure(context: dg.RunFailureSensorContext, workshop: Workshop) -> dict[str, Any]:
    """What failed, with a link. Error messages and settings are left out, because they may contain secrets."""
    run = context.dagster_run
    recipe = run.tags.get("dagster/partition", "")
    steps = sorted({event.step_key for event in context.get_step_failure_events() if event.step_key})
    where = f"failed in {', '.join(steps)}" if steps else "was lost: its process ended"
    retried = run.tags.get("dagster/will_retry") == "true"
    page = workshop.run_page(run.run_id)
    return {
        "text": f"bert-pipeline: run {run.run_id[:8]} of recipe {recipe or '-'} {where}"
        + f"{'; Dagster retries it' if retried else ''}. {page}",
        "run_id": run.run_id,
        "job": run.job_name,
        "recipe": recipe,
        "failed": steps,
        "will_retry": retried,
        "page": page,
    }


def _post(url: str, content: Mapping[str, Any]) -> str | None:
    """Post the content as JSON; return None, or why that failed without naming the URL."""
    if not url.startswith(("http://", "https://")):
        return "its value is not a URL; remedy: http://... or https://..."
    body = json.dumps(content).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except Exception as error:  # only the type: the text of an error may contain the URL
        return type(error).__name__
    return None
