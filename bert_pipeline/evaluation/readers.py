"""The files of evaluation sets, read with care: every fault is named with its file and line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bert_pipeline.evaluation.tasks import Task


@dataclass(frozen=True)
class Sentence:
    """ner and pico."""

    id: str
    """`<document>:<number>` where -DOCSTART- lines name documents, else the number of the sentence in its file."""
    tokens: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """relation, similarity, documents, qa."""

    id: str
    parts: tuple[str, ...]
    """One text; two for similarity (both sentences) and qa (question, context)."""
    label: str | float | frozenset[str]
    """relation, qa: a class. similarity: a score. documents: the classes that hold."""


Example = Sentence | Text


@dataclass(frozen=True)
class TaskData:
    splits: Mapping[str, list[Example]]
    """train, dev, test."""
    files: Mapping[str, Mapping[str, str | int]]
    """Of each split: `sha256` of its file, `size` in the task's unit, `examples`."""


def read_task(task: Task, folder: Path, other_data: bool = False) -> TaskData: ...


def size(task: Task, examples: list[Example]) -> int:
    """In the task's unit: gold entities, label words, or examples."""
    ...
