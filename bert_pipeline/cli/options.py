"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bert_pipeline.recipe import Recipe

PROJECT = "Projects"
STAGES = "Pipeline stages"
INSPECT = "Plan and inspect"
EVALUATE = "Evaluate"
DATA = "Data"
MODELS = "Models and lineage"
ARTIFACTS = "Artifacts"
HEADINGS = (PROJECT, STAGES, INSPECT, EVALUATE, DATA, MODELS, ARTIFACTS)
"""The groups of commands in `bert-pipeline --help`, in this order."""

RECIPE_HELP = "Name of a recipe, or path of a recipe file."

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def recipe_named(name: str) -> "Recipe":
    """Load a recipe by its name, or a recipe file by its path. Raises RecipeError if there is neither."""
    from bert_pipeline.experiments import find_recipe, recipe_names
    from bert_pipeline.recipe import RecipeError
    from bert_pipeline.recipe_files import SUFFIX, load_recipe, recipe_files

    path = Path(name)
    if path.suffix.lower() == SUFFIX:
        return load_recipe(path)
    if name in recipe_names():
        return find_recipe(name)
    if not path.is_file():
        known = ", ".join(recipe_files())
        raise RecipeError(f"no recipe is named {name}; remedy: name a known one ({known}), or the path of a file")
    return load_recipe(path)
