"""One measurement, one process: pinned to its cores, one thread in each library, its answer one line of JSON.

measure("benchmarks.ours", "encode", cores={0}, ...)     in the benchmark
answer(encode, ...)                                      at the end of the module that is run
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
"""What is quickly done is done again until so much time has gone."""


class MeasurementError(RuntimeError):
    """A measured process that failed; the message holds the last line that it wrote."""


def measure(
    module: str,
    task: str,
    *,
    cores: set[int],
    search_path: Iterable[Path] = (),
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> Answer:
    """What `task` of a module answers in a process of its own, and `process_seconds`: its life, imports and all.

    `search_path` goes before everything that is installed; of a peer, it is the peer's own environment.
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
    """The measured process's side: call the task that is asked for, print what it returns."""
    _, name, arguments = sys.argv
    print(json.dumps({task.__name__: task for task in tasks}[name](**json.loads(arguments))))
