"""What Dagster loads: the assets with their gates, what starts them, and what they use."""

import dagster as dg

from bert_pipeline.stages import home
from orchestration.assets import ASSETS
from orchestration.automation import corpus_folder, weekly_retraining, whole_graph
from orchestration.logs import console
from orchestration.watchers import failure_webhook, mlflow_is_told
from orchestration.workshop import resources


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        assets=ASSETS,
        jobs=[whole_graph],
        schedules=[weekly_retraining],
        sensors=[corpus_folder, mlflow_is_told, failure_webhook],
        resources=resources(home()),
        loggers={"console": console},
        executor=dg.in_process_executor,  # training runs in processes of its own; a step needs none
    )
