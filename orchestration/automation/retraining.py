"""Start retrainings: on a schedule, and on new text if the recipe allows it.

The sensor `corpus_folder` notices new text. It starts the cheap part, a run of `raw_corpus`; the sensor `new_content`
(schedules.py) then rebuilds contamination, nsp_dataset and masked_dataset. The sensor starts a retraining only for a
recipe with `retraining.hours_per_month`, and within those hours: it adds up the hours of such runs in the last 30 days
from Dagster's history, and Dagster stops a run that would exceed them (`dagster/max_runtime`; run monitoring must be
on). The same text does not start a stopped run again; the schedule or a person resumes it from its checkpoint.

A retraining is a run of the job `whole_graph`, so existing artifacts are not built again. If text, recipe and code are
unchanged, it builds nothing, and says so in the metadata of `registered_model` and in the tag `bert-pipeline/built` of
its run.

The recipe decides whether a retraining starts from scratch. With `pretrain.init_from = "other"`, each one starts from
the checkpoint of `other`, with all the text of that time. The text of `other` must be pinned (corpus.sources_file or
corpus.cutoff), because the checkpoint is found by the fingerprint of its inputs. Starting from the newest champion
instead would make each model depend on all before it, and two retrainings on the same text would differ.

No run is requested for a recipe while a run that would do the same has not ended, so a schedule and a sensor that fire
together give one run. If two start all the same, the second waits for the first (the locks of the store, the pool
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
from bert_pipeline.experiments import find_recipe
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.store import artifact
from orchestration.assets import ASSETS, recipes

STARTED_BY = "bert-pipeline/started-by"
"""Tag of a run that was not started by hand: `schedule` or `new text`."""
PARTITION = "dagster/partition"
MONTH = timedelta(days=30)
ENDED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in ENDED]

whole_graph = dg.define_asset_job(
    "whole_graph",
    selection=dg.AssetSelection.assets(*ASSETS),
    description="Build everything for one recipe, from text to registered model. Existing artifacts are kept, and a "
    "training that was stopped resumes from its last checkpoint.",
)

new_text = dg.define_asset_job(
    "new_text",
    selection=dg.AssetSelection.assets("raw_corpus"),
    description="Build raw_corpus for one recipe from the files as they are now. If the sensor new_content is on, it "
    "rebuilds contamination, nsp_dataset and masked_dataset afterwards.",
)


@dg.schedule(
    job=whole_graph,
    cron_schedule="0 3 * * 0",  # Sundays at 03:00
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Sunday at 03:00, run whole_graph for each recipe that has a registered model. If text, recipe "
    "and code are unchanged, the run builds nothing. Off until you switch it on.",
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    requests, skipped = [], []
    for name in sorted(context.instance.get_materialized_partitions(dg.AssetKey("registered_model"))):
        try:
            recipe = find_recipe(name)
        except RecipeError as error:
            skipped.append(str(error))
            continue
        if name not in recipes.get_partition_keys():
            skipped.append(f"recipe {name} is not loaded; remedy: reload the code location")
        elif run := _unfinished(context.instance, name, whole_graph.name):
            skipped.append(f"recipe {name} is already being trained by run {run}")
        else:
            requests.append(_retraining(context.instance, recipe, "schedule", key=name))
    for reason in skipped:
        context.log.warning(reason)
    return requests or dg.SkipReason("; ".join(skipped) or "no model is registered yet")


@dataclass(frozen=True)
class Seen:
    """What the sensor remembers of a recipe's text: digests of its files (see _state_of_text)."""

    last: str
    """At the last tick."""
    corpus: str
    """For which a run of raw_corpus was last requested."""
    trained: str
    """For which a retraining was last requested."""
    number: int = 0
    """How many runs were requested. Part of the run key, because the text can return to an earlier state."""


@dg.sensor(
    jobs=[new_text, whole_graph],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Watch the files of every corpus that was built once. When files were added, removed or changed, and "
    "two ticks in a row find the same files, build raw_corpus, or run whole_graph if the recipe has "
    "retraining.hours_per_month. Off until you switch it on.",
)
def corpus_folder(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request one run per recipe whose text changed.

    The first tick only stores the state. If files cannot be read at the moment, or a run of the recipe has not ended,
    the change stays pending for a later tick.
    """
    seen = {name: Seen(**each) for name, each in json.loads(context.cursor or "{}").items()}
    requests, messages = [], []
    built = context.instance.get_materialized_partitions(dg.AssetKey("raw_corpus"))
    for name in sorted(built & set(recipes.get_partition_keys())):
        try:
            recipe = find_recipe(name)
            now = _state_of_text(recipe)
        except (RecipeError, SourceError, OSError) as error:
            messages.append(f"recipe {name} cannot be watched at the moment: {error}")
            continue
        if now is None:
            continue
        before = seen.get(name, Seen(now, now, now))
        seen[name], request, reason = _decide(context.instance, recipe, before, now)
        requests += [request] if request else []
        messages += [f"recipe {name} {reason}"] if reason else []
    for message in messages:
        context.log.info(message)
    skipped = "; ".join(messages) if messages and not requests else None
    return dg.SensorResult(requests, skipped, cursor=json.dumps({name: asdict(each) for name, each in seen.items()}))


def _state_of_text(recipe: Recipe) -> str | None:
    """A digest of the names, sizes and modification times of the files; None for generated or pinned text."""
    if recipe.corpus.source == "sample" or recipe.corpus.sources_file:
        return None
    status = {name: path.stat() for name, path in source_files(recipe.corpus).items()}
    return artifact.fingerprint({name: [each.st_size, each.st_mtime_ns] for name, each in status.items()})


def _decide(
    instance: dg.DagsterInstance, recipe: Recipe, before: Seen, now: str
) -> tuple[Seen, dg.RunRequest | None, str]:
    """Return what to remember, the run to request if any, and why new text leads to no run or to a smaller one."""
    looked, hours = replace(before, last=now), recipe.retraining.hours_per_month
    wants_corpus, wants_training = now != before.corpus, hours > 0 and now != before.trained
    if now != before.last:
        return looked, None, "has files that are still changing"
    if not (wants_corpus or wants_training):
        return looked, None, ""
    if run := _unfinished(instance, recipe.name):
        return looked, None, f"has new text, and waits for run {run} to end"
    number, reason = before.number + 1, ""
    key = f"{recipe.name} {number} {now}"
    if wants_training:
        left = hours - _hours_spent(instance, recipe.name)
        if left > 0:
            limit = {"dagster/max_runtime": str(round(left * 3600))}
            return Seen(now, now, now, number), _retraining(instance, recipe, "new text", key, limit), ""
        reason = (
            f"has new text, but the {hours:g} hours of retraining.hours_per_month are used up; remedy: wait, raise the "
            "limit, or launch whole_graph by hand"
        )
    if not wants_corpus:
        return looked, None, reason
    request = dg.RunRequest(key, job_name=new_text.name, partition_key=recipe.name, tags={STARTED_BY: "new text"})
    return Seen(now, now, before.trained if wants_training else now, number), request, reason


def _retraining(
    instance: dg.DagsterInstance, recipe: Recipe, started_by: str, key: str, limit: Mapping[str, str] | None = None
) -> dg.RunRequest:
    """A run of the whole graph, without the tokenizer if the recipe keeps its existing one."""
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
    """The id of a run of the recipe that has not ended, if any."""
    runs = instance.get_runs(dg.RunsFilter(job_name=job, tags={PARTITION: recipe}, statuses=UNFINISHED), limit=1)
    return runs[0].run_id if runs else None


def _hours_spent(instance: dg.DagsterInstance, recipe: str) -> float:
    """The hours of retrainings that new text started within the last 30 days."""
    started_by_text = dg.RunsFilter(
        job_name=whole_graph.name,
        tags={PARTITION: recipe, STARTED_BY: "new text"},
        created_after=datetime.now(UTC) - MONTH,
    )
    records = instance.get_run_records(started_by_text)
    return sum((each.end_time or time.time()) - each.start_time for each in records if each.start_time) / 3600
