"""Run the whole graph for a recipe in a process of its own, and pass on what it does while it runs.

Dagster's log goes to a file in the home. The rows come from the logger `rows` (tracking/logs.py).
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bert_pipeline.formats.metrics import Row, RowFollower
from orchestration.local import home as local_home

POLL_SECONDS = 0.25
JOB = "whole_graph"


class RunFailed(RuntimeError):
    """A run of the graph failed or was stopped."""


def run_graph(recipe: str, home: Path, on_rows: Callable[[list[Row]], None]) -> None:
    """Build everything for the recipe. Calls `on_rows` four times a second with what the run logged since.

    A signal that ends this process ends the run: a training saves a checkpoint first, and the next run resumes.
    Raises RunFailed, with the reason and the path of the log.
    """
    folder = local_home.prepare(home)
    log = home / "logs" / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, log.open("xb") as output:
        follower, failures = RowFollower(Path(temporary, "rows.jsonl")), list[str]()
        process = subprocess.Popen(
            _command(recipe, follower.path),
            cwd=folder,
            env=local_home.environment(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _passing_signals_to(process) as received:
            ended = False
            while not ended:
                ended = process.poll() is not None  # asked before the last rows are read
                rows = list(follower.new_rows())
                failures += [row["message"] for row in rows if row["event"] == "STEP_FAILURE"]
                on_rows(rows)
                time.sleep(0 if ended else POLL_SECONDS)
    if received:
        raise RunFailed(f"stopped; remedy: run again, and it resumes (log: {log})")
    if process.returncode:
        reason = failures[0] if failures else _last_line(log)
        raise RunFailed(f"{reason}\nthe log of the run: {log}")


def _command(recipe: str, rows: Path) -> list[str]:
    loggers: dict[str, Any] = {"console": {}, "rows": {"config": {"path": str(rows)}}}
    return [
        *(sys.executable, "-m", "dagster_dg_cli.cli.entrypoint", "launch"),
        *("--module-name", "orchestration.definitions", "--job", JOB, "--partition", recipe),
        *("--config-json", json.dumps({"loggers": loggers})),
    ]


@contextmanager
def _passing_signals_to(process: subprocess.Popen) -> Iterator[list[int]]:
    """Pass SIGINT, SIGTERM and SIGHUP on to the process inside this block; yields those received so far."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"
