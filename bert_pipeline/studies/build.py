"""The artifact of a study, `study/FINGERPRINT`: its page, its pictures and its numbers; and the runs that it needs.

study.html, study.md, scores.png, losses.png       the page (page.py)
results.json                                       every number of the page
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_pipeline.evaluation.scoring.multibootstrap import Difference, Standing
from bert_pipeline.experiments import expand, find_study
from bert_pipeline.lineage import make_stage, stage_origin
from bert_pipeline.recipe import Recipe
from bert_pipeline.stages import kinds_of, resolve_recipe
from bert_pipeline.store import artifact, remote
from bert_pipeline.store.artifact import Artifact, Facts
from bert_pipeline.studies.evidence import Evidence, collect, missing_recipes
from bert_pipeline.studies.page import write_page
from bert_pipeline.studies.results import Results, measure
from bert_pipeline.studies.words import answer, limits
from bert_pipeline.study import KIND, Study

CODE_VERSION = "1"
"""Raise it with every change to the code that changes the numbers or the page."""

log = logging.getLogger(__name__)


def make_study(name: str, store: Path) -> Artifact:
    """Return the artifact of the study, built if missing.

    Raises StudyIncomplete that names the recipes that are not trained and evaluated yet.
    """
    study = find_study(name)
    evidence = collect(study, expand(study), store)
    inputs = {
        f"{study.recipe_name(arm, seed)}/{made.kind}": made.fingerprint
        for (arm, seed), trained in evidence.items()
        for made in (trained.checkpoint, *trained.evaluations.values())
    }
    origin = artifact.origin(KIND, study.for_origin(), inputs, CODE_VERSION)
    destination = store / KIND / artifact.fingerprint(origin)
    return artifact.make(
        destination, origin, lambda out: build_study(study, evidence, out), tier=remote.from_environment()
    )


def build_study(study: Study, evidence: Evidence, out: Path) -> Facts:
    results = measure(study, evidence)
    write_page(out, study, results, evidence)
    facts = _facts(study, results)
    losses = {arm: [asdict(curve) for curve in curves] for arm, curves in results.curves.items()}
    settings = {
        task: {"tried": results.tried[task]._asdict()} | {arm: each._asdict() for arm, each in of_arms.items()}
        for task, of_arms in results.chosen.items()
    }
    text = json.dumps(facts | {"losses": losses, "finetuning_settings": settings}, indent=2)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    return facts


def _facts(study: Study, results: Results) -> Facts:
    return {
        "question": study.question,
        "reference": study.reference,
        "answer": list(answer(study, results)),
        "limits": list(limits(study, results)),
        "scores": {
            task: {arm: asdict(each) for arm, each in standings.items()}
            for task, standings in results.standings.items()
        },
        "shown": {
            task: [arm for arm, each in standings.items() if each.to_reference and each.to_reference.shown]
            for task, standings in results.standings.items()
        },
        "spent": {arm: asdict(spent) for arm, spent in results.spent.items()},
    }


def standings_of(facts: Facts) -> dict[str, dict[str, Standing]]:
    """The standings by task and arm, from the facts of a study."""

    def standing(table: dict[str, Any]) -> Standing:
        found = table["to_reference"]
        return Standing(**table | {"to_reference": found and Difference(**found)})

    return {task: {arm: standing(each) for arm, each in arms.items()} for task, arms in facts["scores"].items()}


def run_missing(name: str, store: Path) -> None:
    """Train and evaluate the recipes of a study that are missing, one after the other.

    A call after an interruption continues where that one stopped: finished artifacts are kept, and a training resumes
    from its last checkpoint.
    """
    study = find_study(name)
    recipes = expand(study)
    missing = missing_recipes(study, recipes, store)
    for number, recipe in enumerate(missing, 1):
        log.info("study %s: %s, %d of %d that are missing", name, recipe.name, number, len(missing))
        _run(recipe, store)


def _run(recipe: Recipe, store: Path) -> None:
    """Build all artifacts of a recipe that is compared, else those up to its checkpoint."""
    recipe = resolve_recipe(recipe)
    kinds = kinds_of(recipe)
    if not recipe.evaluation.tasks:
        kinds = tuple(kind for kind in kinds if kind not in ("contamination", "evaluations"))
    made: dict[str, Artifact] = {}
    for kind in kinds:
        origin = stage_origin(kind, recipe, made)
        made[kind] = make_stage(kind, recipe, made, store / kind / artifact.fingerprint(origin), origin=origin)
