"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bert_pipeline.recipe import Recipe

STAGES = "Pipeline stages"
INSPECT = "Plan and inspect"
EVALUATE = "Evaluate"
DATA = "Data"
MODELS = "Models and lineage"
ARTIFACTS = "Artifacts"
HEADINGS = (STAGES, INSPECT, EVALUATE, DATA, MODELS, ARTIFACTS)
"""The groups of commands in `bert-pipeline --help`, in this order."""

RECIPE_HELP = "Recipe file, or the name of a packaged recipe."

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def recipe_named(name: str) -> "Recipe":
    """Load a packaged recipe by its name, or a recipe file by its path."""
    from bert_pipeline.recipe_files import load_recipe, recipe_files

    path = Path(name)
    if path.suffix != ".toml" and name in recipe_files():
        path = recipe_files()[name]
    return load_recipe(path)
