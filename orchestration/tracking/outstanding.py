"""What MLflow was not told, because it was down or the process that trained was killed: it is told from the records.

A note lies beside each artifact of which MLflow does not know the end (tracking.py). Whoever holds the artifact's lock
may settle it: while a training goes on, nobody else can.
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
    """Tell MLflow how the training ended, and what it lacks of it; whether that could be done.

    False where somebody works on the artifact and `wait` is False. Raises what MLflow's client raises.
    """
    try:
        with FileLock(f"{about.destination}.lock", timeout=-1 if wait else 0):
            about, ended, points = _read_note(about.note) if about.note.exists() else (about, None, ())
            _deliver(mlflow, about, ended, points)
    except Timeout:
        return False
    return True


def deliver_all(mlflow: Mlflow, store: Path) -> list[str]:
    """The same for every note in the store; the names of the runs that were delivered."""
    delivered = []
    for depth in ("*", "*/*"):
        for note in sorted(store.glob(f"{depth}/*{NOTE}")):
            about, _, _ = _read_note(note)
            if deliver(mlflow, about, wait=False):
                delivered.append(about.name)
    return delivered


def _deliver(mlflow: Mlflow, about: About, ended: str | None, points: Sequence[Point]) -> None:
    stands = about.destination.exists()
    if stands and mlflow.runs(about.fingerprint, "FINISHED"):
        about.note.unlink(missing_ok=True)
        return
    tracked = Tracked(mlflow, about, points)
    rows = about.destination if stands else artifact.partial(about.destination)
    for row in read_rows(rows / "metrics.jsonl"):
        tracked.on_row(row)
    if stands:
        made = artifact.load(about.destination, about.kind)
        tracked.report(made.facts, made.path)
    tracked.close("FINISHED" if stands else ended or "KILLED")


def _read_note(note: Path) -> tuple[About, str | None, list[Point]]:
    found = json.loads(note.read_text(encoding="utf-8"))
    about = found["about"]
    about |= {
        "destination": Path(about["destination"]),
        "inputs": {name: Artifact(Path(made["path"]), made["record"]) for name, made in about["inputs"].items()},
        "files": [Path(file) for file in about["files"]],
    }
    return About(**about), found["ended"], [Point(*point) for point in found["points"]]
