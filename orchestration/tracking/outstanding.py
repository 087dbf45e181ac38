"""Report to MLflow, from the records on disk, what it missed: it was down, or the training process was killed.

A note lies beside each artifact whose end MLflow does not know (mlflow_runs.py). Only the holder of the artifact's lock
may deliver it, and a running training holds the lock itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from orchestration.tracking.mlflow_runs import NOTE, About, Mlflow, Point, Tracked


def deliver(mlflow: Mlflow, about: About, wait: bool) -> bool:
    """Send to MLflow what it lacks about a training, and how it ended. Return whether that was possible.

    Returns False if another process builds the artifact and `wait` is False. Raises what MLflow's client raises.
    """
    try:
        with FileLock(f"{about.destination}.lock", timeout=-1 if wait else 0):
            about, ended, points = _read_note(about.note) if about.note.exists() else (about, None, ())
            _deliver(mlflow, about, ended, points)
    except Timeout:
        return False
    return True


def deliver_all(mlflow: Mlflow, store: Path) -> list[str]:
    """Deliver every note in the store that nobody works on; return the names of the delivered runs."""
    delivered = []
    for depth in ("*", "*/*"):
        for note in sorted(store.glob(f"{depth}/*{NOTE}")):
            about, _, _ = _read_note(note)
            if deliver(mlflow, about, wait=False):
                delivered.append(about.name)
    return delivered


def _deliver(mlflow: Mlflow, about: About, ended: str | None, points: Sequence[Point]) -> None:
    finished = about.destination.exists()
    if finished and mlflow.runs(about.fingerprint, "FINISHED"):
        about.note.unlink(missing_ok=True)
        return
    tracked = Tracked(mlflow, about, points)
    rows = about.destination if finished else artifact.partial(about.destination)
    for row in read_rows(rows / "metrics.jsonl"):
        tracked.on_row(row)
    if finished:
        made = artifact.load(about.destination, about.kind)
        tracked.report(made.facts, made.path)
    tracked.close("FINISHED" if finished else ended or "KILLED")


def _read_note(note: Path) -> tuple[About, str | None, list[Point]]:
    found = json.loads(note.read_text(encoding="utf-8"))
    about = found["about"]
    about |= {
        "destination": Path(about["destination"]),
        "inputs": {name: Artifact(Path(made["path"]), made["record"]) for name, made in about["inputs"].items()},
        "files": [Path(file) for file in about["files"]],
    }
    return About(**about), found["ended"], [Point(*point) for point in found["points"]]
