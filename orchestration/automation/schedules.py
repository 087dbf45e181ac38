"""The schedules and sensors that start runs. All are off until someone switches them on, because training costs money.

    sensor    corpus_folder          files of a corpus were added, removed or changed: builds raw_corpus, or retrains if
                                     the recipe allows it
    sensor    new_content            builds contamination, nsp_dataset and masked_dataset when their inputs change
    schedule  weekly_retraining      retrains every registered model
    schedule  daily_pubmed_updates   downloads NLM's new files into the PubMed mirrors that recipes name

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
    emit_backfills=False,  # one run per recipe: each recipe is an experiment
    description="Rebuild contamination, nsp_dataset and masked_dataset when the content of their inputs changes and "
    "the checks of the inputs pass. Starts no training. Off until you switch it on.",
)

SCHEDULES = [weekly_retraining, daily_pubmed_updates]
SENSORS = [corpus_folder, new_content]
