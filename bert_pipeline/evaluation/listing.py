"""All tasks at a glance: what they ask, how large they are, what others reached, and whether their data is at hand."""

import os
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from bert_pipeline.artifact import file_digest
from bert_pipeline.evaluation.tasks import SPLITS, UNITS, Group, Task, load_task, split_files, task_files, task_folder

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
            "metric": task.metric,
            "unscored_labels": list(task.unscored_labels),
            "unit": UNITS[task.kind],
            "sizes": {split: getattr(task.splits, split).size for split in SPLITS},
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
    differing = [split for split in SPLITS if stated.get(split) and file_digest(files[split]) != stated[split]]
    state = "missing" if missing else "differs" if differing else "found"
    return {"state": state, "folder": str(folder.absolute()), "missing": missing, "differing": differing}


def show(rows: list[dict[str, Any]]) -> str:
    """The rows for people: a table by groups, then under which terms the data may be used."""
    lines = [f"{'':<18}{'train / dev / test':<38}{REFERENCE:>10}  {'best published':<26}data"]
    for group, members in groupby(rows, key=lambda row: row["group"]):
        lines += ["", group or "no part of BLURB", *map(_line, members)]
    lines += ["", f"data is looked for in {Path(os.environ.get('BERT_PIPELINE_DATA', '.')).absolute()}", "", "terms"]
    lines += [f"  {row['name']:<16}{row['terms']}" for row in rows]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    sizes = [row["sizes"][split] for split in SPLITS]
    told = " / ".join(f"{size:,}" if size else "?" for size in sizes) + f" {row['unit']}" if any(sizes) else row["unit"]
    scores = row["published_scores"]
    reference = f"{100 * scores[REFERENCE]:.2f}" if REFERENCE in scores else ""
    best = max(scores, key=lambda model: scores[model], default="")
    best = f"{100 * scores[best]:.2f} {best}" if best else ""
    data = row["data"]
    faults = [f"{what} {', '.join(data[what])}" for what in ("missing", "differing") if data.get(what)]
    return f"  {row['name']:<16}{told:<38}{reference:>10}  {best:<26}{'; '.join(faults) or data['state']}\n" + (
        f"  {'':<16}{row['metric']}" + "".join(f", {label} left out" for label in row["unscored_labels"])
    )
