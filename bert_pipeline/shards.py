"""Map a function over shards on any `concurrent.futures.Executor`.

Output shard k depends on input shard k and on shared inputs alone, so neither the number of workers
nor the order in which they finish can change a byte.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, TypeVar

from bert_pipeline.progress import Progress

Result = TypeVar("Result")


class ShardError(RuntimeError):
    """A shard that failed; the message names the stage, the shard and the reason."""


def num_workers() -> int:
    """Worker processes of the data stages: BERT_PIPELINE_WORKERS, else the cores of this process."""
    return int(os.environ.get("BERT_PIPELINE_WORKERS") or len(os.sched_getaffinity(0)))


def worker_processes() -> Executor:
    """The default executor. Spawned, not forked: the parent (Dagster, a test) has threads."""
    return ProcessPoolExecutor(num_workers(), mp_context=multiprocessing.get_context("spawn"))


def map_shards(
    what: str,
    function: Callable[..., Result],
    shards: Iterable[tuple[str, tuple[Any, ...]]],
    *,
    total: int | None = None,
    executor: Executor | None = None,
) -> list[Result]:
    """Return `function(*arguments)` for each (name, arguments) of `shards`, in their order.

    `shards` may be a generator: only a few more than the workers can hold are drawn from it at a time.
    A single known shard runs in this process. Raises ShardError from the first shard that failed.
    """
    if total == 1 and executor is None:
        [(name, arguments)] = shards
        return [_outcome(what, name, lambda: function(*arguments))]
    progress = Progress(what, total, "shards")
    results: dict[int, Result] = {}
    with nullcontext(executor) if executor else worker_processes() as pool:
        assert pool is not None
        waiting: dict[Future[Result], tuple[int, str]] = {}

        def collect(at_most: int) -> None:
            while len(waiting) > at_most:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    number, name = waiting.pop(future)
                    results[number] = _outcome(what, name, future.result)
                    progress.advance()

        try:
            for number, (name, arguments) in enumerate(shards):
                waiting[pool.submit(function, *arguments)] = (number, name)
                collect(at_most=2 * num_workers())
            collect(at_most=0)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return [results[number] for number in sorted(results)]


def _outcome(what: str, name: str, result: Callable[[], Result]) -> Result:
    try:
        return result()
    except Exception as error:
        raise ShardError(f"{what}: shard {name}: {type(error).__name__}: {error}") from error
