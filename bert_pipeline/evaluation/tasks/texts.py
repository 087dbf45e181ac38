"""The texts of evaluation sets, for the search in the corpus (data/overlap.py)."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bert_pipeline.data.contamination.overlap import EvaluationText
from bert_pipeline.evaluation.tasks.readers import Example, Sentence, read_split
from bert_pipeline.evaluation.tasks.task import SPLITS, Task, find_task, require_files, split_files, task_folder
from bert_pipeline.store import artifact


def evaluation_texts(names: Iterable[str], splits: tuple[str, ...] = SPLITS) -> Iterator[EvaluationText]:
    """The examples of tasks, whatever version their files have. Raises TaskError where a file is missing or broken,
    but for a train file that is missing: no corpus is kept clean of it, and whoever evaluates misses it elsewhere.
    """
    for task, files in _files(names, splits):
        for split, path in files.items():
            for example in read_split(task, path):
                pmid = re.match(r"\d+", example.id) if task.pmids else None
                yield EvaluationText(task.name, split, example.id, _parts(example), pmid[0] if pmid else "")


def text_inputs(names: Iterable[str], splits: tuple[str, ...] = SPLITS) -> dict[str, str]:
    """A fingerprint for the text of each task: of its files and how they are read, not of what is published on it."""
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
