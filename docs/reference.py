"""The pages of reference/ that follow from the code: mkdocs calls `on_files`, the tests call `pages`."""

import argparse
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from bert_pipeline.cli import _parser
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import Recipe
from bert_pipeline.settings import INTERNAL_VARIABLES, VARIABLES

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
    "planning": ("bert_pipeline/planning", "Plans"),
}
"""A page for each package: its folder and its title."""

os.environ["COLUMNS"] = "110"  # of argparse's help


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of docs/."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put sections of infra/README.md where a page has `<!-- infra: HEADING -->`."""
    return re.sub(r"^<!-- infra: (.+) -->$", lambda found: infra(found[1]), markdown, flags=re.MULTILINE)


def infra(heading: str) -> str:
    """The text below a heading of infra/README.md. Raises ValueError where there is none."""
    parts = re.split(r"^## (.+)\n", (ROOT / "infra" / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    if heading not in named:
        raise ValueError(f"infra/README.md has no section {heading!r}; remedy: one of {', '.join(named)}")
    return named[heading].strip()


def pages() -> dict[str, str]:
    """Markdown by path under docs/."""
    rooms = {f"reference/api/{page}.md": room(*folder) for page, folder in ROOMS.items()}
    return rooms | {
        "reference/cli.md": cli(),
        "reference/environment.md": environment(),
        "reference/recipe.md": recipe(),
        "reference/task.md": task(),
    }


def room(folder: str, title: str) -> str:
    """What the modules of a package say of themselves, by mkdocstrings."""
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
    commands = subcommands()
    parts = [
        "# Command line",
        "`bert-pipeline COMMAND --help` says the same. Exit codes: 0 done, 1 an error, told in one line, 2 an option "
        "that is not known.",
    ]
    for name, command in commands.items():
        parts.append(f"## bert-pipeline {name} {{ #{name} }}\n\n```text\n{command.format_help().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of bert-pipeline's commands, by name."""
    [found] = [action.choices for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return found


def recipe() -> str:
    """Every key of a recipe file."""
    about = (
        "A recipe is a TOML file in `bert_pipeline/recipes/`, or in a folder that `BERT_PIPELINE_RECIPES` names; its "
        "stem is the name of the experiment. What it does not say is BERT-base as published. A typo is refused with "
        "its path and the key that was meant; `bert-pipeline plan RECIPE` reads a recipe and says what it takes."
    )
    return "\n\n".join(["# Recipes", about, *_tables(Recipe)]) + "\n"


def task() -> str:
    """Every key of a task file."""
    about = (
        "A task is a TOML file in a folder that `BERT_PIPELINE_TASKS` names, and three files of data: the [tutorial]"
        "(../tutorial.md#a-task-of-your-own) makes one. `bert-pipeline evaluate --list` shows all tasks. The formats "
        "of the data stand with the [readers](api/tasks.md#bert_pipeline.evaluation.tasks.readers)."
    )
    return "\n\n".join(["# Tasks", about, *_tables(Task)]) + "\n"


def _tables(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """A heading and a table of the keys of a section, then those of the sections in it."""
    schema, told = model.model_json_schema(), meanings(model)
    inner = {name: found for name, field in model.model_fields.items() if (found := _section(field.annotation))}
    places: dict[type[BaseModel], list[str]] = {}
    for name, found in inner.items():
        places.setdefault(found, []).append(f"{path}.{name}".lstrip("."))
    names = [name for name in model.model_fields if path or (name not in inner and name != "name")]  # name: the stem
    rows = [
        f"| `{name}` | {_values(schema['properties'][name], places[inner[name]][0] if name in inner else '')} "
        f"| {_default(schema, name)} | {' '.join(told[name].split())} |"
        for name in names
    ]
    yield "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])
    for found, where in places.items():
        yield f"## {', '.join(f'[{each}]' for each in where)} {{ #{where[0]} }}"
        yield from _tables(found, where[0])


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and those within it."""
    yield model
    for field in model.model_fields.values():
        if found := _section(field.annotation):
            yield from sections(found)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings below its fields say."""
    documented = _module(model.__module__)[model.__name__]
    return {name: doc.value if (doc := documented[name].docstring) else "" for name in model.model_fields}


@cache
def _module(name: str) -> griffe.Object | griffe.Alias:
    return griffe.load(name, search_paths=[ROOT])


def _section(annotation: Any) -> type[BaseModel] | None:
    """Of `Section` and of `tuple[Section, ...]`."""
    first = getattr(annotation, "__args__", (annotation,))[0]
    return first if isinstance(first, type) and issubclass(first, BaseModel) else None


def _values(schema: dict[str, Any], section: str = "") -> str:
    """What a key takes, in words."""
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
        return "needed"
    value = schema["properties"][name].get("default")
    return "" if value in (None, "", [], {}) or _is_table(value) else f"`{json.dumps(value)}`"


def _is_table(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) else value, dict)
