"""Download PubMed's new files into the mirrors that recipes name. The sensor `corpus_folder` notices them there.

Fill a mirror once by hand (`bert-pipeline download-pubmed --out DIR`); this job then updates it from the same source.
Verified files are kept, so a failed run loses nothing and the next run continues from there. NLM's new baseline, once a
year, is refused with a remedy, because it replaces all files of the previous year.
"""

import dagster as dg

from bert_pipeline import settings
from bert_pipeline.data.sources.pubmed.mirror import RECORD, update_pubmed
from bert_pipeline.experiments import find_recipe, recipe_names
from bert_pipeline.recipe import RecipeError
from orchestration.tracking.logs import library_log_in


@dg.op(out=dg.Out(dg.Nothing))
def update_mirrors(context: dg.OpExecutionContext) -> None:
    """Update each mirror once, however many recipes name it."""
    folders = set()
    for name in recipe_names():
        try:
            corpus = find_recipe(name).corpus
        except RecipeError as error:
            context.log.warning(str(error))
            continue
        if corpus.source == "pubmed":
            folders.add(settings.in_data_folder(corpus.path).absolute())
    mirrors = sorted(folder for folder in folders if (folder / RECORD).exists())
    if not mirrors:
        named = ", ".join(map(str, sorted(folders))) or "no recipe names one"
        context.log.warning(f"no mirror to update ({named}); remedy: bert-pipeline download-pubmed --out DIR")
    for mirror in mirrors:
        with library_log_in(context.log):
            facts = update_pubmed(mirror)
        context.log.info(f"{mirror}: {facts['files_fetched']} new files, {facts['files']} in total")


@dg.job(
    description="Download the files that NLM has published since the last run into each PubMed mirror that a recipe "
    "names. Fill a mirror once by hand before: bert-pipeline download-pubmed --out DIR."
)
def pubmed_updates() -> None:
    update_mirrors()


daily_pubmed_updates = dg.ScheduleDefinition(
    name="daily_pubmed_updates",
    job=pubmed_updates,
    cron_schedule="0 20 * * *",  # NLM publishes at about 14:00 in Bethesda
    execution_timezone="America/New_York",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Update the PubMed mirrors every day at 20:00 New York time. Off until you switch it on.",
)
