"""Map a function over shards on any `concurrent.futures.Executor`.

BERT_PIPELINE_EXECUTOR says which: `processes` (default: worker processes of this machine) or
`dask://scheduler:8786` (the workers of a Dask cluster, which see the same file system and have this package).
Output shard k depends on input shard k and on shared inputs alone, so neither the number of workers, nor their
kind, nor the order in which they finish can change a byte.
"""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from bert_pipeline.progress import Progress

Result = TypeVar("Result")

ATTEMPTS = 3
"""Worker processes that may die one after the other, with no shard finished in between, before it is an error."""

DASK_TIMEOUT = 30  # seconds for the scheduler to answer

log = logging.getLogger(__name__)


class ShardError(RuntimeError):
    """A shard that failed; the message names the stage, the shard and the reason."""


@dataclass(frozen=True)
class Task(Generic[Result]):
    """One call: `function(*arguments)` for the shard of this name."""

    name: str
    function: Callable[..., Result]
    arguments: tuple[Any, ...]

    def run(self) -> Result:
        return self.function(*self.arguments)


def num_workers() -> int:
    """Worker processes on this machine: BERT_PIPELINE_WORKERS, else the cores of this process."""
    return int(os.environ.get("BERT_PIPELINE_WORKERS") or len(os.sched_getaffinity(0)))


@contextmanager
def executor() -> Iterator[tuple[Executor, int]]:
    """The executor that the environment names, and how many tasks it runs at a time."""
    kind = os.environ.get("BERT_PIPELINE_EXECUTOR") or "processes"
    if kind == "processes":
        # Spawned, not forked: the parent (Dagster, a test) has threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers(), mp_context=context, initializer=_one_thread_each) as pool:
            yield pool, num_workers()
    elif kind.startswith("dask://"):
        with _dask_client(kind.replace("dask://", "tcp://", 1)) as client:
            yield client.get_executor(pure=False), max(1, sum(client.nthreads().values()))
    else:
        raise ValueError(
            f"BERT_PIPELINE_EXECUTOR = {kind!r} is no executor; remedy: processes, or dask://SCHEDULER:PORT"
        )


def _one_thread_each() -> None:
    """A worker is one of many: its libraries shall not start a thread for every core."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"BERT_PIPELINE_EXECUTOR names the Dask scheduler {address}, and the package distributed is not "
            "installed; remedy: pip install 'bert-pipeline[dask]'"
        ) from None
    try:
        return Client(address, timeout=DASK_TIMEOUT)
    except OSError as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address}: {error}; remedy: start one, or correct BERT_PIPELINE_EXECUTOR"
        ) from error


def map_shards(
    what: str,
    function: Callable[..., Result],
    shards: Iterable[tuple[str, tuple[Any, ...]]],
    *,
    total: int | None = None,
    on_result: Callable[[str, Result], None] = lambda name, result: None,
) -> list[Result]:
    """Return `function(*arguments)` for each (name, arguments) of `shards`, in their order.

    `shards` may be a generator: only a few more than the workers can hold are drawn from it at a time.
    `on_result` is called in this process as each shard finishes. A single known shard runs in this process.
    A worker that dies costs the shards it held: they are built again. After the first shard that failed nothing
    new is begun, what is under way is finished, and ShardError is raised.
    """
    tasks = (Task(name, function, arguments) for name, arguments in shards)
    progress = Progress(what, total, "shards")
    results: dict[int, Result] = {}
    failures: list[ShardError] = []

    def finish(number: int, task: Task[Result], outcome: Callable[[], Result]) -> None:
        try:
            results[number] = outcome()
        except BrokenProcessPool:
            raise
        except Exception as error:
            reason = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            failures.append(ShardError(f"{what}: shard {task.name}: {reason}"))
            failures[-1].__cause__ = error
        else:
            on_result(task.name, results[number])
            progress.advance()

    if total == 1:
        for number, task in enumerate(tasks):
            finish(number, task, task.run)
    else:
        _run(what, enumerate(tasks), finish, failures)
    if failures:
        others = f" ({len(failures) - 1} more failed)" if len(failures) > 1 else ""
        raise ShardError(f"{failures[0]}{others}") from failures[0].__cause__
    return [results[number] for number in sorted(results)]


def _run(
    what: str,
    tasks: Iterator[tuple[int, Task[Result]]],
    finish: Callable[[int, Task[Result], Callable[[], Result]], None],
    failures: list[ShardError],
) -> None:
    """Run every task on the executor; where its worker processes died, on a new one."""
    held: dict[int, Task[Result]] = {}  # drawn, not finished
    deaths = 0
    while True:
        waiting: dict[Future[Result], int] = {}
        try:
            with executor() as (pool, width):
                waiting |= {pool.submit(task.run): number for number, task in held.items()}
                while True:
                    for number, task in islice(tasks, 0 if failures else width + 2 - len(held)):
                        held[number] = task
                        waiting[pool.submit(task.run)] = number
                    if not waiting:
                        return
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        number = waiting[future]
                        finish(number, held[number], future.result)
                        del waiting[future], held[number]
                        deaths = 0
        except BrokenProcessPool as error:
            deaths += 1
            names = ", ".join(task.name for task in held.values())
            if deaths == ATTEMPTS:
                raise ShardError(
                    f"{what}: {ATTEMPTS} times a worker process was killed while it held one of {names}; "
                    "perhaps memory ran out; remedy: fewer BERT_PIPELINE_WORKERS, or a smaller "
                    "corpus.documents_per_shard"
                ) from error
            log.warning("%s: a worker process was killed; building again: %s", what, names)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
