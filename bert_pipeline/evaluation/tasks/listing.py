"""All tasks at a glance: what they ask, how large they are, what others reached, and whether their data is at hand."""

from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from bert_pipeline import settings
from bert_pipeline.core.files import cached_digest
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
"""The published model that a domain's own BERT is measured against first."""


def list_tasks() -> list[dict[str, Any]]:
    """A row for each task, BLURB's groups first; of the data's files only the presence and the sha256 are looked at."""
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
    """`found`: all files are there, and no sha256 is another than the task's."""
    if task.generated:
        return {"state": "generated"}
    folder = task_folder(task, None, Path())
    files = split_files(task, folder)
    missing = [split for split, path in files.items() if not path.is_file()]
    stated = {split: getattr(task.splits, split).sha256 for split in files.keys() - set(missing)}
    differing = [split for split in SPLITS if stated.get(split) and cached_digest(files[split]) != stated[split]]
    state = "missing" if missing else "differs" if differing else "found"
    return {"state": state, "folder": str(folder.absolute()), "missing": missing, "differing": differing}


def show(rows: list[dict[str, Any]]) -> str:
    """The rows for people: a table by groups, two lines a task."""
    lines = [f"{'':<18}{'train / dev / test':<38}{REFERENCE:>10}  {'best published':<26}data"]
    for group, members in groupby(rows, key=lambda row: row["group"]):
        lines += ["", group or "no part of BLURB"]
        for row in members:
            left_out = "".join(f" without {label}" for label in row["unscored_labels"])
            lines.append(f"  {row['name']:<16}{_sizes(row):<38}{_published(row):<38}{_state(row['data'])}")
            lines.append(f"  {'':<16}{row['kind']}, {row['metric']}{left_out}; terms: {row['terms']}")
    return "\n".join([*lines, "", f"data: in {settings.data_folder().absolute()}"])


def _sizes(row: dict[str, Any]) -> str:
    sizes = [_size(row["sizes"][split], row["printed_sizes"][split]) for split in SPLITS]
    return " / ".join(size or "?" for size in sizes) + f" {row['unit']}" if any(sizes) else row["unit"]


def _size(counted: int | None, printed: int | None) -> str:
    return f"{counted:,}" if counted else f"~{printed:,}" if printed else ""


def _published(row: dict[str, Any]) -> str:
    scores = {model: f"{100 * score:.2f}" for model, score in row["published_scores"].items()}
    best = max(row["published_scores"], key=lambda model: row["published_scores"][model], default="")
    return f"{scores.get(REFERENCE, ''):>10}  {scores.get(best, '')} {best}"


def _state(data: dict[str, Any]) -> str:
    faults = [f"{what} {', '.join(data[what])}" for what in ("missing", "differing") if data.get(what)]
    return "; ".join(faults) or data["state"]
