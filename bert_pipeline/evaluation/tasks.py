"""The evaluation tasks as a table of data, and the reader of their files.

A task's row says where its files lie, what they hold (gold entities and sha256 of each split), how it is
scored and what has been published. BLURB's data may not be redistributed: whoever has it names its folder.
The row `sample-chem` is generated, so that the whole graph runs without any download.

Published scores: Gu et al. 2021 (PubMedBERT, arXiv 2007.15779, Table 6) and Yasunaga et al. 2022
(LinkBERT, ACL, Table 7), as fractions.
"""

import difflib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bert_pipeline.artifact import files_fingerprint
from bert_pipeline.recipe import CorpusRecipe, EvaluationRecipe

SPLITS = ("train", "dev", "test")
MAX_SENTENCE_WORDS = 4_000
"""A longer sentence means that the file lacks its blank lines (BC5CDR's longest has 225 words)."""


class TaskError(ValueError):
    """A task that is not known, or data that is not what the task's row says."""


@dataclass(frozen=True)
class Sentence:
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    """B, I or O for each token; I only after B or I (IOB2)."""


@dataclass(frozen=True)
class Split:
    num_entities: int
    """As published; files with another number are refused."""
    sha256: str
    """Of the file that the numbers here were made with; told beside that of the file in use."""


@dataclass(frozen=True)
class Task:
    name: str
    metric: str
    folder: str = ""
    """Under BERT_PIPELINE_DATA; empty where the data is generated."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="BC5CDR-chem",
            metric="entity F1",
            folder="blurb/BC5CDR-chem",
            splits={
                "train": Split(5203, "1272b747a1d64ccfaa21061c515c26e9e1f134e3afd3c2ef14d8cd0697e9a234"),
                "dev": Split(5347, "17a6bc43d459c9dedaedad7990eb44ce0c4789a3a9813104aef9d2f3192c8fd0"),
                "test": Split(5385, "4da9183ad83d0921eaca25ba011871308b9476c14f9b10fba7bfee55a9750649"),
            },
            published={
                "BERT-base uncased": 0.8925,
                "BioBERT": 0.9285,
                "SciBERT uncased": 0.9249,
                "BlueBERT": 0.9119,
                "PubMedBERT": 0.9333,
                "BioLinkBERT-base": 0.9375,
                "BioLinkBERT-large": 0.9404,
            },
        ),
        Task(name="sample-chem", metric="entity F1"),
    )
}


def find_task(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]}?" if near else "remedy: name one of them"
    raise TaskError(f"no task is named {name!r}; {remedy} (known: {', '.join(TASKS)})")


def task_data(task: Task, data: Path | None, generated: Path) -> Path:
    """The folder of a task's files: `data` if given, else that of the table; generated data goes to `generated`."""
    if data is None and not task.folder:
        from bert_pipeline.data.sources.sample import write_sample_ner

        # The same invented names as the sample's text, which is written from this seed by default.
        write_sample_ner(generated, seed=CorpusRecipe.model_fields["seed"].default)
        return generated
    folder = data or Path(os.environ.get("BERT_PIPELINE_DATA", "."), task.folder)
    missing = [f"{split}.tsv" for split in SPLITS if not (folder / f"{split}.tsv").is_file()]
    if missing:
        where = "name the folder" if data else f"set BERT_PIPELINE_DATA to the folder of {task.folder}"
        raise TaskError(
            f"{task.name}: {folder.absolute()} has no {', '.join(missing)}; remedy: {where} that holds "
            "train.tsv, dev.tsv and test.tsv as BLURB's preparation writes them"
        )
    return folder


def task_inputs(section: EvaluationRecipe) -> dict[str, str]:
    """A fingerprint of each task's data files; generated data is generated for it."""
    fingerprints = {}
    for settings in section.tasks:
        with tempfile.TemporaryDirectory() as generated:
            folder = task_data(find_task(settings.name), None, Path(generated))
            fingerprints[settings.name] = files_fingerprint(task_files(folder))
    return fingerprints


def task_files(folder: Path) -> dict[str, Path]:
    return {split: folder / f"{split}.tsv" for split in SPLITS}


def read_task(task: Task, folder: Path) -> dict[str, list[Sentence]]:
    """All splits of a task, each with the number of gold entities that its row of the table promises."""
    splits = {}
    for split, path in task_files(folder).items():
        splits[split] = read_ner(path)
        found = num_entities(splits[split])
        if split in task.splits and found != task.splits[split].num_entities:
            raise TaskError(
                f"{path}: {found:,} gold entities, but {task.name}'s {split} has {task.splits[split].num_entities:,}: "
                "its scores could not be compared with any other; remedy: prepare the file as BLURB does"
            )
    return splits


def num_entities(sentences: list[Sentence]) -> int:
    return sum(sentence.tags.count("B") for sentence in sentences)


def read_ner(path: Path) -> list[Sentence]:
    """Sentences of a file in BLURB's format: token, tab, B, I or O on a line; a blank line after a sentence.

    Gold must be IOB2: an I that follows neither B nor I is refused, because scorers differ on what it means.
    Raises TaskError, naming file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise TaskError(f"{path}:{number}: byte 0x{byte:02x} is not UTF-8; remedy: convert the file to UTF-8") from None
    sentences: list[Sentence] = []
    rows: list[tuple[str, str]] = []
    # Split at \n alone: str.splitlines would also cut at characters that stand inside tokens.
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip(" \t\r"):
            rows.append(_row(f"{path}:{number}", line.removesuffix("\r"), after=rows[-1][1] if rows else "O"))
            if len(rows) > MAX_SENTENCE_WORDS:
                raise TaskError(
                    f"{path}:{number}: the sentence that begins at line {number - len(rows) + 1} has more than "
                    f"{MAX_SENTENCE_WORDS:,} words; remedy: put a blank line after each sentence"
                )
        elif rows:
            tokens, tags = zip(*rows, strict=True)
            sentences.append(Sentence(tokens, tags))
            rows = []
    if not num_entities(sentences):
        raise TaskError(
            f"{path}: {len(sentences):,} sentences and no entity (no tag B), so there is nothing to learn or score; "
            "remedy: check that this is the right file, and whole"
        )
    return sentences


def _row(where: str, line: str, after: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2 or not columns[0]:
        raise TaskError(f"{where}: {line[:80]!r} is not two columns; remedy: token, one tab, tag")
    token, tag = columns
    if tag not in ("B", "I", "O"):
        raise TaskError(f"{where}: tag {tag!r} of {token!r} is unknown; remedy: B, I or O, without a type")
    if tag == "I" and after == "O":
        raise TaskError(f"{where}: tag I of {token!r} follows no B; remedy: an entity's first word bears B (IOB2)")
    return token, tag
