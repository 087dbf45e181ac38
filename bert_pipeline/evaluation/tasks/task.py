"""The evaluation tasks: what each one asks, where its files lie, how it is scored, and what others have published.

A task is a TOML file and a folder of data. BLURB's thirteen (Gu et al. 2021, arXiv 2007.15779) stand in
bert_pipeline/tasks/; tasks of other domains in the folders that BERT_PIPELINE_TASKS names. BLURB's data may not be
redistributed: whoever has it names its folder by BERT_PIPELINE_DATA. `sample-chem` is generated, so that the whole
graph runs without any.

A task of one's own needs no code: `pathology.toml`, the fields of `Task` below, and three files in the format of its
kind (evaluation/readers.py):

    title = "Findings in pathology reports"
    kind = "relation"
    version = "second annotation round"
    terms = "internal"
    folder = "pathology"                       # under BERT_PIPELINE_DATA: train.tsv, dev.tsv, test.tsv
    labels = ["none", "confirms", "excludes"]
    unscored_labels = ["none"]
"""

import difflib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bert_pipeline import settings
from bert_pipeline.recipe import CorpusRecipe, Count, Positive, Section
from bert_pipeline.recipe_files import read_named
from bert_pipeline.store.artifact import files_fingerprint, fingerprint

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

INPUTS: dict[Kind, str] = {
    "ner": "[CLS] sentence [SEP], tags on the first pieces of words",
    "pico": "[CLS] sentence [SEP], tags on the first pieces of words",
    "relation": "[CLS] sentence with dummies for its entities [SEP]",
    "similarity": "[CLS] first text [SEP] second text [SEP]",
    "documents": "[CLS] text [SEP]",
    "qa": "[CLS] question [SEP] text [SEP]",
}
"""What the model reads of an example (inputs.py)."""

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "relation": ("id", "text", "class"),
    "similarity": ("id", "first text", "second text", "score"),
    "documents": ("id", "text", "classes"),
    "qa": ("id", "question", "text", "class"),
}
"""Of the kinds whose files are tables."""


class TaskError(ValueError):
    """A task that is not known, or data that is not what the task says."""


class Split(Section):
    file: str = Field(min_length=1)
    """Under the task's folder."""
    size: int | None = Field(None, ge=1)
    """In the kind's unit (UNITS); files of another size are refused."""
    printed: int | None = Field(None, ge=1)
    """The paper's count, where it is known or likely to be of another draw: told, and no file is refused for it."""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Of the file that `size` was counted in; others are refused. Empty where no such file was at hand."""


class Splits(Section):
    train: Split = Split(file="train.tsv")
    """What the model is fine-tuned on."""
    dev: Split = Split(file="dev.tsv")
    """What a setting is chosen by, where there are several."""
    test: Split = Split(file="test.tsv")
    """What is reported."""


class Quick(Section):
    """One setting for every day."""

    learning_rate: Positive = 5e-5
    """The peak."""
    batch_size: Count = 32
    """Examples a step."""
    num_epochs: Count = 10
    """Passes over train."""


class Published(Section):
    """The grid that is searched on dev, and the number of runs (Gu et al. 2021, sections 2.4 and 2.5).

    The authors give 2 to 60 epochs and no list: the lists of the packaged tasks are ours.
    """

    learning_rate: tuple[Positive, ...] = Field((1e-5, 3e-5, 5e-5), min_length=1)
    """Peaks that are tried."""
    batch_size: tuple[Count, ...] = Field((16, 32), min_length=1)
    """Examples a step, tried."""
    num_epochs: tuple[Count, ...] = Field((10, 20), min_length=1)
    """Passes over train, tried."""
    num_seeds: Count = 5
    """Runs of the best setting."""


class Task(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """The stem of its file; a name of files and of Dagster's assets as well."""
    title: str
    """For people."""
    kind: Kind
    """What is asked, which decides on the files' format and the metric."""
    group: Group | None = None
    """Of BLURB; a task without one is no part of BLURB's score."""
    version: str
    """Which release and preparation of the data this is."""
    source: str = ""
    """Where the data comes from (URL)."""
    terms: str
    """Under which the data may be used."""
    pmids: bool = False
    """The id of an example begins with the PMID of its article, by which the corpus is searched for it, too."""
    folder: str = ""
    """Under BERT_PIPELINE_DATA."""
    generated: bool = False
    """The data is written by data/sources/sample.py, and there is no folder."""
    splits: Splits = Splits()
    labels: tuple[str, ...] = ()
    """relation, qa, documents: the classes, in the model's order. pico: the types (PAR of I-PAR). ner: the types of
    B-TYPE and I-TYPE; empty for plain B and I."""
    unscored_labels: tuple[str, ...] = ()
    """relation: classes that the micro F1 leaves out (`false` of ChemProt)."""
    label_aliases: dict[str, str] = Field(default_factory=dict)
    """relation, qa, documents: spellings in the files that mean one of `labels`."""
    score_range: tuple[float, float] | None = None
    """similarity: the lowest and the highest score that a pair may bear."""
    header: tuple[str, ...] = ()
    """The names of the columns that stand in the first line of each file; empty where there is no such line."""
    max_seq_length: int = Field(512, ge=8)
    """Longer inputs are cut; what is cut off counts as missed."""
    quick: Quick = Quick()
    published: Published = Published()
    published_scores: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict)
    """Test scores of other models, as fractions."""
    published_source: str = ""
    """Where `published_scores` stand (paper, table)."""
    measured_scores: dict[str, float] = Field({})
    """Test scores of general-domain models that anyone can have, measured by this project (recipes/LOG.md)."""

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    @property
    def tags(self) -> tuple[str, ...]:
        """ner and pico: the classes of a word, O first."""
        if self.kind == "pico":
            return ("O", *(f"I-{label}" for label in self.labels))
        return ("O", *(f"{mark}-{label}" for label in self.labels for mark in "BI")) if self.labels else ("O", "B", "I")

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        faults = [*self._label_faults(), *self._layout_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _label_faults(self) -> Iterator[str]:
        fewest = {"ner": 0, "pico": 1, "documents": 1, "relation": 2, "qa": 2, "similarity": 0}[self.kind]
        if len(self.labels) < fewest:
            yield f"labels: {len(self.labels)} of them, and a {self.kind} task has at least {fewest}; remedy: name them"
        if self.labels and self.kind == "similarity":
            yield "labels have no effect in a similarity task; remedy: remove them"
        if len(set(self.labels)) < len(self.labels):
            yield "labels: one stands twice; remedy: remove it"
        for label in (*self.labels, *self.label_aliases):
            if not label.strip() or set(label) & set("\t\r\n,"):
                yield f"labels: {label!r} cannot stand in a file; remedy: a name without tab, comma and line break"
        if unknown := [label for label in self.unscored_labels if label not in self.labels]:
            yield f"unscored_labels: {unknown} are none of the labels {list(self.labels)}; remedy: name those of labels"
        if self.unscored_labels and self.kind != "relation":
            yield f"unscored_labels have no effect in a {self.kind} task; remedy: remove them"
        if self.labels and set(self.labels) <= set(self.unscored_labels):
            yield "unscored_labels: no label is left to score; remedy: leave out fewer"
        if self.label_aliases and self.kind not in ("relation", "qa", "documents"):
            yield f"label_aliases have no effect in a {self.kind} task; remedy: remove them"
        for alias, label in self.label_aliases.items():
            if label not in self.labels or alias in self.labels:
                yield f"label_aliases: {alias!r} = {label!r}; remedy: a spelling that is no label, and one that is"

    def _layout_faults(self) -> Iterator[str]:
        if self.generated == bool(self.folder):
            yield (
                "folder: missing; remedy: the folder of the data, under BERT_PIPELINE_DATA"
                if not self.folder
                else ("folder has no effect where the data is generated; remedy: remove it")
            )
        low, high = self.score_range or (0.0, 0.0)
        if (self.kind == "similarity") != (self.score_range is not None):
            yield f"score_range belongs to similarity tasks, and this is {self.kind}; remedy: " + (
                "remove it" if self.score_range else "score_range = [0.0, 4.0]"
            )
        elif self.score_range and not low < high:
            yield f"score_range: {low} is not below {high}; remedy: the lowest score, then the highest"
        files = [split.file for split in (self.splits.train, self.splits.dev, self.splits.test)]
        if len(set(files)) < len(files):
            yield f"splits: {files} are not three files; remedy: a file for each split"
        columns = COLUMNS.get(self.kind, ())
        if self.header and (not columns or any(file.endswith(".json") for file in files)):
            yield f"header: the files of this {self.kind} task have no columns to name; remedy: remove it"
        elif self.header and len(self.header) != len(columns):
            yield f"header: {len(self.header)} names; remedy: one for each column ({', '.join(columns)})"


def task_files() -> dict[str, Path]:
    """Every task's file by name: the packaged ones, then those of the folders in BERT_PIPELINE_TASKS.

    Raises TaskError where a folder is not there, and where two names differ in nothing that a file system or Dagster,
    which takes - for _, would tell apart.
    """
    folders = [Path(__file__).with_name("blurb"), *settings.task_folders()]
    found: dict[str, Path] = {}
    taken: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"BERT_PIPELINE_TASKS: {folder} is no folder; remedy: name the folder of the tasks' files")
        for path in sorted(folder.glob("*.toml")):
            other = taken.setdefault(path.stem.replace("-", "_").lower(), path)
            if other is not path:
                raise TaskError(f"two tasks are named {path.stem}: {other} and {path}; remedy: rename one")
            found[path.stem] = path
    return found


def load_task(path: Path) -> Task:
    """Read one TOML file; its stem is the name of the task. Raises TaskError with all faults at once."""
    return read_named(path, Task, "task", TaskError)


def find_task(name: str) -> Task:
    files = task_files()
    if name in files:
        return load_task(files[name])
    near = difflib.get_close_matches(name, files, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]}?" if near else "remedy: name one of them"
    raise TaskError(f"no task is named {name!r}; {remedy} (known: {', '.join(files)})")


def task_folder(task: Task, data: Path | None, generated: Path) -> Path:
    """The folder of a task's files: `data` if given, else the task's own; generated data is written to `generated`."""
    if data is None and task.generated:
        from bert_pipeline.data.sources.sample.documents import write_sample_ner

        # The same invented names as the sample's text, which is written from this seed by default.
        write_sample_ner(generated, seed=CorpusRecipe.model_fields["seed"].default)
        return generated
    return data or settings.in_data_folder(task.folder)


def split_files(task: Task, folder: Path) -> dict[str, Path]:
    """The file of each split, there or not."""
    return {split: folder / getattr(task.splits, split).file for split in SPLITS}


def require_files(task: Task, folder: Path, splits: Sequence[str] = SPLITS) -> dict[str, Path]:
    """The file of each of `splits`. Raises TaskError, naming all that are missing."""
    files = {split: path for split, path in split_files(task, folder).items() if split in splits}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        under = f", or set BERT_PIPELINE_DATA to the folder of {task.folder}" if task.folder else ""
        raise TaskError(
            f"{task.name}: {folder.absolute()} has no {', '.join(missing)}; remedy: name the folder that holds "
            f"{', '.join(path.name for path in files.values())}{under}"
        )
    return files


def task_fingerprint(name: str) -> str:
    """Of a task's description and data files; generated data is generated for it."""
    task = find_task(name)
    with tempfile.TemporaryDirectory() as generated:
        files = files_fingerprint(require_files(task, task_folder(task, None, Path(generated))))
    return fingerprint({"task": task.model_dump(mode="json"), "files": files})
