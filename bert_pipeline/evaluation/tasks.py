"""The evaluation tasks: what each one asks, where its files lie, how it is scored, and what others have published.

A task is a TOML file and a folder. BLURB's thirteen (Gu et al. 2021, arXiv 2007.15779) stand in bert_pipeline/tasks/;
those of other domains in the folders that BERT_PIPELINE_TASKS names. BLURB's data may not be redistributed: whoever
has it names its folder by BERT_PIPELINE_DATA. `sample-chem` is generated, so that the whole graph runs without any.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from bert_pipeline.recipe import Count, Positive, Section, Seed, TaskRecipe
from bert_pipeline.recipe_faults import explain

SPLITS = ("train", "dev", "test")

Kind = Literal["ner", "pico", "relation", "similarity", "documents", "qa"]
Group = Literal[
    "named entity recognition",
    "PICO",
    "relation extraction",
    "sentence similarity",
    "document classification",
    "question answering",
]
"""The six groups of BLURB (Gu et al. 2021, table 3)."""

UNITS: dict[Kind, str] = {
    "ner": "entities",
    "pico": "label words",
    "relation": "pairs",
    "similarity": "pairs",
    "documents": "documents",
    "qa": "questions",
}
"""What the size of a split counts."""

METRICS: dict[Kind, str] = {
    "ner": "entity F1",
    "pico": "word F1, mean over the labels",
    "relation": "micro F1",
    "similarity": "Pearson correlation",
    "documents": "micro F1",
    "qa": "accuracy",
}


class TaskError(ValueError):
    """A task that is not known, or data that is not what the task says."""


class Split(Section):
    file: str
    """Under the task's folder."""
    size: int = Field(ge=1)
    """In the kind's unit (UNITS), as published; files of another size are refused."""
    sha256: str = ""
    """Of the file that the published numbers belong to; empty where no such file was at hand. Others are refused."""


class Splits(Section):
    train: Split
    dev: Split
    test: Split


class Quick(Section):
    """One setting for every day."""

    learning_rate: Positive = 5e-5
    batch_size: Count = 32
    num_epochs: Count = 10


class Published(Section):
    """The grid that is searched on dev, and the number of runs (Gu et al. 2021, sections 2.4 and 2.5)."""

    learning_rate: tuple[Positive, ...] = (1e-5, 3e-5, 5e-5)
    batch_size: tuple[Count, ...] = (16, 32)
    num_epochs: tuple[Count, ...] = (10, 20)
    num_seeds: Count = 5


class Task(Section):
    name: str
    """The stem of its file."""
    title: str
    kind: Kind
    group: Group | None = None
    """Of BLURB; a task without one is no part of BLURB's score."""
    version: str
    """Which release and preparation of the data this is."""
    source: str = ""
    """Where the data comes from (URL)."""
    terms: str
    """Under which the data may be used."""
    folder: str = ""
    """Under BERT_PIPELINE_DATA; empty where the data is generated."""
    splits: Splits | None = None
    """None where the data is generated."""
    labels: tuple[str, ...] = ()
    """relation, qa, documents: the classes, in the model's order. pico: the types (PAR of I-PAR). ner: the types of
    B-TYPE and I-TYPE; empty for plain B and I."""
    unscored_labels: tuple[str, ...] = ()
    """Classes that the micro F1 leaves out (`false` of ChemProt)."""
    label_aliases: dict[str, str] = {}
    """Spellings in the files that mean one of `labels`."""
    score_range: tuple[float, float] | None = None
    """similarity: the lowest and the highest score that a pair may bear."""
    header: bool = False
    """The first line of each file names its columns."""
    max_seq_length: Count = 512
    quick: Quick = Quick()
    published: Published = Published()
    published_scores: dict[str, float] = {}
    """Test scores of other models, as fractions."""
    published_source: str = ""
    """Where `published_scores` stand (paper, table)."""

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    @property
    def tags(self) -> tuple[str, ...]:
        """ner and pico: the classes of a word, O first."""
        if self.kind == "pico":
            return ("O", *(f"I-{label}" for label in self.labels))
        return ("O", *(f"{mark}-{label}" for label in self.labels for mark in "BI")) if self.labels else ("O", "B", "I")


class Protocol(Section):
    """How one task is run: the task's own settings under what the recipe changes of them."""

    learning_rates: tuple[Positive, ...]
    batch_sizes: tuple[Count, ...]
    nums_epochs: tuple[Count, ...]
    """More than one setting in all: every combination is run with the first seed, and the best on dev is taken."""
    max_seq_length: Count
    warmup_fraction: float
    weight_decay: float
    seeds: tuple[Seed, ...]


def protocol(task: Task, settings: TaskRecipe) -> Protocol: ...


def task_files() -> dict[str, Path]:
    """Every task's file by name: the packaged ones, then those of the folders in BERT_PIPELINE_TASKS."""
    ...


def load_task(path: Path) -> Task:
    """Read one TOML file; its stem is the name of the task. Raises TaskError with all faults at once."""
    ...


def find_task(name: str) -> Task: ...
