"""Run the whole graph for a recipe in a process of its own, and pass on what it does while it runs.

Dagster's log goes to a file in the home. The rows come from the logger `rows` (tracking/logs.py).
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_pipeline.formats.metrics import Row, RowFollower
from orchestration.local.home import environment, prepare
from orchestration.local.signals import collected_signals

JOB = "whole_graph"
POLL_SECONDS = 0.25


STOPPING: Row = {
    "step": None,
    "level": logging.WARNING,
    "event": None,
    "message": "stopping; a training saves a checkpoint first (a second signal kills the run)",
}


class RunFailed(RuntimeError):
    """A run of the graph failed or was stopped."""


def run_graph(recipe: str, home: Path, on_rows: Callable[[Sequence[Row]], None]) -> None:
    """Build everything for the recipe. Calls `on_rows` four times a second with what the run logged since.

    A signal that would end this process ends the run: a training saves a checkpoint first, and the next run resumes. A
    second signal kills the run. Raises RunFailed, with the reason and the path of the log.
    """
    folder = prepare(home)
    log = home / "logs" / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    log.parent.mkdir(exist_ok=True)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, log.open("ab") as output, collected_signals() as received:
        follower = RowFollower(Path(temporary, "rows.jsonl"))
        process = subprocess.Popen(
            _command(recipe, follower.path),
            cwd=folder,
            env=environment(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended, signals_sent = False, 0
            while not ended:
                ended = process.poll() is not None  # asked before the last rows are read
                rows = list(follower.new_rows())
                failures += [row["message"] for row in rows if row["event"] == "STEP_FAILURE"]
                on_rows(rows)
                if len(received) > signals_sent:
                    (process.kill if signals_sent else process.terminate)()
                    signals_sent = len(received)
                    on_rows([STOPPING])
                time.sleep(0 if ended else POLL_SECONDS)
        finally:
            process.terminate()  # without effect if it ended
            process.wait()
    if received:
        raise RunFailed(f"stopped; remedy: run again, and it resumes (log: {log})")
    if process.returncode:
        raise RunFailed(f"{failures[0] if failures else _last_line(log)}\nlog of the run: {log}")


def _command(recipe: str, rows: Path) -> list[str]:
    loggers: dict[str, Any] = {"console": {}, "rows": {"config": {"path": str(rows)}}}
    return [
        *(sys.executable, "-m", "dagster_dg_cli.cli.entrypoint", "launch"),
        *("--module-name", "orchestration.definitions", "--job", JOB, "--partition", recipe),
        *("--config-json", json.dumps({"loggers": loggers})),
    ]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "the run wrote nothing"
