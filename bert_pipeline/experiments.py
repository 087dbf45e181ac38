"""Experiments by name: recipe files, and the recipes that study files expand to."""

import logging
from functools import cache
from pathlib import Path

from bert_pipeline import settings
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import files_by_name, load_recipe, read_named, read_table, recipe_files, validated
from bert_pipeline.study import SEPARATOR, Study, StudyError, fairness_faults, recipe_table

Recipes = dict[tuple[str, int], Recipe]
"""The recipes of a study by arm and pretraining seed, in the order of training (Study.recipe_names)."""

log = logging.getLogger(__name__)


def recipe_names() -> list[str]:
    """The names of all recipes: of every recipe file, then of every study."""
    return [*recipe_files(), *(name for names in recipes_of_studies().values() for name in names)]


def recipes_of_studies() -> dict[str, list[str]]:
    """The names of the recipes of each study.

    A study that is not valid is logged and left out, so that it does not stop other experiments.
    """
    names = {}
    for name, path in study_files().items():
        try:
            names[name] = read_named(path, Study, "study", StudyError).recipe_names
        except StudyError as error:
            _warn_once(f"a study is left out: {error}")
    return names


@cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def find_recipe(name: str) -> Recipe:
    """Load the recipe of this name, from its file or from its study. Raises RecipeError if there is none."""
    files, studies = recipe_files(), study_files()
    if name in files:
        return load_recipe(files[name])
    study = name.partition(SEPARATOR)[0]
    if SEPARATOR in name and study in studies:
        for recipe in expand(find_study(study)).values():
            if recipe.name == name:
                return recipe
        raise RecipeError(
            f"study {study} has no recipe {name}: its arm or its seed was removed or renamed; remedy: put it back into "
            f"{studies[study]}, or do nothing: its artifacts, runs and models are not affected"
        )
    raise RecipeError(
        f"no recipe is named {name}: its file was removed or renamed; remedy: put {name}.toml back into a folder "
        "of BERT_PIPELINE_RECIPES, or do nothing: its artifacts, runs and models are not affected "
        f"(known: {', '.join(files)})"
    )


def study_files() -> dict[str, Path]:
    """Every study file by name: the packaged ones, then those in the folders of BERT_PIPELINE_STUDIES.

    Raises StudyError if a folder does not exist, or if two files have the same name.
    """
    folders = [Path(__file__).parent / "studies", *settings.study_folders()]
    return files_by_name(folders, "studies", "BERT_PIPELINE_STUDIES", StudyError)


def find_study(name: str) -> Study:
    """Load the study of this name. Raises StudyError if it is missing or invalid, or if an arm breaks its rule."""
    files = study_files()
    if name not in files:
        raise StudyError(
            f"no study is named {name}; remedy: name a known one ({', '.join(files)}), or put {name}.toml into a "
            "folder of BERT_PIPELINE_STUDIES"
        )
    if name in recipe_files():
        raise StudyError(f"{files[name]}: a recipe is named {name}, too; remedy: rename the study")
    study = read_named(files[name], Study, "study", StudyError)
    first_seed = study.pretraining_seeds[0]
    of_arms = {arm: recipe for (arm, seed), recipe in expand(study).items() if seed == first_seed}
    if faults := [*fairness_faults(study, of_arms)]:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise StudyError(f"{files[name]}: {len(faults)} fault(s)\n{listed}")
    return study


def expand(study: Study) -> Recipes:
    """The recipes of the study. Raises StudyError if it names an unknown recipe, or an arm gives an invalid recipe."""
    files = recipe_files()
    named = {study.base, *(arm.recipe for arm in study.arms if arm.recipe)}
    if unknown := sorted(named - files.keys()):
        raise StudyError(
            f"study {study.name}: no recipe is named {', '.join(unknown)}; remedy: name recipe files as base and "
            f"recipe ({', '.join(files)})"
        )
    for name in named:
        load_recipe(files[name])  # an invalid recipe is reported before the study changes it
    tables = {name: read_table(files[name], "recipe", RecipeError) for name in named}
    recipes = {}
    for seed in study.pretraining_seeds:
        for arm in study.arms:
            table = recipe_table(study, arm, seed, tables)
            if table["name"] in files:
                raise StudyError(
                    f"{files[table['name']]}: study {study.name} has a recipe of this name; remedy: rename it"
                )
            recipes[arm.name, seed] = validated(table, Recipe, f"study {study.name}, arm {arm.name}", StudyError)
    return recipes
