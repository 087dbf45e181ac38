"""The plan of a study: the plans of its arms, with shared artifacts counted once and training once for each seed."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from bert_pipeline.core.tables import Table, byte_size
from bert_pipeline.experiments import expand
from bert_pipeline.planning.hardware import HARDWARE, Hardware
from bert_pipeline.planning.plan import DoesNotFit, make_plan
from bert_pipeline.planning.survey import Survey, read_source
from bert_pipeline.recipe import Recipe
from bert_pipeline.settings import MOVE_HOME
from bert_pipeline.stages import find_stage
from bert_pipeline.study import Study

DATA_STAGES = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")
"""In the order in which they are built: each artifact depends on the sections of its own stage and of those before."""


def plan_study(
    study: Study, home: Path, hardware: dict[str, Hardware] = HARDWARE, workers: int | None = None
) -> dict[str, Any]:
    """Plan every arm with the first seed, and sum up the study."""
    seeds = len(study.pretraining_seeds)
    recipes = {arm: recipe for (arm, seed), recipe in expand(study).items() if seed == study.pretraining_seeds[0]}
    recipes = {arm: from_scratch(study, arm, recipes) for arm in recipes}
    surveys: dict[str, Survey] = {}
    plans = {}
    for arm, recipe in recipes.items():
        source = recipe.corpus.model_dump_json()
        surveys[source] = surveys.get(source) or read_source(recipe.corpus)
        plans[arm] = make_plan(recipe, home, hardware, workers, found=surveys[source])
    seconds: list[float | None] = []
    disk, counted = 0, set()
    for arm, plan in plans.items():
        for kind in DATA_STAGES:
            key = _key(kind, recipes[arm])
            if key not in counted:
                counted.add(key)
                seconds.append(plan["seconds"][kind])
                disk += plan["disk"]["artifacts"][kind]
        disk += seeds * plan["disk"]["artifacts"]["pretrained_checkpoint"]
        seconds += [plan["seconds"]["pretrained_checkpoint"]] * seeds
        seconds += [plan["seconds"]["evaluations"]] * seeds if study.arm(arm).compared else []
    known = [each for each in seconds if each is not None]
    return {
        "study": study.name,
        "recipes": study.recipe_names,
        "pretraining_seeds": seeds,
        "arms": plans,
        "seconds": sum(known) if len(known) == len(seconds) else None,
        "disk": {
            "needed": disk + max(plan["disk"]["checkpoints"] for plan in plans.values()),
            "free": next(iter(plans.values()))["disk"]["free"],
            "place": str(home),
        },
        "flops": seeds * sum(plan["training"]["flops"] for plan in plans.values()),
    }


def from_scratch(study: Study, arm: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of an arm with the sizes of its first model instead of that model, which may not exist yet."""
    recipe, continued = recipes[arm], study.arm(arm).continues
    if not continued:
        return recipe
    first = from_scratch(study, continued, recipes)
    pretrain = recipe.pretrain.model_copy(update={"init_from": ""})
    size = first.tokenizer.vocab_size + recipe.tokenizer.extend
    tokenizer = first.tokenizer.model_copy(update={"vocab_size": size})
    return recipe.model_copy(update={"model": first.model, "tokenizer": tokenizer, "pretrain": pretrain})


def _key(kind: str, recipe: Recipe) -> str:
    """Equal for arms that share the artifact."""
    stages = DATA_STAGES[: DATA_STAGES.index(kind) + 1]
    return json.dumps([find_stage(each).section(recipe) for each in stages])


def assert_study_fits(plan: Mapping[str, Any]) -> None:
    """Raise DoesNotFit if the plan needs more disk space than is free."""
    disk = plan["disk"]
    if disk["needed"] > disk["free"]:
        raise DoesNotFit(
            f"study {plan['study']} needs {disk['needed']:,} bytes, but only {disk['free']:,} are free in "
            f"{disk['place']} (BERT_PIPELINE_HOME); remedy: free {disk['needed'] - disk['free']:,}, {MOVE_HOME}, or "
            "name fewer pretraining_seeds"
        )


def show_study(plan: Mapping[str, Any]) -> tuple[Table, str]:
    """A row for each arm, and the sums in words."""
    head = ("arm", "steps", "tokens", "FLOPs", "pretraining", "evaluations")
    rows = [
        (
            arm,
            f"{each['training']['steps']:,}" if each["training"]["steps"] else "by the minutes",
            f"{each['training']['tokens']:,}",
            f"{each['training']['flops']:.2e}",
            *(_duration(each["seconds"][kind]) for kind in ("pretrained_checkpoint", "evaluations")),
        )
        for arm, each in plan["arms"].items()
    ]
    disk = plan["disk"]
    sums = (
        f"Each arm with one of {plan['pretraining_seeds']} seeds. All {len(plan['recipes'])} recipes one after the "
        f"other, with shared artifacts built once: {_duration(plan['seconds'])} on this machine, {plan['flops']:.2e} "
        f"FLOPs of pretraining, {byte_size(disk['needed'])} of {byte_size(disk['free'])} free in {disk['place']}"
    )
    return Table(head, rows), sums


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(timedelta(seconds=round(seconds)))
