"""Recipe files: find them by name, read them, explain every fault, write them.

A recipe is a TOML file; its stem is the recipe's name and its Dagster partition.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bert_pipeline import settings
from bert_pipeline.core.printable import shows
from bert_pipeline.recipe import Recipe, RecipeError, Section

Named = TypeVar("Named", bound=Section)


def load_recipe(path: Path) -> Recipe:
    """Read one TOML file; its stem is the name of the experiment.

    Raises RecipeError with all faults at once, each with its dotted path, its value and the remedy.
    """
    return read_named(path, Recipe, "recipe", RecipeError)


def read_named(path: Path, section: type[Named], what: str, error: type[ValueError]) -> Named:
    """A TOML file whose stem is the name in its section. Raises `error` with all faults at once."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such {what}; remedy: name one of the files in {path.parent}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise error(f"{path}: not a TOML file: {broken}") from None
    if "name" in table:
        raise error(f"{path}: name: the file's stem ({path.stem}) is the name; remedy: remove the key")
    try:
        # Through JSON, because TOML's arrays are Python lists, which strict validation refuses for tuples.
        return section.model_validate_json(json.dumps({"name": path.stem} | table, default=str))
    except ValidationError as invalid:
        faults = "\n".join(f"  {explain(fault, section)}" for fault in invalid.errors())
        raise error(f"{path}: {invalid.error_count()} fault(s)\n{faults}") from None


def recipe_files() -> dict[str, Path]:
    """Every recipe by name: the packaged ones, then those of the folders in BERT_PIPELINE_RECIPES.

    Raises RecipeError where two files claim one name.
    """
    folders = [Path(__file__).parent / "recipes", *settings.recipe_folders()]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            if path.stem in found:
                raise RecipeError(f"two recipes are named {path.stem}: {found[path.stem]} and {path}; rename one")
            found[path.stem] = path
    return found


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises RecipeError where there is none (any more), or it cannot be used."""
    files = recipe_files()
    if name not in files:
        raise RecipeError(
            f"no recipe is named {name}: its file was removed or renamed; remedy: bring {name}.toml back to a folder "
            "of BERT_PIPELINE_RECIPES, or leave it: its artifacts, runs and models stay as they are"
        )
    return load_recipe(files[name])


def explain(fault: ErrorDetails, root: type[BaseModel]) -> str:
    """`root`: the class of the whole file, Recipe or Task."""
    where = ".".join(str(step) for step in fault["loc"]) or root.__name__.lower()
    if fault["type"] == "extra_forbidden":
        known = _keys_at(fault["loc"][:-1], root)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {remedy}"
    if fault["type"] == "missing":
        return f"{where}: missing; remedy: set it"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})")


def _keys_at(steps: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys that the table at this place may have; the name of the whole is its file's."""
    model: Any = root
    for step in steps:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        model = getattr(annotation, "__args__", (annotation,))[0]  # tuple[PhaseRecipe, ...] -> PhaseRecipe
    return [name for name in model.model_fields if name != "name" or model is not root]


def to_toml(table: Mapping[str, Any], path: str = "") -> str:
    """Scalars, arrays, tables and arrays of tables; what is None is left out, and so derived when it is read."""
    lines, tables = "", ""
    for key, value in table.items():
        inner = f"{path}{key}"
        if isinstance(value, Mapping):
            tables += f"\n[{inner}]\n{to_toml(value, inner + '.')}"
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            tables += "".join(f"\n[[{inner}]]\n{to_toml(row, inner + '.')}" for row in value)
        elif value is not None:
            json_of_value = json.dumps(value, ensure_ascii=False)  # JSON's scalars and arrays are TOML's
            lines += f"{key} = {''.join(map(_shown, json_of_value))}\n"
    return lines + tables


def _shown(char: str) -> str:
    return char if shows(char) else f"\\U{ord(char):08x}"
