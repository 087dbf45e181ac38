"""The texts of evaluation sets, which data/contamination/overlap.py searches for in the corpus."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_pipeline.data.contamination.overlap import EvaluationText
from bert_pipeline.evaluation.tasks.readers import Example, Sentence, read_split
from bert_pipeline.evaluation.tasks.task import SPLITS, Task, find_task, require_files, split_files, task_folder
from bert_pipeline.store import artifact


def evaluation_texts(names: Iterable[str], splits: tuple[str, ...] = SPLITS) -> Iterator[EvaluationText]:
    """Yield the examples of tasks, whatever the version of their files. Raises TaskError for missing or invalid files.

    A missing train file is not an error here: a corpus need not be free of train examples, and the evaluation itself
    reports the missing file.
    """
    for task, files in _files(names, splits):
        for split, path in files.items():
            for example in read_split(task, path):
                pmid = re.match(r"\d+", example.id) if task.pmids else None
                yield EvaluationText(task.name, split, example.id, _parts(example), pmid[0] if pmid else "")


def text_inputs(names: Iterable[str], splits: tuple[str, ...] = SPLITS) -> dict[str, str]:
    """Return a fingerprint of each task's text: of its files and format, without the published scores."""
    return {
        f"text of {task.name}": artifact.fingerprint(
            task.model_dump(mode="json", include={"kind", "header", "pmids"})
            | {"files": artifact.files_fingerprint(files)}
        )
        for task, files in _files(names, splits)
    }


def _files(names: Iterable[str], splits: tuple[str, ...]) -> Iterator[tuple[Task, dict[str, Path]]]:
    for name in names:
        task = find_task(name)
        with tempfile.TemporaryDirectory() as generated:
            folder = task_folder(task, None, Path(generated))
            train = split_files(task, folder)["train"].is_file()
            yield task, require_files(task, folder, [split for split in splits if train or split != "train"])


def _parts(example: Example) -> tuple[str, ...]:
    return (" ".join(example.tokens),) if isinstance(example, Sentence) else example.parts
