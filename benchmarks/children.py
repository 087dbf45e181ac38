"""Run each measurement in its own process, pinned to cores, with one thread per library; it answers with JSON.

measure("benchmarks.ours", "encode", cores={0}, ...)     in the benchmark
answer(encode, ...)                                      at the end of the module of the measurement
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ONE_THREAD = {
    "TOKENIZERS_PARALLELISM": "false",
    **dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1"),
}

Answer = dict[str, Any]

SECONDS = 2.0
"""Short tasks are repeated for this time."""


class MeasurementError(RuntimeError):
    """A measured process failed; the message contains the last line of its stderr."""


def measure(
    module: str,
    task: str,
    *,
    cores: set[int],
    search_path: Iterable[Path] = (),
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> Answer:
    """Run `task` of a module in a process; return its answer and `process_seconds`, which include imports.

    `search_path` precedes all installed packages: for a peer, it is the peer's environment.
    Raises MeasurementError if the process fails.
    """
    # tests: the oracles are imported from there
    python_path = os.pathsep.join(map(str, [*search_path, ROOT, ROOT / "tests"]))
    started = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-m", module, task, json.dumps(arguments, default=str)],
        cwd=ROOT,
        env=os.environ | ONE_THREAD | (environment or {}) | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    seconds = time.perf_counter() - started
    if finished.returncode:
        last = (finished.stderr.strip() or f"exit code {finished.returncode}").splitlines()[-1]
        raise MeasurementError(f"{module} {task}: {last}")
    return json.loads(finished.stdout.splitlines()[-1]) | {"process_seconds": seconds}


def answer(*tasks: Callable[..., Answer]) -> None:
    """In the measured process: call the requested task and print its answer."""
    _, name, arguments = sys.argv
    print(json.dumps({task.__name__: task for task in tasks}[name](**json.loads(arguments))))
