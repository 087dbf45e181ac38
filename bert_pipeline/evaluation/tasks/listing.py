"""Overview of all tasks: kind, size, metric, published scores, and whether the data is available."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from bert_pipeline import settings
from bert_pipeline.core.files import cached_digest
from bert_pipeline.core.tables import Table
from bert_pipeline.evaluation.tasks.task import (
    INPUTS,
    SPLITS,
    UNITS,
    Group,
    Task,
    load_task,
    split_files,
    task_files,
    task_folder,
)

REFERENCE = "PubMedBERT"
"""The published model with a column of its own."""


def list_tasks() -> list[dict[str, Any]]:
    """Return one row per task, BLURB's groups first. Of the data files it checks only existence and SHA-256."""
    tasks = [load_task(path) for path in task_files().values()]
    groups = (*get_args(Group), None)
    tasks.sort(key=lambda task: groups.index(task.group))
    return [
        {
            "name": task.name,
            "title": task.title,
            "kind": task.kind,
            "group": task.group,
            "input": INPUTS[task.kind],
            "max_seq_length": task.max_seq_length,
            "metric": task.metric,
            "unscored_labels": list(task.unscored_labels),
            "unit": UNITS[task.kind],
            "sizes": {split: getattr(task.splits, split).size for split in SPLITS},
            "printed_sizes": {split: getattr(task.splits, split).printed for split in SPLITS},
            "published_scores": task.published_scores,
            "published_source": task.published_source,
            "version": task.version,
            "source": task.source,
            "terms": task.terms,
            "data": _data(task),
        }
        for task in tasks
    ]


def _data(task: Task) -> dict[str, Any]:
    """State `found`: all files exist, and none has another SHA-256 than the task states."""
    if task.generated:
        return {"state": "generated"}
    folder = task_folder(task, None, Path())
    files = split_files(task, folder)
    missing = [split for split, path in files.items() if not path.is_file()]
    expected = {split: getattr(task.splits, split).sha256 for split in files.keys() - set(missing)}
    differing = [split for split in SPLITS if expected.get(split) and cached_digest(files[split]) != expected[split]]
    state = "missing" if missing else "differs" if differing else "found"
    return {"state": state, "folder": str(folder.absolute()), "missing": missing, "differing": differing}


def show(rows: list[dict[str, Any]]) -> str:
    """Format the rows of `list_tasks` as text."""
    notes = f"~: the paper's count\ndata folder: {settings.data_folder().absolute()}"
    return "\n".join((scores_and_data(rows).text(), metrics_and_terms(rows).text(), notes))


def scores_and_data(rows: list[dict[str, Any]]) -> Table:
    """Size, published scores and state of the data of each task, below the name of its group."""
    head = ("task", "size of train / dev / test", REFERENCE, "best published", "data")
    table: list[Sequence[str]] = []
    for group, members in groupby(rows, key=lambda row: row["group"]):
        table.append((group or "not in BLURB", *[""] * (len(head) - 1)))
        table += [(f"  {row['name']}", _sizes(row), *_published(row), _state(row["data"])) for row in members]
    return Table(head, table)


def metrics_and_terms(rows: list[dict[str, Any]]) -> Table:
    """Kind, metric and terms of use of each task."""
    head = ("task", "kind", "metric", "terms of use")
    return Table(head, [(row["name"], row["kind"], _metric(row), row["terms"]) for row in rows])


def _metric(row: dict[str, Any]) -> str:
    return row["metric"] + "".join(f" without {label}" for label in row["unscored_labels"])


def _sizes(row: dict[str, Any]) -> str:
    sizes = [_size(row["sizes"][split], row["printed_sizes"][split]) for split in SPLITS]
    return " / ".join(size or "?" for size in sizes) + f" {row['unit']}" if any(sizes) else row["unit"]


def _size(counted: int | None, printed: int | None) -> str:
    return f"{counted:,}" if counted else f"~{printed:,}" if printed else ""


def _published(row: dict[str, Any]) -> tuple[str, str]:
    """Return the score of REFERENCE and the best score with its model, in percent."""
    scores = row["published_scores"]
    best = max(scores, key=scores.__getitem__, default=None)
    return (
        f"{100 * scores[REFERENCE]:.2f}" if REFERENCE in scores else "",
        f"{100 * scores[best]:.2f} {best}" if best else "",
    )


def _state(data: dict[str, Any]) -> str:
    faults = [f"{what} {', '.join(data[what])}" for what in ("missing", "differing") if data.get(what)]
    return "; ".join(faults) or data["state"]
