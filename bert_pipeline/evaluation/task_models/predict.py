"""Apply a task model to the records of files: one answer for each record, in their order."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bert_pipeline.core.progress import Progress
from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.folders import report_members
from bert_pipeline.data.sources.records import Document, PassedOver, Rejection
from bert_pipeline.evaluation.finetuning.engine import Head, usual_computation
from bert_pipeline.evaluation.finetuning.heads import silent_transformers
from bert_pipeline.evaluation.finetuning.inputs import Input
from bert_pipeline.evaluation.task_models.annotate import Annotator, Answer, Window

RECORDS_TOGETHER = 512
"""Records whose windows are sorted by length and computed together."""


def load_annotator(model_dir: Path) -> Annotator:
    """Load a task model; compute it as evaluation does, on packed rows where the model allows them."""
    with silent_transformers():
        annotator = Annotator(model_dir, model_dir)
    model = annotator.model
    pad_id = annotator.tokenizer.pad_token_id
    head = Head(model, annotator.kind, pad_id, usual_computation(model.config, model.device))  # type: ignore[arg-type]  # a kind of the task files

    def compute(windows: Sequence[Window]) -> Tensor:
        return head.logits([_input(each) for each in windows])

    annotator.compute = compute
    return annotator


def predict_files(
    annotator: Annotator, files: Mapping[str, Path], text_fields: tuple[str, ...], id_field: str
) -> Iterator[Answer]:
    """Yield the answer to each record with its `id`; {"id", "error"} for a broken record.

    The texts of several fields, or of the paragraphs of an article, are joined by a line end unless the task is about
    pairs of texts. Raises SourceError if a file cannot be read to its end.
    """
    progress = Progress("predict", sum(path.stat().st_size for path in files.values()), "bytes")
    passed_over: list[PassedOver] = []

    def records() -> Iterator[Document | Rejection]:
        for record in read_documents(files, text_fields or annotator.fields, id_field, progress):
            if isinstance(record, PassedOver):
                passed_over.append(record)
            else:
                yield record

    remaining = records()
    while together := list(itertools.islice(remaining, RECORDS_TOGETHER)):
        yield from _answers(annotator, together)
    report_members(passed_over)


def _answers(annotator: Annotator, records: Sequence[Document | Rejection]) -> Iterator[dict[str, Any]]:
    wanted = len(annotator.fields)
    texts = [_parts(each, wanted) for each in records]
    answers = iter(annotator.answers([text for text in texts if isinstance(text, tuple)]))
    for record, text in zip(records, texts, strict=True):
        name = record.document_id if isinstance(record, Document) else f"{record.file}, {record.record}"
        yield {"id": name} | (next(answers) if isinstance(text, tuple) else {"error": text})


def _parts(record: Document | Rejection, wanted: int) -> tuple[str, ...] | str:
    """The text or the pair of texts of a record, or why there is none."""
    if isinstance(record, Rejection):
        return f"{record.reason}: {record.excerpt}"
    if wanted == 1:
        return ("\n".join(record.texts),)
    if len(record.texts) != wanted:
        return f"{len(record.texts)} texts, the task needs {wanted}; remedy: name two fields"
    return record.texts


def _input(window: Window) -> Input:
    outputs = np.array(window.outputs if window.words else [], dtype=np.int64)
    ids = np.array(window.input_ids, dtype=np.int64)
    return Input(ids, window.second, np.zeros(0), np.arange(len(outputs)), outputs, len(outputs))
