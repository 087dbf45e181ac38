"""What may start the graph by itself. Both are off until someone switches them on, because training costs."""

import json
import logging

import dagster as dg

from bert_pipeline.recipe import RecipeError, load_recipe, recipe_files
from orchestration.assets import recipes

log = logging.getLogger(__name__)

whole_graph = dg.define_asset_job(
    "whole_graph",
    selection=dg.AssetSelection.all(),
    description="Everything, from text to registered model, for one recipe. What stands already is not built again.",
)


@dg.schedule(
    job=whole_graph,
    cron_schedule="0 3 * * 0",  # Sundays at three
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """Bring every model that was registered once up to date with its text, its recipe and the code."""
    registered = context.instance.get_materialized_partitions(dg.AssetKey("registered_model"))
    return [dg.RunRequest(partition_key=name) for name in sorted(registered & set(recipes.get_partition_keys()))]


@dg.sensor(
    job=whole_graph,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def corpus_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """When files of a recipe's corpus come, go or change, run its graph once. The first look only remembers."""
    seen = json.loads(context.cursor or "{}")
    now = {name: files for name in recipes.get_partition_keys() if (files := _corpus_files(name))}
    changed = [name for name, files in now.items() if name in seen and files != seen[name]]
    requests = [dg.RunRequest(partition_key=name) for name in changed]
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(seen | now))


def _corpus_files(recipe: str) -> dict[str, list[int]]:
    """Size and time of change of each file. None where the text is generated, or cannot be found at the moment."""
    from bert_pipeline.data.corpus_sources import source_files
    from bert_pipeline.data.sources.records import SourceError

    try:
        found = source_files(load_recipe(recipe_files()[recipe]).corpus)
    except (RecipeError, SourceError) as error:
        log.warning("recipe %s is not watched: %s", recipe, error)
        return {}
    return {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in found.items()}
