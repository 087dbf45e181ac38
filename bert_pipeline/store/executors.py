"""Map a function over shards on any `concurrent.futures.Executor`.

BERT_PIPELINE_EXECUTOR selects it: `processes` (default: worker processes on this machine) or `dask://scheduler:8786`
(the workers of a Dask cluster, which share the file system and have this package installed). Output shard k depends
only on input shard k and on shared inputs, so number and kind of workers and the order in which they finish do not
change a byte.
"""

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from bert_pipeline import settings
from bert_pipeline.core.progress import Progress

Result = TypeVar("Result")

ATTEMPTS = 3
"""Number of worker deaths in a row, with no shard finished in between, that stops the stage."""

AHEAD = 2
"""Shards submitted in addition to those in work, so that no worker waits for this process."""

IDLE_SECONDS = 20
"""Time after which worker processes end if no other stage has used them."""
_idle: dict[tuple[int, Path], Executor] = {}  # by number of workers and current directory; at most one
_lock = threading.Lock()

DASK_TIMEOUT = 30  # seconds for the scheduler to answer

log = logging.getLogger(__name__)


class ShardError(RuntimeError):
    """A shard failed; the message names the stage, the shard and the reason."""


@dataclass(frozen=True)
class Call(Generic[Result]):
    """One call: `function(*arguments)` for the shard of this name."""

    name: str
    function: Callable[..., Result]
    arguments: tuple[Any, ...]

    def run(self) -> Result:
        return self.function(*self.arguments)


@contextmanager
def executor() -> Iterator[tuple[Executor, int]]:
    """The executor set in the environment, and the number of tasks that it runs at once.

    Raises ValueError if there is no such executor, ConnectionError if no Dask scheduler answers.
    """
    kind = settings.executor()
    if kind == "processes":
        with _worker_processes(settings.num_workers()) as pool:
            yield pool, settings.num_workers()
    elif kind.startswith("dask://"):
        with _dask_client(kind.replace("dask://", "tcp://", 1)) as client:
            width = max(1, sum(client.nthreads().values()))
            with _DaskExecutor(client, width + AHEAD) as pool:
                yield pool, width
    else:
        raise ValueError(
            f"BERT_PIPELINE_EXECUTOR = {kind!r} is no executor; remedy: set processes or dask://SCHEDULER:PORT"
        )


@contextmanager
def _worker_processes(number: int) -> Iterator[Executor]:
    """Worker processes. They are kept for the next stage, because they take seconds to start, and end when idle."""
    kind = number, Path.cwd()
    with _lock:
        pool = _idle.pop(kind, None)
    # Spawned, not forked: the parent (Dagster, a test) has threads.
    context = multiprocessing.get_context("spawn")
    pool = pool or ProcessPoolExecutor(number, mp_context=context, initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    end_idle_workers()
    with _lock:
        _idle[kind] = pool
    timer = threading.Timer(IDLE_SECONDS, end_idle_workers, [pool])
    timer.daemon = True
    timer.start()


def end_idle_workers(only: Executor | None = None) -> None:
    """End the idle worker processes, or only the ones of one pool if it is still idle."""
    with _lock:
        ending = [kind for kind, pool in _idle.items() if only in (None, pool)]
        pools = [_idle.pop(kind) for kind in ending]
    for pool in pools:
        pool.shutdown()


def _begin_worker() -> None:
    """Limit the threads of the worker's libraries, and end it with its parent: Python's workers would wait for ever if
    the parent was killed.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings.limit_threads_of_worker()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _submit(pool: Executor, task: "Call[Result]") -> "Future[Result]":
    try:
        return pool.submit(task.run)
    except OSError as error:  # a worker died while another one was starting; its pipes are closed
        raise BrokenProcessPool(str(error)) from error


class _DaskExecutor(ThreadPoolExecutor):
    """Threads that wait for the workers of a Dask cluster.

    `Client.get_executor()` of distributed 2026.8 reports an error if the worker that holds a result dies before the
    result was fetched; `Future.result()` computes it again.
    """

    def __init__(self, client: Any, width: int) -> None:
        super().__init__(width)
        self._client = client

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(lambda: self._client.submit(function, *args, **kwargs, pure=False).result())


def _dask_client(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"BERT_PIPELINE_EXECUTOR is the Dask scheduler {address}, but the package distributed is not "
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

    `shards` may be a generator: only AHEAD more items than there are workers are drawn from it at a time. `on_result`
    is called in this process as each shard finishes. A single known shard runs in this process. Shards of a worker that
    dies are built again. After a failure no further shard is started; when the running ones have finished, ShardError
    is raised.
    """
    tasks = (Call(name, function, arguments) for name, arguments in shards)
    progress = Progress(what, total, "shards")
    results: dict[int, Result] = {}
    failures: list[ShardError] = []

    def finish(number: int, task: Call[Result], outcome: Callable[[], Result]) -> None:
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
    tasks: Iterator[tuple[int, Call[Result]]],
    finish: Callable[[int, Call[Result], Callable[[], Result]], None],
    failures: list[ShardError],
) -> None:
    """Run every task on the executor; if a worker process dies, continue on a new executor."""
    held: dict[int, Call[Result]] = {}  # drawn from `tasks`, not finished
    deaths = 0
    while True:
        waiting: dict[Future[Result], int] = {}
        try:
            with executor() as (pool, width):
                for number, task in held.items():
                    waiting[_submit(pool, task)] = number
                while True:
                    for number, task in islice(tasks, 0 if failures else width + AHEAD - len(held)):
                        held[number] = task
                        waiting[_submit(pool, task)] = number
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
                    f"{what}: a worker process was killed {ATTEMPTS} times while it worked on one of {names}, perhaps "
                    "because memory ran out; remedy: fewer BERT_PIPELINE_WORKERS or a smaller "
                    "corpus.documents_per_shard"
                ) from error
            log.warning("%s: a worker process was killed; building again: %s", what, names)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
