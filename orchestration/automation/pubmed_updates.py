"""PubMed's new files, fetched into the mirrors that recipes name. The sensor `corpus_folder` sees them there.

A mirror is filled the first time by hand (`bert-pipeline download-pubmed --out DIR`), and brought up to date from where
its files came from. What is verified stands, so a run that fails loses nothing, and the next goes on from there. NLM's
new baseline, once a year, is refused with the remedy: it replaces all files of the year before.
"""

import dagster as dg

from bert_pipeline import settings
from bert_pipeline.data.sources.pubmed.mirror import RECORD, update_pubmed
from bert_pipeline.recipe import RecipeError
from bert_pipeline.recipe_files import find_recipe, recipe_files
from orchestration.tracking.logs import library_log_in


@dg.op(out=dg.Out(dg.Nothing))
def update_mirrors(context: dg.OpExecutionContext) -> None:
    """Each mirror once, however many recipes name it."""
    folders = set()
    for name in recipe_files():
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
        context.log.info(f"{mirror}: {facts['files_fetched']} new files, {facts['files']} in all")


@dg.job(description="Fetch what NLM has published since, into each mirror of PubMed that a recipe names.")
def pubmed_updates() -> None:
    update_mirrors()


daily_pubmed_updates = dg.ScheduleDefinition(
    name="daily_pubmed_updates",
    job=pubmed_updates,
    cron_schedule="0 20 * * *",  # NLM publishes at about two in the afternoon, at Bethesda
    execution_timezone="America/New_York",
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
