"""Prediction files, from which anyone can compute the scores again.

ner, pico   token TAB gold TAB predicted, a blank line after each sentence (conlleval reads it with tab as delimiter)
others      a header, then id TAB gold TAB predicted. documents: classes separated by commas. similarity: scores with
            all digits
"""

from collections.abc import Sequence
from pathlib import Path

from bert_pipeline.evaluation.scoring.scores import Label
from bert_pipeline.evaluation.tasks.readers import Example, Sentence
from bert_pipeline.evaluation.tasks.task import TAGGING, Task

HEADER = "id\tgold\tpredicted"


def write_predictions(path: Path, examples: Sequence[Example], predicted: Sequence[Label]) -> None:
    blocks = [] if isinstance(examples[0], Sentence) else [f"{HEADER}\n"]
    for example, label in zip(examples, predicted, strict=True):
        if isinstance(example, Sentence):
            rows = zip(example.tokens, example.tags, label, strict=True)  # type: ignore[arg-type]  # label is a tag sequence
            blocks.append("".join(f"{token}\t{gold}\t{guess}\n" for token, gold, guess in rows) + "\n")
        else:
            blocks.append(f"{example.id}\t{_cell(example.label)}\t{_cell(label)}\n")
    path.write_text("".join(blocks), encoding="utf-8", newline="\n")


def read_predictions(path: Path, task: Task) -> tuple[list[Label], list[Label]]:
    """Return the gold and the predicted labels, in the order of the task's file."""
    text = (
        path.read_bytes().decode()
    )  # split only at \n: a token may contain other characters that end a line in Python
    if task.kind in TAGGING:
        sentences = [[line.split("\t") for line in block.split("\n")] for block in text.split("\n\n")[:-1]]
        gold, predicted = ([tuple(row[column] for row in rows) for rows in sentences] for column in (1, 2))
        return list(gold), list(predicted)
    rows = [line.split("\t") for line in text.split("\n")[1:-1]]
    return [_parsed(task, row[1]) for row in rows], [_parsed(task, row[2]) for row in rows]


def _cell(label: Label) -> str:
    if isinstance(label, frozenset):
        return ",".join(sorted(label))
    return label if isinstance(label, str) else repr(label)


def _parsed(task: Task, cell: str) -> Label:
    if task.kind == "documents":
        return frozenset(cell.split(",")) - {""}
    return float(cell) if task.kind == "similarity" else cell
