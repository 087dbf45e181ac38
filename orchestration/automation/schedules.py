"""What may start the graph by itself. All of it is off until someone switches it on, because training costs.

    sensor    corpus_folder          files of a corpus came, went or changed: its raw_corpus, or a retraining where the
                                     recipe allows it
    sensor    new_content            contamination, pairs and masks, where what they are made from has new content
    schedule  weekly_retraining      a retraining of every model that was registered once
    schedule  daily_pubmed_updates   what NLM has published since, into the mirrors of PubMed that recipes name

See retraining.py, conditions.py and pubmed_updates.py.
"""

import dagster as dg

from orchestration.assets import contamination, masked_dataset, nsp_dataset
from orchestration.automation.pubmed_updates import daily_pubmed_updates
from orchestration.automation.retraining import corpus_folder, weekly_retraining

new_content = dg.AutomationConditionSensorDefinition(
    "new_content",
    target=[contamination, nsp_dataset, masked_dataset],
    default_status=dg.DefaultSensorStatus.STOPPED,
    emit_backfills=False,  # a recipe is an experiment: each has a run of its own
    description="Makes what is cheap again when its content would be another, and all gates before it are open.",
)

SCHEDULES = [weekly_retraining, daily_pubmed_updates]
SENSORS = [corpus_folder, new_content]
