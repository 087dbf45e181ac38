"""Recipe files: find them by name, read and write them, explain every fault.

A recipe is a TOML file; its stem is the recipe's name and its Dagster partition.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bert_pipeline import settings
from bert_pipeline.core.printable import shows
from bert_pipeline.recipe import Recipe, RecipeError, Section

Named = TypeVar("Named", bound=Section)

SUFFIX = ".toml"
SAVE_AS_UTF_8 = "save the file as UTF-8 in your editor"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file; its stem is the name of the experiment.

    Raises RecipeError if it is invalid: the message lists all faults, each with its dotted path, value and remedy.
    """
    return read_named(path, Recipe, "recipe", RecipeError)


def read_named(path: Path, section: type[Named], what: str, error: type[ValueError]) -> Named:
    """Read a TOML file as a `section`, named by the file's stem. Raises `error` with all faults; `what` names the kind
    of file in its message.
    """
    return validated({"name": path.stem} | read_table(path, what, error), section, str(path), error)


def read_table(path: Path, what: str, error: type[ValueError]) -> dict[str, Any]:
    """Read a TOML file whose stem is the name of what it describes."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors may write a byte order mark
        table = tomllib.loads(text)
    except FileNotFoundError:
        there = ", ".join(file.name for file in toml_files(path.parent)) or f"no {what}"
        raise error(f"{path}: no such {what}; remedy: check the name; {path.parent} contains {there}") from None
    except UnicodeDecodeError as broken:
        line = broken.object[: broken.start].count(b"\n") + 1
        raise error(f"{path}: line {line} is not UTF-8 text; remedy: {SAVE_AS_UTF_8}") from None
    except tomllib.TOMLDecodeError as broken:
        if "\0" in text:  # ASCII characters in UTF-16 are valid UTF-8
            raise error(f"{path}: not UTF-8 text but UTF-16; remedy: {SAVE_AS_UTF_8}") from None
        raise error(f"{path}: not a TOML file: {broken}") from None
    if "name" in table:
        raise error(f"{path}: name: the file's stem ({path.stem}) is the name; remedy: remove the key")
    return table


def validated(table: Mapping[str, Any], section: type[Named], where: str, error: type[ValueError]) -> Named:
    """Return the table as a `section`. Raises `error` with all faults; `where` begins its message."""
    try:
        # Through JSON, because TOML's arrays are Python lists, which strict validation refuses for tuples.
        return section.model_validate_json(json.dumps(table, default=str))
    except ValidationError as invalid:
        faults = "\n".join(f"  {explain(fault, section)}" for fault in invalid.errors())
        raise error(f"{where}: {invalid.error_count()} fault(s)\n{faults}") from None


def toml_files(folder: Path) -> list[Path]:
    """The TOML files of a folder, in order of their names; the suffix may have capitals."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == SUFFIX)


def recipe_files() -> dict[str, Path]:
    """Every recipe file by name: the packaged ones, then those in the folders of BERT_PIPELINE_RECIPES.

    Raises RecipeError if a folder does not exist, or if two files have the same name.
    """
    folders = [Path(__file__).parent / "recipes", *settings.recipe_folders()]
    return files_by_name(folders, "recipes", "BERT_PIPELINE_RECIPES", RecipeError)


def files_by_name(folders: Sequence[Path], what: str, variable: str, error: type[ValueError]) -> dict[str, Path]:
    """The TOML files of the folders by their stems. Raises `error` if a folder is missing or two stems are the same."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise error(f"{variable}: {folder} is not a folder; remedy: name your folder of {what}")
        for path in toml_files(folder):
            if path.stem in found:
                raise error(f"two {what} are named {path.stem}: {found[path.stem]} and {path}; remedy: rename one")
            found[path.stem] = path
    return found


def explain(fault: ErrorDetails, root: type[BaseModel]) -> str:
    """One line for a fault: dotted path, what is wrong, value or remedy. `root`: class of the file, Recipe or Task."""
    where = ".".join(str(step) for step in fault["loc"]) or root.__name__.lower()
    if fault["type"] == "extra_forbidden":
        known = _keys_at(fault["loc"][:-1], root)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {remedy}"
    if fault["type"] == "string_pattern_mismatch" and fault["loc"] == ("name",):
        signs = "_ - ." if "." in fault["ctx"]["pattern"] else "_ -"
        return (
            f"name: {fault['input']!r}, from the name of the file, is not allowed: a name has only the letters A to Z "
            f"and a to z, digits and {signs}, and starts with a letter or a digit; remedy: rename the file"
        )
    if fault["type"] == "missing":
        return f"{where}: missing; remedy: set it"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})")


def _keys_at(steps: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys allowed in the table at this path. The root's `name` is not one of them: it is the file's stem."""
    model: Any = root
    for step in steps:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        model = getattr(annotation, "__args__", (annotation,))[0]  # tuple[PhaseRecipe, ...] -> PhaseRecipe
    return [name for name in model.model_fields if name != "name" or model is not root]


def to_toml(table: Mapping[str, Any], path: str = "") -> str:
    """Write scalars, arrays, tables and arrays of tables as TOML. None values are left out: reading derives them again.

    Not tomli_w: it writes arrays over several lines, and this text is part of the model card, an artifact whose bytes
    must not change.
    """
    lines, tables = "", ""
    for key, value in table.items():
        inner = f"{path}{key}"
        if isinstance(value, Mapping):
            tables += f"\n[{inner}]\n{to_toml(value, inner + '.')}"
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            tables += "".join(f"\n[[{inner}]]\n{to_toml(row, inner + '.')}" for row in value)
        elif value is not None:
            as_json = json.dumps(value, ensure_ascii=False)  # valid TOML: both write scalars and arrays alike
            lines += f"{key} = {''.join(map(_escaped, as_json))}\n"
    return lines + tables


def _escaped(char: str) -> str:
    return char if shows(char) else f"\\U{ord(char):08x}"
