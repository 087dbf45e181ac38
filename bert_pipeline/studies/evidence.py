"""What a study compares: the artifacts of its recipes, found in the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert_pipeline.experiments import Recipes
from bert_pipeline.lineage import find_artifacts
from bert_pipeline.recipe import Recipe
from bert_pipeline.stages import EVALUATION
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.study import Study, StudyError


class StudyIncomplete(StudyError):
    """Some recipes of a study are not trained and evaluated yet."""

    def __init__(self, study: Study, missing: list[str]) -> None:
        self.missing = missing
        super().__init__(
            f"study {study.name}: {len(missing)} of {len(study.recipe_names)} recipes are not trained and evaluated "
            f"yet: {', '.join(missing)}; remedy: bert-pipeline study {study.name} --run, or for each of them "
            "dg launch --assets '+key:evaluations' --partition RECIPE"
        )


@dataclass(frozen=True)
class Trained:
    """The artifacts of one recipe."""

    checkpoint: Artifact
    tokenizer: Artifact
    contamination: Artifact | None
    """None for an arm that is not compared."""
    evaluations: Mapping[str, Artifact]
    """By task; empty for an arm that is not compared."""

    @property
    def raw_corpus(self) -> str:
        """Fingerprint of the corpus."""
        return self.tokenizer.record["origin"]["inputs"]["raw_corpus"]


Evidence = dict[tuple[str, int], Trained]
"""By arm and pretraining seed."""


def collect(study: Study, recipes: Recipes, store: Path) -> Evidence:
    """Find the artifacts of every recipe. Raises StudyIncomplete that names the recipes without them."""
    found = _find_all(study, recipes, store)
    if missing := [recipes[key].name for key, trained in found.items() if trained is None]:
        raise StudyIncomplete(study, missing)
    return {key: trained for key, trained in found.items() if trained}


def missing_recipes(study: Study, recipes: Recipes, store: Path) -> list[Recipe]:
    """The recipes without artifacts, in the order of training."""
    return [recipes[key] for key, trained in _find_all(study, recipes, store).items() if trained is None]


def _find_all(study: Study, recipes: Recipes, store: Path) -> dict[tuple[str, int], Trained | None]:
    return {key: _find(recipe, study.arm(key[0]).compared, store) for key, recipe in recipes.items()}


def _find(recipe: Recipe, compared: bool, store: Path) -> Trained | None:
    tasks = {task.name: EVALUATION + task.name for task in recipe.evaluation.tasks}
    contamination = ("contamination",) if compared else ()
    found = find_artifacts(("pretrained_checkpoint", "tokenizer", *contamination, *tasks.values()), recipe, store)
    if found is None:
        return None
    return Trained(
        found["pretrained_checkpoint"],
        found["tokenizer"],
        found.get("contamination"),
        {name: found[kind] for name, kind in tasks.items()},
    )
