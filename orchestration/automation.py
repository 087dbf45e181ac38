"""What may start the graph by itself. Both are off until someone switches them on, because training costs."""

import json
import logging

import dagster as dg

from bert_pipeline.recipe import Recipe, load_recipe, recipe_files

log = logging.getLogger(__name__)

whole_graph = dg.define_asset_job(
    "whole_graph",
    selection=dg.AssetSelection.all(),
    description="Everything, from text to registered model, for one recipe. What stands already is not built again.",
    config={"loggers": {"console": {}}},
)


@dg.schedule(
    job=whole_graph,
    cron_schedule="0 3 * * 0",  # Sundays at three
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    """Bring every model that was registered once up to date with its text, its recipe and the code."""
    registered = context.instance.get_materialized_partitions(dg.AssetKey("registered_model"))
    return [dg.RunRequest(partition_key=name) for name in sorted(registered & recipe_files().keys())]


@dg.sensor(
    job=whole_graph,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def corpus_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """When files of a recipe's corpus come, go or change, run its graph once. The first look only remembers."""
    seen = json.loads(context.cursor or "{}")
    now = {name: files for name, path in recipe_files().items() if (files := _files(load_recipe(path)))}
    changed = [name for name, files in now.items() if name in seen and files != seen[name]]
    requests = [dg.RunRequest(partition_key=name) for name in changed]
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(seen | now))


def _files(recipe: Recipe) -> dict[str, list[int]]:
    """Size and time of change of every file of the corpus; none where the text is generated, or is not there."""
    from bert_pipeline.data.corpus import source_files

    try:
        found = source_files(recipe.corpus)
    except FileNotFoundError as error:
        log.warning("recipe %s: %s", recipe.name, error)
        return {}
    return {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in found.items()}
