"""The entry point that Dagster loads: assets with checks, jobs, schedules, sensors and resources."""

import dagster as dg

from bert_pipeline.settings import home
from orchestration.assets import ASSETS
from orchestration.automation.pubmed_updates import pubmed_updates
from orchestration.automation.retraining import new_text, whole_graph
from orchestration.automation.schedules import SCHEDULES, SENSORS
from orchestration.automation.watchers import failure_webhook, mlflow_is_told
from orchestration.studies.asset import study, study_job
from orchestration.tracking.logs import console, rows
from orchestration.workshop import resources


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        assets=[*ASSETS, study],
        jobs=[whole_graph, new_text, pubmed_updates, study_job],
        schedules=SCHEDULES,
        sensors=[*SENSORS, mlflow_is_told, failure_webhook],
        resources=resources(home()),
        loggers={"console": console, "rows": rows},
        executor=dg.in_process_executor,  # training starts its own processes; steps need none
    )
