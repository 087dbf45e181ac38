"""What starts a retraining: the schedule, and new text where the recipe says so.

New text is seen by the sensor `corpus_folder`. It starts what is cheap: the run of `raw_corpus`, which the sensor
`new_content` (automation.py) follows with contamination, pairs and masks. It starts a retraining only for a recipe with
`retraining.hours_per_month`, and within those hours: the hours of such runs in the last 30 days are counted from
Dagster's history, and a run is stopped where it would exceed them (`dagster/max_runtime`, for which run monitoring must
be on). What was stopped is not asked for again by the same text; the schedule or a person goes on from its checkpoint.

A retraining is the job `whole_graph`, so what stands already is not built again: one that finds text, recipe and code
as they were builds nothing, and says so in the metadata of `registered_model` and in the tag `bert-pipeline/built` of
its run.

From scratch or continual: as the recipe says. One with `pretrain.init_from = "other"` goes on from the checkpoint of
`other` each time, with all the text that there is then. The text of `other` must be pinned (corpus.sources_file or
corpus.cutoff), because its checkpoint is found by what it is made from. To begin with the newest champion instead would
make each model the product of all before it, and two retrainings on the same text would not be the same.

Nothing is asked for a recipe while a run that would do the same has not ended, so a schedule and a sensor at one tick
give one run. Should two start all the same, the second waits for the first (the locks of the store, the pool
`training`) and builds nothing.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

import dagster as dg

from bert_pipeline.data.corpus.sources import source_files
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import find_recipe
from bert_pipeline.store import artifact
from orchestration.assets import ASSETS, recipes

STARTED_BY = "bert-pipeline/started-by"
"""Tag of a run that nobody started by hand: `schedule` or `new text`."""
PARTITION = "dagster/partition"
MONTH = timedelta(days=30)
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in ENDED]

whole_graph = dg.define_asset_job(
    "whole_graph",
    selection=dg.AssetSelection.all(),
    description="Everything, from text to registered model, for one recipe. What stands already is not built again.",
)

new_text = dg.define_asset_job(
    "new_text",
    selection=dg.AssetSelection.assets("raw_corpus"),
    description="The text of one recipe as it is now. What is cheap follows it where the sensor new_content is on.",
)


@dg.schedule(
    job=whole_graph,
    cron_schedule="0 3 * * 0",  # Sundays at three
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    """Bring every model that was registered once up to date with its text, its recipe and the code."""
    requests, told = [], []
    for name in sorted(context.instance.get_materialized_partitions(dg.AssetKey("registered_model"))):
        try:
            recipe = find_recipe(name)
        except RecipeError as error:
            told.append(str(error))
            continue
        if name not in recipes.get_partition_keys():
            told.append(f"recipe {name} is not loaded; remedy: reload the code location")
        elif run := _unfinished(context.instance, name, whole_graph.name):
            told.append(f"recipe {name} is being trained by run {run}")
        else:
            requests.append(_retraining(context.instance, recipe, "schedule", key=name))
    for line in told:
        context.log.warning(line)
    return requests or dg.SkipReason("; ".join(told) or "no model was registered yet")


@dataclass(frozen=True)
class Seen:
    """Of one recipe's text: its state at the last look, and the states that runs were asked for."""

    last: str
    corpus: str
    trained: str
    number: int = 0
    """Of runs that were asked for: a state of the text can come back, and is another reason then."""


@dg.sensor(
    jobs=[new_text, whole_graph],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def corpus_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One run of a recipe when files of its corpus came, went or changed, and are the same at the look after that.

    Recipes are watched whose corpus was made once. The first look only remembers. Where files cannot be found at the
    moment, or a run of the recipe has not ended, nothing is forgotten: a later look decides.
    """
    seen = {name: Seen(**each) for name, each in json.loads(context.cursor or "{}").items()}
    requests, told = [], []
    made = context.instance.get_materialized_partitions(dg.AssetKey("raw_corpus"))
    for name in sorted(made & set(recipes.get_partition_keys())):
        try:
            recipe = find_recipe(name)
            now = _state_of_text(recipe)
        except (RecipeError, SourceError, OSError) as error:
            told.append(f"recipe {name} is not watched at the moment: {error}")
            continue
        if now is None:
            continue
        before = seen.get(name, Seen(now, now, now))
        seen[name], request, reason = _decide(context.instance, recipe, before, now)
        requests += [request] if request else []
        told += [f"recipe {name} {reason}"] if reason else []
    for line in told:
        context.log.info(line)
    skipped = "; ".join(told) if told and not requests else None
    return dg.SensorResult(requests, skipped, cursor=json.dumps({name: asdict(each) for name, each in seen.items()}))


def _state_of_text(recipe: Recipe) -> str | None:
    """A digest of names, sizes and times of change; None of text that cannot change: generated, or pinned."""
    if recipe.corpus.source == "sample" or recipe.corpus.sources_file:
        return None
    status = {name: path.stat() for name, path in source_files(recipe.corpus).items()}
    return artifact.fingerprint({name: [each.st_size, each.st_mtime_ns] for name, each in status.items()})


def _decide(
    instance: dg.DagsterInstance, recipe: Recipe, before: Seen, now: str
) -> tuple[Seen, dg.RunRequest | None, str]:
    """What is remembered of the text, the run that it asks for, and in words why it asks for less than it might."""
    looked, hours = replace(before, last=now), recipe.retraining.hours_per_month
    wants_corpus, wants_training = now != before.corpus, hours > 0 and now != before.trained
    if now != before.last:
        return looked, None, "has files that are changing"
    if not (wants_corpus or wants_training):
        return looked, None, ""
    if run := _unfinished(instance, recipe.name):
        return looked, None, f"has new text, and waits for run {run}"
    number, told = before.number + 1, ""
    key = f"{recipe.name} {number} {now}"
    if wants_training:
        left = hours - _hours_spent(instance, recipe.name)
        if left > 0:
            limit = {"dagster/max_runtime": str(round(left * 3600))}
            return Seen(now, now, now, number), _retraining(instance, recipe, "new text", key, limit), ""
        told = (
            f"has new text, but the {hours:g} hours of retraining.hours_per_month are spent; remedy: wait, raise them, "
            "or launch whole_graph by hand"
        )
    if not wants_corpus:
        return looked, None, told
    request = dg.RunRequest(key, job_name=new_text.name, partition_key=recipe.name, tags={STARTED_BY: "new text"})
    return Seen(now, now, before.trained if wants_training else now, number), request, told


def _retraining(
    instance: dg.DagsterInstance, recipe: Recipe, started_by: str, key: str, limit: Mapping[str, str] | None = None
) -> dg.RunRequest:
    """The whole graph, or all of it but the tokenizer, where the recipe keeps the one that is there."""
    learnt = recipe.name in instance.get_materialized_partitions(dg.AssetKey("tokenizer"))
    keep = recipe.retraining.tokenizer == "keep" and learnt
    everything = [key for asset in ASSETS for key in asset.keys]
    return dg.RunRequest(
        key,
        job_name=whole_graph.name,
        partition_key=recipe.name,
        tags={STARTED_BY: started_by} | dict(limit or {}),
        asset_selection=[key for key in everything if key != dg.AssetKey("tokenizer")] if keep else None,
    )


def _unfinished(instance: dg.DagsterInstance, recipe: str, job: str | None = None) -> str | None:
    """A run of the recipe that has not ended."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job, tags={PARTITION: recipe}, statuses=UNFINISHED), limit=1)
    return runs[0].run_id if runs else None


def _hours_spent(instance: dg.DagsterInstance, recipe: str) -> float:
    """By retrainings that new text started within the last 30 days."""
    asked = dg.RunsFilter(
        job_name=whole_graph.name,
        tags={PARTITION: recipe, STARTED_BY: "new text"},
        created_after=datetime.now(UTC) - MONTH,
    )
    records = instance.get_run_records(asked)
    return sum((each.end_time or time.time()) - each.start_time for each in records if each.start_time) / 3600
