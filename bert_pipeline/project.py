"""Projects: the folder that `bert-pipeline init` writes, with recipes, tasks and studies of one's own.

settings.py finds the project from any folder below it. No file of a project contains the project's own path, so it may
be moved, copied and kept under version control; `.gitignore` leaves out the home.
"""

import tomllib
from pathlib import Path
from typing import Any

from bert_pipeline import settings
from bert_pipeline.experiments import recipe_names
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import SUFFIX, read_table, to_toml, validated

PACKAGED_RECIPES = Path(__file__).parent / "recipes"

DG = f"""\
# Makes this folder a project: the commands of bert-pipeline, dg and dagster find the graph and the home from it.
directory_type = "project"

[project]
code_location_name = "{settings.CODE_LOCATION}"
code_location_target_module = "orchestration.definitions"
root_module = "recipes"  # dg requires a folder of this project; the graph comes from the installed package

[cli.telemetry]
enabled = false
"""

DOTENV = """\
# For dg and dagster, which read this file in the folder where they are started. bert-pipeline does not read it.
DAGSTER_HOME=${PWD}/workspace/dagster
"""

IGNORED = """\
workspace/
__pycache__/
"""

README = """\
# {name}

A project of bert-pipeline: BERT models trained from scratch on the text of a domain.

- `bert-pipeline run` builds the recipe in `recipes/`, from text to a registered model; what exists is kept.
- `bert-pipeline ui` shows the graph, the runs and the models in a browser.
- `bert-pipeline plan RECIPE` estimates time and disk before a run.
- `tasks/` has evaluation tasks of your own, `studies/` comparisons of recipes, `workspace/` everything that is built.
- `bert-pipeline --help` lists all commands; `dg` and `dagster` work in this folder, too.
"""

FOLDERS = ("recipes", "studies", "tasks")


class ProjectError(ValueError):
    """A project cannot be written."""


def create_project(folder: Path, text: Path | None = None) -> Path:
    """Write a project into a new folder, or an empty one, and return its root; with `text`, also a recipe of its name.

    The folder may contain the text. Raises ProjectError, before anything is written, if it contains anything else or
    the text does not exist, and RecipeError if its name cannot be the name of a recipe.
    """
    root = folder.resolve()
    source = _existing(text) if text else None
    others = [path for path in _entries(root, folder) if not (source and source.is_relative_to(path))]
    if others:
        raise ProjectError(f"{folder} contains {others[0].name}; remedy: name a new or an empty folder")
    files = {
        settings.PROJECT_FILE: DG,
        ".env": DOTENV,
        ".gitignore": IGNORED,
        "README.md": README.format(name=root.name),
    }
    if source:
        relative = source.relative_to(root) if source.is_relative_to(root) else source
        files[f"recipes/{root.name}{SUFFIX}"] = _checked(root.name, write_recipe(relative))
    if taken := [name for name in (*files, *FOLDERS) if (root / name).exists()]:
        raise ProjectError(f"{root / taken[0]}: the project has a file of this name; remedy: rename the text")
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    for name, content in files.items():
        (root / name).write_text(content, encoding="utf-8")
    return root


def _entries(root: Path, folder: Path) -> list[Path]:
    if root.exists() and not root.is_dir():
        raise ProjectError(f"{folder} is a file; remedy: name a new or an empty folder")
    return sorted(root.iterdir()) if root.exists() else []


def _existing(text: Path) -> Path:
    path = text.expanduser().resolve()
    if not path.exists():
        raise ProjectError(f"--text {text}: no such file or folder; remedy: name the file or folder with your text")
    return path


def write_recipe(text: Path) -> str:
    """A recipe file for this text: the packaged recipe `small`, without its evaluation task."""
    table = read_table(PACKAGED_RECIPES / f"small{SUFFIX}", "recipe", RecipeError)
    corpus = {"path": str(text), "heldout_fraction": table["corpus"]["heldout_fraction"]}
    description = "The packaged recipe `small` on other text"
    changed: dict[str, Any] = {"description": description, "corpus": corpus}
    return to_toml(table | changed | {"evaluation": None})


def _checked(name: str, recipe: str) -> str:
    validated({"name": name} | tomllib.loads(recipe), Recipe, f"recipe {name}", RecipeError)
    if name in recipe_names():
        raise RecipeError(f"a recipe is named {name} already; remedy: give the project another name")
    return recipe
