"""A study in MLflow: one run with the page, and a run for each arm below it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from bert_pipeline.experiments import find_study
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.studies.page import PAGE, changes_text
from bert_pipeline.study import Study
from orchestration.tracking.metadata import numbers
from orchestration.tracking.mlflow_runs import DESCRIPTION, About, Mlflow, failures_as_warnings
from orchestration.tracking.outstanding import deliver
from orchestration.workshop import Workshop

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT, ARM = "mlflow.parentRunId", "study.arm"


def track_study(workshop: Workshop, context: dg.OpExecutionContext, made: Artifact) -> dict[str, Any]:
    """Send what MLflow lacks of a study; return links to its run, none if MLflow cannot be reached."""
    study, mlflow = find_study(context.partition_key), workshop.mlflow
    page, asset = workshop.run_page(context.run.run_id), workshop.asset_page(made.kind, study.name)
    about = About(
        name=f"study {study.name}",
        kind=made.kind,
        fingerprint=made.fingerprint,
        destination=made.path,
        inputs={},
        params=study.model_dump(mode="json", exclude={"name", "question"}),
        tags={
            "dagster.run_id": context.run.run_id,
            "dagster.asset": made.kind,
            "dagster.partition": study.name,
            "dagster.url": page,
            "dagster.asset_url": asset,
            DESCRIPTION: "\n\n".join([study.question, *made.facts["answer"]]),
        },
        files=[made.path / PAGE],
    )
    with failures_as_warnings(mlflow):
        deliver(mlflow, about, wait=True)
        [run, *_] = mlflow.runs(made.fingerprint, "FINISHED")
        _send_arms(mlflow, run, study, made.facts["scores"])
        return {"mlflow_run": dg.MetadataValue.url(mlflow.run_url(run)), "mlflow_run_id": run.info.run_id}
    return {}


def _send_arms(
    mlflow: Mlflow, parent: "Run", study: Study, scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Create a finished run for each arm that has none. `scores`: by task and arm."""
    from mlflow.entities import Metric, Param

    client, experiment = mlflow.client(), parent.info.experiment_id
    query = f"tags.`{PARENT}` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
    sent = {run.data.tags[ARM] for run in client.search_runs([experiment], query)}
    for arm in study.compared_arms:
        if arm.name in sent:
            continue
        recipes = {f"recipe.seed{seed}": study.recipe_name(arm.name, seed) for seed in study.pretraining_seeds}
        tags = {PARENT: parent.info.run_id, ARM: arm.name, DESCRIPTION: arm.description, **recipes}
        run = client.create_run(experiment, tags=tags, run_name=arm.name)
        found = numbers({task: of_arms[arm.name] for task, of_arms in scores.items()})
        metrics = [Metric(name, float(value), run.info.start_time, 0) for name, value in found.items()]
        client.log_batch(run.info.run_id, metrics, [Param("changes", changes_text(study, arm.name))])
        client.set_terminated(run.info.run_id)
