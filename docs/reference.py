"""Write the sources of the site: the pages of this folder, with sections of infra/README.md, and reference/, generated
from the code.

python docs/reference.py site-source
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from pydantic import BaseModel

from bert_pipeline.cli.app import PROGRAM, command_line
from bert_pipeline.cli.commands import help_of
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import Recipe
from bert_pipeline.settings import INTERNAL_VARIABLES, VARIABLES
from bert_pipeline.study import Study

ROOT = Path(__file__).parents[1]
ROOMS = {
    "index": ("bert_pipeline", "The library"),
    "core": ("bert_pipeline/core", "Files, tables, progress, randomness"),
    "web": ("bert_pipeline/web", "Downloads"),
    "store": ("bert_pipeline/store", "Artifacts and where they are kept"),
    "formats": ("bert_pipeline/formats", "Formats on disk"),
    "report": ("bert_pipeline/report", "Model card, pictures, tables of scores"),
    "data": ("bert_pipeline/data", "Pairs and masks"),
    "corpus": ("bert_pipeline/data/corpus", "Corpus"),
    "tokenizer": ("bert_pipeline/data/tokenizer", "Tokenizer"),
    "contamination": ("bert_pipeline/data/contamination", "Contamination"),
    "sources": ("bert_pipeline/data/sources", "Sources of text"),
    "pubmed": ("bert_pipeline/data/sources/pubmed", "PubMed"),
    "sample": ("bert_pipeline/data/sources/sample", "The generated sample"),
    "training": ("bert_pipeline/training", "Training"),
    "batches": ("bert_pipeline/training/batches", "Batches"),
    "model": ("bert_pipeline/training/model", "Model, loss and optimizer"),
    "launch": ("bert_pipeline/training/launch", "Starting the training processes"),
    "evaluation": ("bert_pipeline/evaluation", "Evaluation"),
    "tasks": ("bert_pipeline/evaluation/tasks", "Tasks and their data"),
    "finetuning": ("bert_pipeline/evaluation/finetuning", "Fine-tuning"),
    "scoring": ("bert_pipeline/evaluation/scoring", "Scores"),
    "task-models": ("bert_pipeline/evaluation/task_models", "Task models"),
    "planning": ("bert_pipeline/planning", "Plans"),
    "fitting": ("bert_pipeline/fitting", "Fitting a recipe"),
    "studies": ("bert_pipeline/studies", "Studies"),
    "cli": ("bert_pipeline/cli", "Command line"),
}
"""A page for each package: its folder and its title."""


def write(out: Path) -> None:
    """Replace the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in out.rglob("*.md"):
        path.write_text(with_infra(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name, text in pages().items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def with_infra(page: str) -> str:
    """Replace `<!-- infra: HEADING -->` by that section of infra/README.md."""
    return re.sub(r"^<!-- infra: (.+) -->$", lambda found: infra(found[1]), page, flags=re.MULTILINE)


def infra(heading: str) -> str:
    """The text below a heading of infra/README.md. Raises ValueError if there is no such heading."""
    parts = re.split(r"^## (.+)\n", (ROOT / "infra" / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    if heading not in named:
        raise ValueError(f"infra/README.md has no section {heading!r}; remedy: one of {', '.join(named)}")
    return named[heading].strip()


def pages() -> dict[str, str]:
    """Path under docs/: Markdown."""
    rooms = {f"reference/api/{page}.md": room(*folder) for page, folder in ROOMS.items()}
    return rooms | {
        "reference/cli.md": cli(),
        "reference/environment.md": environment(),
        "reference/recipe.md": recipe(),
        "reference/task.md": task(),
        "reference/study.md": study(),
    }


def room(folder: str, title: str) -> str:
    """The API page of a package, rendered by mkdocstrings."""
    modules = sorted(path for path in (ROOT / folder).glob("*.py") if not path.name.startswith("__"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    return f"# {title}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def environment() -> str:
    """Every environment variable."""
    rows = [f"| `{name}` | {each.meaning} | {each.default} |" for name, each in VARIABLES.items()]
    internal = [f"| `{name}` | {each.meaning} |" for name, each in INTERNAL_VARIABLES.items()]
    parts = [
        "# Environment variables",
        "A recipe states what is computed; environment variables state where and how fast.",
        "\n".join(["| variable | meaning | default |", "|---|---|---|", *rows]),
        "Programs set these for each other; do not set them yourself:",
        "\n".join(["| variable | meaning |", "|---|---|", *internal]),
    ]
    return "\n\n".join(parts) + "\n"


def cli() -> str:
    """Every command with its help."""
    parts = [
        "# Command line",
        "`bert-pipeline COMMAND --help` prints the same text. An option with `...` takes several values: "
        "`--learning-rate 1e-5 3e-5` or `--learning-rate 1e-5 --learning-rate 3e-5`. Exit codes: 0 done, 1 an error in "
        "one line on standard error, 2 a usage error.",
    ]
    for name, text in commands().items():
        parts.append(f"## {PROGRAM} {name} {{ #{name} }}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


@cache
def commands() -> dict[str, str]:
    """The help of each command by name."""
    return {name: help_of(f"{PROGRAM} {name}", command) for name, command in command_line().commands.items()}


def recipe() -> str:
    """Every key of a recipe file."""
    about = (
        "A recipe is a TOML file in `bert_pipeline/recipes/` or in a folder listed in `BERT_PIPELINE_RECIPES`. Its "
        "file name, without `.toml`, is the name of the experiment. The defaults are BERT-base as published. An "
        "unknown key is an error that names its path and the closest known key. `bert-pipeline plan RECIPE` checks a "
        "recipe and estimates its disk, memory and time."
    )
    return "\n\n".join(["# Recipes", about, *_tables(Recipe)]) + "\n"


def task() -> str:
    """Every key of a task file."""
    about = (
        "A task is a TOML file in a folder listed in `BERT_PIPELINE_TASKS`, and three data files; the [tutorial]"
        "(../tutorial.md#bring-a-task) builds one. `bert-pipeline evaluate --list` lists all tasks. The "
        "[readers](api/tasks.md#bert_pipeline.evaluation.tasks.readers) document the data formats."
    )
    return "\n\n".join(["# Tasks", about, *_tables(Task)]) + "\n"


def study() -> str:
    """Every key of a study file."""
    about = (
        "A study is a TOML file in `bert_pipeline/studies/` or in a folder listed in `BERT_PIPELINE_STUDIES`. Its file "
        "name, without `.toml`, is the name of the study. [Studies](../studies.md) explains the use. `bert-pipeline "
        "plan STUDY` checks a study and estimates its disk and time."
    )
    return "\n\n".join(["# Studies", about, *_tables(Study)]) + "\n"


def _tables(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """A table of the keys of a section, then a heading and tables for each section in it."""
    schema, about = model.model_json_schema(), meanings(model)
    inner = {name: found for name, field in model.model_fields.items() if (found := _section(field.annotation))}
    paths: dict[type[BaseModel], list[str]] = {}
    for name, found in inner.items():
        paths.setdefault(found, []).append(f"{path}.{name}".lstrip("."))
    names = [name for name in model.model_fields if path or (name not in inner and name != "name")]  # name: the stem
    rows = [
        f"| `{name}` | {_values(schema['properties'][name], paths[inner[name]][0] if name in inner else '')} "
        f"| {_default(schema, name)} | {' '.join(about[name].split())} |"
        for name in names
    ]
    yield "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])
    for found, where in paths.items():
        yield f"## {', '.join(f'[{each}]' for each in where)} {{ #{where[0]} }}"
        yield from _tables(found, where[0])


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and the sections within it, depth first."""
    yield model
    for field in model.model_fields.values():
        if found := _section(field.annotation):
            yield from sections(found)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field: the docstring below it."""
    documented = _module(model.__module__)[model.__name__]
    return {name: doc.value if (doc := documented[name].docstring) else "" for name in model.model_fields}


@cache
def _module(name: str) -> griffe.Object | griffe.Alias:
    return griffe.load(name, search_paths=[ROOT])


def _section(annotation: Any) -> type[BaseModel] | None:
    """`Section` if the annotation is `Section` or `tuple[Section, ...]`, else None."""
    first = getattr(annotation, "__args__", (annotation,))[0]
    return first if isinstance(first, type) and issubclass(first, BaseModel) else None


def _values(schema: dict[str, Any], section: str = "") -> str:
    """The values of a key, in words."""
    if section:
        return f"{'tables' if schema.get('type') == 'array' else 'a table'}: [{section}](#{section})"
    if options := schema.get("anyOf"):
        return " or ".join(_values(option) for option in options if option.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        several = schema.get("items") or schema["prefixItems"][0]
        return f"list of {_values(several)}"
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    bounds = [
        f"{sign} {bound:,}"
        for sign, bound in (("≥", low), (">", above), ("≤", high), ("<", below))
        if bound is not None and bound < 2**31
    ]
    words = {"string": "text", "boolean": "true or false", "integer": "whole number", "object": "table"}
    return " ".join([words.get(schema["type"], schema["type"]), ", ".join(bounds)]).rstrip()


def _default(schema: dict[str, Any], name: str) -> str:
    if name in schema.get("required", ()):
        return "required"
    value = schema["properties"][name].get("default")
    return "" if value in (None, "", [], {}) or _is_table(value) else f"`{json.dumps(value)}`"


def _is_table(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) else value, dict)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
