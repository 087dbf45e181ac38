r"""Readers for the data files of evaluation tasks. Errors name the file and the line.

Each split is one UTF-8 file. Lines end with \n or \r\n; columns are separated by one tab, without quoting.

    ner         token TAB tag, a blank line after each sentence. Tags are B, I and O; if the task has labels, B-TYPE,
                I-TYPE and O. They must be IOB2 (an I continues a B or I of its type): scorers disagree on anything else
    pico        token TAB I-TYPE or O, a blank line after each sentence
    relation    id TAB text TAB class; dummies (@GENE$) replace the two entities in the text
    similarity  id TAB text TAB text TAB score
    documents   id TAB text TAB classes, separated by commas; nothing after the last tab if there is no class
    qa          id TAB question TAB text TAB class, or a .json file: {id: {QUESTION, CONTEXTS, final_decision}}

In token files, a line `-DOCSTART- ID` starts a document and is not a token (EBM-PICO, JNLPBA). If a task has a
`header`, the first line must match it. A documents task with HoC's header (labels, sentence, index) has one sentence
per line: classes as flags `0_1,1_0,...`, and the index `<document>_s<number>`. A document is its sentences joined by
spaces, with the union of their classes.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import cached_digest
from bert_pipeline.evaluation.tasks.task import COLUMNS, TAGGING, UNITS, Kind, Task, TaskError, require_files

MAX_SENTENCE_WORDS = 4_000
"""A longer sentence means that blank lines are missing (the longest sentence in BLURB has 265 words)."""
QUESTION_LAYOUT = '{"id": {"QUESTION": text, "CONTEXTS": [text, ...], "final_decision": class}, ...}'
HOC_HEADER = ("labels", "sentence", "index")
NOTHING: dict[Kind, str] = {
    "ner": "no entity (no tag B)",
    "pico": "no label word (only the tag O)",
    "relation": "no scored class",
    "similarity": "no two different scores",
    "documents": "no class",
    "qa": "no question",
}
"""What a split lacks if there is nothing to learn or to score, for the error message."""


@dataclass(frozen=True)
class Sentence:
    """An example of ner or pico."""

    id: str
    """`<document>:<number>` if -DOCSTART- lines name documents, otherwise the number of the sentence in its file."""
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    """One of the task's tags for each token."""


@dataclass(frozen=True)
class Text:
    """An example of relation, similarity, documents or qa."""

    id: str
    parts: tuple[str, ...]
    """One text; for similarity (both sentences) and qa (question, context) two."""
    label: str | float | frozenset[str]
    """relation, qa: the class. similarity: the score. documents: the set of classes."""


Example = Sentence | Text


@dataclass(frozen=True)
class TaskData:
    splits: Mapping[str, list[Example]]
    """train, dev, test."""
    files: Mapping[str, Mapping[str, str | int]]
    """Per split: `sha256` of its file, `size` in the task's unit, `examples`, and for dev and test `also_in_train`: the
    number of examples whose exact text is also in train (BLURB's sets have such examples and score them)."""
    remarks: Sequence[str] = ()
    """Caveats for readers of the scores: examples that are also in train, files that differ from the task's."""


def read_task(task: Task, folder: Path, other_data: bool = False) -> TaskData:
    """Read all splits of a task. Raises TaskError if a file is missing, invalid, or not the one the task describes.

    `other_data` accepts files of another size or SHA-256; their scores are not comparable with published ones.
    """
    paths = require_files(task, folder)
    splits = {split: read_split(task, path) for split, path in paths.items()}
    _assert_classes_differ(task, paths["train"], splits["train"])
    files: dict[str, dict[str, str | int]] = {}
    remarks: list[str] = []
    in_train = {_content(example) for example in splits["train"]}
    for split, examples in splits.items():
        facts: dict[str, str | int] = {"sha256": cached_digest(paths[split]), "size": size(task, examples)}
        remarks += _differences(task, split, paths[split], facts, other_data)
        files[split] = facts | {"examples": len(examples)}
        if split != "train":
            leaked = sum(_content(example) in in_train for example in examples)
            files[split]["also_in_train"] = leaked
            if leaked:
                remarks.append(f"{leaked} of {len(examples)} examples of {split} are also in train")
    return TaskData(splits, files, remarks)


def read_split(task: Task, path: Path) -> list[Example]:
    """Read the examples of one file, in order. Raises TaskError if it is invalid or has nothing to score."""
    examples: list[Example]
    if task.kind in TAGGING:
        examples = list(_sentences(task, path))
    elif task.kind == "qa" and path.suffix == ".json":
        examples = list(_questions(task, path))
    elif task.kind == "documents" and task.header == HOC_HEADER:
        examples = list(_documents_of_sentences(task, path))
    else:
        examples = [
            Text(cells[0], tuple(cells[1:-1]), _label(task, where, cells[-1])) for where, cells in _rows(task, path)
        ]
    if not _can_be_scored(task, examples):
        raise TaskError(
            f"{path}: {len(examples):,} examples and {NOTHING[task.kind]}, so there is nothing to learn or score; "
            "remedy: check that this is the right file and that it is complete"
        )
    return examples


def size(task: Task, examples: list[Example]) -> int:
    """Count in the task's unit: gold entities, label words, or examples."""
    if task.kind not in TAGGING:
        return len(examples)
    tags = [tag for example in examples if isinstance(example, Sentence) for tag in example.tags]
    return sum(tag[0] == "B" if task.kind == "ner" else tag != "O" for tag in tags)


def _can_be_scored(task: Task, examples: list[Example]) -> bool:
    if task.kind in TAGGING:
        return size(task, examples) > 0
    labels = {example.label for example in examples if isinstance(example, Text)}
    if task.kind == "similarity":
        return len(labels) > 1
    return bool(labels - {frozenset()} - set(task.unscored_labels))


def _assert_classes_differ(task: Task, path: Path, examples: list[Example]) -> None:
    classes = {example.label for example in examples if isinstance(example, Text)}
    if task.kind in ("relation", "qa") and len(classes) == 1:
        raise TaskError(
            f"{path}: all {len(examples):,} examples have the class {classes.pop()!r}, so there is nothing to learn; "
            "remedy: check that this is the right file and that it is complete"
        )


def _differences(task: Task, split: str, path: Path, facts: Mapping[str, str | int], other_data: bool) -> Iterator[str]:
    """Describe how a file differs from the task's own. Raises TaskError unless `other_data` accepts it."""
    expected = getattr(task.splits, split)
    differences = []
    if expected.size is not None and facts["size"] != expected.size:
        unit = UNITS[task.kind]
        differences.append(f"{facts['size']:,} {unit}, but {task.name}'s {split} has {expected.size:,}")
    if expected.sha256 and facts["sha256"] != expected.sha256:
        differences.append(f"sha256 {facts['sha256']}, but {task.name}'s {split} has {expected.sha256}")
    if differences and not other_data:
        raise TaskError(
            f"{path}: {'; '.join(differences)}: scores would not be comparable with published ones; "
            "remedy: use the benchmark's file, or accept other data (--other-data, in a recipe other_data = true)"
        )
    for difference in differences:
        yield f"{path}: {difference}: scores are not comparable with published ones"


def _content(example: Example) -> tuple[str, ...]:
    return example.tokens if isinstance(example, Sentence) else example.parts


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise TaskError(f"{path}:{number}: byte 0x{byte:02x} is not UTF-8; remedy: convert the file to UTF-8") from None


def _lines(path: Path) -> list[str]:
    # Split only at \n: str.splitlines would also split at characters that occur inside tokens.
    return [line.removesuffix("\r") for line in _read(path).removesuffix("\n").split("\n")]


def _sentences(task: Task, path: Path) -> Iterator[Sentence]:
    lines, known = _lines(path), frozenset(task.tags)
    rows: list[tuple[str, str]] = []
    document, numbers = "", Counter[str]()  # JNLPBA's train has one document twice: its sentences are numbered on
    for number, line in enumerate([*lines, ""], start=1):
        names_document = line.startswith("-DOCSTART-")
        if line.strip(" \t") and not names_document:
            rows.append(_token(f"{path}:{number}", line, known, after=rows[-1][1] if rows else "O"))
            if len(rows) > MAX_SENTENCE_WORDS:
                raise TaskError(
                    f"{path}:{number}: the sentence that starts at line {number - len(rows) + 1} has more than "
                    f"{MAX_SENTENCE_WORDS:,} words; remedy: add a blank line after each sentence"
                )
            continue
        if rows:
            numbers[document] += 1
            tokens, tags = zip(*rows, strict=True)
            yield Sentence(f"{document}:{numbers[document]}" if document else str(numbers[document]), tokens, tags)
            rows = []
        if names_document:  # in EBM-PICO, some follow a sentence without a blank line
            document = line.removeprefix("-DOCSTART-").split("\t")[0].strip(" ()") or f"line {number}"
    if numbers and all(line.strip(" \t") for line in lines):
        raise TaskError(
            f"{path}:{len(lines)}: the file ends here and has no blank line; "
            "remedy: add a blank line after each sentence"
        )


def _token(where: str, line: str, known: frozenset[str], after: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2 or not columns[0].strip():
        raise TaskError(f"{where}: {line[:80]!r} is not two columns; remedy: write token, one tab, tag")
    token, tag = columns
    if tag not in known:
        raise TaskError(f"{where}: tag {tag!r} of {token!r} is unknown; remedy: one of {', '.join(sorted(known))}")
    begin = "B" + tag[1:]
    if tag[0] == "I" and begin in known and after not in (begin, tag):
        raise TaskError(
            f"{where}: tag {tag} of {token!r} follows {after}, not {begin} or {tag}; "
            f"remedy: tag the first word of an entity with {begin} (IOB2)"
        )
    return token, tag


def _rows(task: Task, path: Path, id_column: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Yield `file:line` and the cells of each row. Raises TaskError for missing, extra or empty cells, repeated ids."""
    names = task.header or COLUMNS[task.kind]
    found_at: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}:{number}"
        if number == 1 and task.header:
            if line.split("\t") != list(task.header):
                raise TaskError(f"{where}: the header is {line[:80]!r}; remedy: it must be {' TAB '.join(task.header)}")
            continue
        if not line.strip(" "):
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            raise TaskError(
                f"{where}: {len(cells)} column(s) in {line[:80]!r}; remedy: write {len(names)} ({', '.join(names)}), "
                "separated by tabs"
            )
        for name, cell in zip(names, cells, strict=True):
            if not cell.strip() and name != "classes":
                raise TaskError(f"{where}: the {name} of {line[:80]!r} is empty; remedy: fill it, or remove the line")
        name = cells[id_column]
        if name in found_at:
            raise TaskError(
                f"{where}: {names[id_column]} {name!r} is already used in line {found_at[name]}; remedy: make it unique"
            )
        found_at[name] = number
        yield where, cells


def _label(task: Task, where: str, cell: str) -> str | float | frozenset[str]:
    if task.kind == "similarity":
        return _score(task, where, cell)
    if task.kind == "documents":
        return frozenset(_class(task, where, name) for name in cell.split(",") if cell.strip())
    return _class(task, where, cell)


def _class(task: Task, where: str, name: str) -> str:
    name = task.label_aliases.get(name, name)
    if name not in task.labels:
        raise TaskError(f"{where}: label {name!r} is unknown to {task.name}; remedy: one of {', '.join(task.labels)}")
    return name


def _score(task: Task, where: str, cell: str) -> float:
    assert task.score_range, "Task requires it for similarity"
    low, high = task.score_range
    try:
        score = float(cell)
    except ValueError:
        raise TaskError(f"{where}: score {cell!r} is not a number; remedy: use {low:g} to {high:g}") from None
    if not low <= score <= high:
        raise TaskError(f"{where}: score {cell} is out of range; remedy: use {low:g} to {high:g}")
    return score


def _documents_of_sentences(task: Task, path: Path) -> Iterator[Text]:
    """HoC's format: join a document's sentences by their numbers, and take the union of their classes."""
    documents: dict[str, dict[int, tuple[str, frozenset[str]]]] = {}
    before = ""
    for where, (flags, sentence, index) in _rows(task, path, id_column=2):
        named = re.fullmatch(r"(.+)_s(0|[1-9][0-9]{0,8})", index)
        if not named:
            raise TaskError(f"{where}: index {index!r} is invalid; remedy: use the form <document>_s<number>")
        document, number = named[1], int(named[2])
        if document != before and document in documents:
            raise TaskError(
                f"{where}: {index} is separated from the other sentences of {document}; "
                "remedy: keep the sentences of a document together"
            )
        documents.setdefault(document, {})[number] = sentence, _flagged(task, where, flags)
        before = document
    for document, numbered in documents.items():
        sentences, classes = zip(*(numbered[number] for number in sorted(numbered)), strict=True)
        yield Text(document, (" ".join(sentences),), frozenset().union(*classes))


def _flagged(task: Task, where: str, flags: str) -> frozenset[str]:
    cells = flags.split(",")
    wanted = [(f"{number}_0", f"{number}_1") for number in range(len(task.labels))]
    if len(cells) != len(wanted) or any(cell not in pair for cell, pair in zip(cells, wanted, strict=True)):
        raise TaskError(
            f"{where}: labels {flags[:80]!r}; remedy: write 0_0 or 0_1, and so on to {wanted[-1][1]}, with commas"
        )
    return frozenset(label for label, cell in zip(task.labels, cells, strict=True) if cell.endswith("_1"))


def _questions(task: Task, path: Path) -> Iterator[Text]:
    """PubMedQA's format: a JSON object of questions by id. The parts of a context are joined by spaces."""
    text = _read(path)
    try:
        # Objects become tuples of pairs: a dict would hide a duplicate id.
        table = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {error}; remedy: repair the file") from None
    if not isinstance(table, tuple):
        raise TaskError(f"{path}:1: not an object of questions by id; remedy: use the form {QUESTION_LAYOUT}")
    found: set[str] = set()
    position = 0
    for name, record in table:
        position = max(position, text.find(json.dumps(name), position + 1))  # the json module reports no line numbers
        number = text.count("\n", 0, position) + 1
        where = f"{path}:{number}"
        if name in found or not name.strip() or set(name) & set("\t\r\n"):
            raise TaskError(f"{where}: id {name!r} is empty, duplicate, or has a tab or line break; remedy: rename it")
        found.add(name)
        fields: dict[str, Any] = dict(record) if isinstance(record, tuple) else {}
        question, contexts, answer = (fields.get(field, "") for field in ("QUESTION", "CONTEXTS", "final_decision"))
        texts = [question, answer, *contexts] if isinstance(contexts, list) and contexts else [""]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise TaskError(f"{where}: question {name!r} is incomplete; remedy: use the form {QUESTION_LAYOUT}")
        yield Text(name, (question, " ".join(contexts)), _class(task, where, answer))
