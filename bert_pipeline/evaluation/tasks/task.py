"""The evaluation tasks: kind, data files, metric and published scores of each.

A task is a TOML file and a folder of data. The thirteen tasks of BLURB (Gu et al. 2021, arXiv 2007.15779) are in
bert_pipeline/evaluation/tasks/blurb/; BERT_PIPELINE_TASKS names folders with further tasks. The package does not
contain BLURB's data, which may not be redistributed: set BERT_PIPELINE_DATA to the folder that holds it. The data of
`sample-chem` is generated, so that every stage runs without BLURB's data.

Your own task needs no code: a file such as `pathology.toml` with the fields of `Task` below, and three files in the
format of its kind (evaluation/tasks/readers.py):

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
from bert_pipeline.recipe_files import read_named, toml_files
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
"""The unit in which the size of a split is counted."""

TAGGING: tuple[Kind, ...] = ("ner", "pico")
"""The kinds with a tag for each word."""

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
"""The model's input for an example (finetuning/inputs.py)."""

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "relation": ("id", "text", "class"),
    "similarity": ("id", "first text", "second text", "score"),
    "documents": ("id", "text", "classes"),
    "qa": ("id", "question", "text", "class"),
}
"""The columns of the kinds whose files are tables."""


class TaskError(ValueError):
    """An unknown or invalid task, or data that does not match the task's description."""


class Split(Section):
    file: str = Field(min_length=1)
    """Path in the task's folder."""
    size: int | None = Field(None, ge=1)
    """Expected size in the kind's unit (UNITS); a file of another size is refused."""
    printed: int | None = Field(None, ge=1)
    """The paper's count, if it differs or probably belongs to another random split. It never causes a refusal."""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """Expected SHA-256; another file is refused. Empty if the benchmark's file was not available."""


class Splits(Section):
    train: Split = Split(file="train.tsv")
    """Used for fine-tuning."""
    dev: Split = Split(file="dev.tsv")
    """Used to choose among several settings."""
    test: Split = Split(file="test.tsv")
    """Used for the reported scores."""


class Quick(Section):
    """One setting, for quick evaluations."""

    learning_rate: Positive = 5e-5
    """Peak learning rate."""
    batch_size: Count = 32
    """Examples per step."""
    num_epochs: Count = 10
    """Passes over the training split."""


class Published(Section):
    """The grid to search on dev, and the number of seeds (Gu et al. 2021, sections 2.4 and 2.5).

    The paper states 2 to 60 epochs without a list; this project chose the lists of the packaged tasks.
    """

    learning_rate: tuple[Positive, ...] = Field((1e-5, 3e-5, 5e-5), min_length=1)
    """Peak learning rates to compare."""
    batch_size: tuple[Count, ...] = Field((16, 32), min_length=1)
    """Batch sizes to compare, in examples per step."""
    num_epochs: tuple[Count, ...] = Field((10, 20), min_length=1)
    """Numbers of passes over the training split to compare."""
    num_seeds: Count = 5
    """Runs of the best setting, one per seed."""


class Task(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """The stem of the TOML file; also used in file names and Dagster asset keys."""
    title: str
    """Human-readable name."""
    kind: Kind
    """Kind of task, which determines the file format and the metric."""
    group: Group | None = None
    """Group in BLURB; a task without a group does not count towards the BLURB score."""
    version: str
    """Release and preparation of the data."""
    source: str = ""
    """URL of the data's origin."""
    terms: str
    """Terms of use of the data."""
    pmids: bool = False
    """Example ids begin with the PMID of their article; contamination then also searches the corpus for the PMID."""
    folder: str = ""
    """Data folder, relative to BERT_PIPELINE_DATA."""
    generated: bool = False
    """The data is generated (data/sources/sample/documents.py); such a task has no folder."""
    splits: Splits = Splits()
    labels: tuple[str, ...] = ()
    """relation, qa, documents: the classes, in the order of the model's outputs. pico: the types (PAR for I-PAR). ner:
    the types in B-TYPE and I-TYPE; empty for plain B and I."""
    entity: str = Field("", pattern=r"^\S*$")
    """ner with plain B and I: the type that a fine-tuned model gives to its spans. Empty: the name of the task. It has
    no effect on scores."""
    unscored_labels: tuple[str, ...] = ()
    """relation: classes excluded from the micro F1 (`false` in ChemProt)."""
    label_aliases: dict[str, str] = Field(default_factory=dict)
    """relation, qa, documents: other spellings in the files, mapped to one of `labels`."""
    score_range: tuple[float, float] | None = None
    """similarity: the lowest and the highest possible score of a pair."""
    header: tuple[str, ...] = ()
    """Column names in the first line of each file; empty if the files have no header line."""
    max_seq_length: int = Field(512, ge=8)
    """Longer inputs are truncated; gold labels that are cut off count as missed."""
    quick: Quick = Quick()
    published: Published = Published()
    published_scores: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(default_factory=dict)
    """Test scores of other models, as fractions."""
    published_source: str = ""
    """Paper and table of `published_scores`."""
    measured_scores: dict[str, float] = Field({})
    """Test scores of freely available general-domain models, measured by this project (recipes/LOG.md)."""

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    @property
    def tags(self) -> tuple[str, ...]:
        """ner, pico: the classes of a word, O first."""
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
            yield f"labels: {len(self.labels)} given, but a {self.kind} task needs at least {fewest}; remedy: add them"
        if self.entity and (self.labels or self.kind != "ner"):
            yield "entity has an effect only in a ner task without labels; remedy: remove it"
        if self.labels and self.kind == "similarity":
            yield "labels have no effect in a similarity task; remedy: remove them"
        if len(set(self.labels)) < len(self.labels):
            yield f"labels: {list(self.labels)} has a duplicate; remedy: remove it"
        for label in (*self.labels, *self.label_aliases):
            if not label.strip() or set(label) & set("\t\r\n,"):
                yield f"labels: {label!r} has a tab, comma or line break, or is empty; remedy: rename it"
        if unknown := [label for label in self.unscored_labels if label not in self.labels]:
            yield f"unscored_labels: {unknown} not in labels {list(self.labels)}; remedy: name some of labels"
        if self.unscored_labels and self.kind != "relation":
            yield f"unscored_labels have no effect in a {self.kind} task; remedy: remove them"
        if self.labels and set(self.labels) <= set(self.unscored_labels):
            yield "unscored_labels: no label is left to score; remedy: exclude fewer labels"
        if self.label_aliases and self.kind not in ("relation", "qa", "documents"):
            yield f"label_aliases have no effect in a {self.kind} task; remedy: remove them"
        for alias, label in self.label_aliases.items():
            if label not in self.labels or alias in self.labels:
                yield f"label_aliases: {alias!r} = {label!r}; remedy: map a spelling outside labels to one of labels"

    def _layout_faults(self) -> Iterator[str]:
        if self.generated == bool(self.folder):
            yield (
                "folder: missing; remedy: name the data folder, relative to BERT_PIPELINE_DATA"
                if not self.folder
                else "folder has no effect if the data is generated; remedy: remove it"
            )
        low, high = self.score_range or (0.0, 0.0)
        if (self.kind == "similarity") != (self.score_range is not None):
            yield (
                f"score_range has no effect in a {self.kind} task; remedy: remove it"
                if self.score_range
                else "score_range: missing; remedy: add it, such as score_range = [0.0, 4.0]"
            )
        elif self.score_range and not low < high:
            yield f"score_range: {low} is not below {high}; remedy: give the lowest score, then the highest"
        files = [split.file for split in (self.splits.train, self.splits.dev, self.splits.test)]
        if len(set(files)) < len(files):
            yield f"splits: {files} are not three different files; remedy: name one file per split"
        columns = COLUMNS.get(self.kind, ())
        if self.header and (not columns or any(file.endswith(".json") for file in files)):
            yield f"header: the files of this {self.kind} task have no header; remedy: remove it"
        elif self.header and len(self.header) != len(columns):
            yield f"header: {len(self.header)} names; remedy: name {len(columns)} columns ({', '.join(columns)})"


def task_files() -> dict[str, Path]:
    """Return every task's file by name: the packaged tasks, then the folders in BERT_PIPELINE_TASKS.

    Raises TaskError if a folder does not exist, or if two names differ only in case or in - and _, which some file
    systems or Dagster do not distinguish.
    """
    folders = [Path(__file__).with_name("blurb"), *settings.task_folders()]
    found: dict[str, Path] = {}
    taken: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"BERT_PIPELINE_TASKS: {folder} is not a folder; remedy: name your folder of task files")
        for path in toml_files(folder):
            other = taken.setdefault(path.stem.replace("-", "_").lower(), path)
            if other is not path:
                raise TaskError(f"two tasks are named {path.stem}: {other} and {path}; remedy: rename one")
            found[path.stem] = path
    return found


def load_task(path: Path) -> Task:
    """Read a task from a TOML file; the file's stem is its name. Raises TaskError that lists all faults."""
    return read_named(path, Task, "task", TaskError)


def find_task(name: str) -> Task:
    files = task_files()
    if name in files:
        return load_task(files[name])
    near = difflib.get_close_matches(name, files, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]}?" if near else "remedy: name a known task"
    raise TaskError(f"no task is named {name!r}; {remedy} (known: {', '.join(files)})")


def task_folder(task: Task, data: Path | None, generated: Path) -> Path:
    """Return the folder of a task's files: `data`, or else the task's own. Generated data is written to `generated`."""
    if data is None and task.generated:
        from bert_pipeline.data.sources.sample.documents import write_sample_ner

        # The default seed of the sample corpus, so that both contain the same invented names.
        write_sample_ner(generated, seed=CorpusRecipe.model_fields["seed"].default)
        return generated
    return data or settings.in_data_folder(task.folder)


def split_files(task: Task, folder: Path) -> dict[str, Path]:
    """Return the path of each split, whether the file exists or not."""
    return {split: folder / getattr(task.splits, split).file for split in SPLITS}


def require_files(task: Task, folder: Path, splits: Sequence[str] = SPLITS) -> dict[str, Path]:
    """Return the path of each of `splits`. Raises TaskError that lists all missing files."""
    files = {split: path for split, path in split_files(task, folder).items() if split in splits}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        under = f", or set BERT_PIPELINE_DATA to the folder of {task.folder}" if task.folder else ""
        raise TaskError(
            f"{task.name}: {folder.absolute()} has no {', '.join(missing)}; remedy: name the folder that holds "
            f"{', '.join(path.name for path in files.values())}{under}"
        )
    return files


def task_fingerprint(name: str) -> str:
    """Fingerprint of a task's description and data files; generated data is written to a temporary folder."""
    task = find_task(name)
    with tempfile.TemporaryDirectory() as generated:
        files = files_fingerprint(require_files(task, task_folder(task, None, Path(generated))))
    return fingerprint({"task": task.model_dump(mode="json", exclude={"entity"}), "files": files})
