"""Predictions as files, from which anyone can score them again.

ner, pico   token TAB gold TAB predicted, a blank line after each sentence (conlleval reads it, told that tabs part)
others      a header, then id TAB gold TAB predicted. documents: the classes, parted by commas. similarity: scores
            with all their digits
"""

from collections.abc import Sequence
from pathlib import Path

from bert_pipeline.evaluation.scoring.scores import Label
from bert_pipeline.evaluation.tasks.readers import Example, Sentence
from bert_pipeline.evaluation.tasks.task import Task

HEADER = "id\tgold\tpredicted"


def write_predictions(path: Path, examples: Sequence[Example], predicted: Sequence[Label]) -> None:
    blocks = [] if isinstance(examples[0], Sentence) else [f"{HEADER}\n"]
    for example, label in zip(examples, predicted, strict=True):
        if isinstance(example, Sentence):
            rows = zip(example.tokens, example.tags, label, strict=True)  # type: ignore[arg-type]  # tags, then
            blocks.append("".join(f"{token}\t{gold}\t{guess}\n" for token, gold, guess in rows) + "\n")
        else:
            blocks.append(f"{example.id}\t{_shown(example.label)}\t{_shown(label)}\n")
    path.write_text("".join(blocks), encoding="utf-8", newline="\n")


def read_predictions(path: Path, task: Task) -> tuple[list[Label], list[Label]]:
    """(gold, predicted) of each example, in the order of the task's file."""
    text = path.read_bytes().decode()  # no other line end than ours: a token may hold one that Python would split at
    if task.kind in ("ner", "pico"):
        sentences = [[line.split("\t") for line in block.split("\n")] for block in text.split("\n\n")[:-1]]
        gold, predicted = ([tuple(row[column] for row in rows) for rows in sentences] for column in (1, 2))
        return list(gold), list(predicted)
    rows = [line.split("\t") for line in text.split("\n")[1:-1]]
    return [_read(task, row[1]) for row in rows], [_read(task, row[2]) for row in rows]


def _shown(label: Label) -> str:
    if isinstance(label, frozenset):
        return ",".join(sorted(label))
    return label if isinstance(label, str) else repr(label)


def _read(task: Task, shown: str) -> Label:
    if task.kind == "documents":
        return frozenset(shown.split(",")) - {""}
    return float(shown) if task.kind == "similarity" else shown
