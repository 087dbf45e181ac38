"""The process group: joining it, timeouts, and stop requests.

Training is data parallel: each process holds the whole model. Weights, gradients and AdamW's moments of the largest
BERT (340 million parameters) take 5.4 GB, so sharding them (FSDP, DeepSpeed) would not pay; such configs are refused.
"""

import ctypes
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from filelock import FileLock
from torch import distributed

from bert_pipeline import settings
from bert_pipeline.training.job import check_data_parallel

TIMEOUT_SECONDS = 25
"""A hanging process costs at most a minute: after this timeout torchrun gives it another 30 seconds to exit
(`PContext.close` in torch 2.13; --shutdown-timeout does not apply; pytorch/pytorch#68258)."""

START_SECONDS = 60
"""Timeout for joining the group. Processes start at different times: one machine imports more slowly than another."""

BEATS = 10
"""Heartbeats in a timeout. A process that hangs `at_own_pace` is noticed at most two beats after the timeout."""
POLL_SECONDS = 0.05
"""How often a process that is done looks whether all are."""

log = logging.getLogger(__name__)

_stores: list[distributed.Store] = []
"""The store of the group that this process has joined; empty without a group."""
_paces = count()
"""Numbers the blocks of `at_own_pace`: every process enters the same ones."""


class GroupError(RuntimeError):
    """The processes do not form the configured group."""


class LostProcess(RuntimeError):
    """Another process of the group ended or does not respond."""


def join_group() -> Accelerator:
    """Join the process group. Raise GroupError, before any device computes, if its size is not the configured one, and
    TrainingError if the accelerate config shards the model.
    """
    check_data_parallel(settings.group().sharding)
    expected = _expected_world_size()
    # Without this, accelerate treats each process of torchrun as a separate run if there is no accelerator.
    on_cpu = settings.group().local_rank is not None and not torch.accelerator.is_available()
    # BERT's buffers are constant, and processes may run different numbers of forward passes.
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False),
        InitProcessGroupKwargs(init_method="attempt://", timeout=timedelta(seconds=_timeout_seconds())),
    ]
    distributed.register_rendezvous_handler("attempt", _meet_in_this_attempt)
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=handlers)
    if distributed.is_initialized():
        # Never freed: gloo's destructor holds the interpreter lock while it joins threads that may wait for that lock
        # (torch 2.13); one group in twenty never exited.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed.group.WORLD))
    if accelerator.num_processes != expected:
        raise GroupError(
            f"{expected} processes were expected, but this one is in a group of {accelerator.num_processes} on "
            f"{accelerator.device}; remedy: as many devices as processes, or for CPUs ACCELERATE_USE_CPU=true"
        )
    return accelerator


def _expected_world_size() -> int:
    """The number of launched processes (WORLD_SIZE). Raise GroupError if the accelerate config has another one; the
    launcher passes it in BERT_PIPELINE_WORLD_SIZE.
    """
    group = settings.group()
    configured, launched = group.expected_world_size, group.world_size
    if launched is None and group.has_master:  # the only trace that `accelerate launch` leaves in a single process
        raise GroupError(
            "several processes were configured (MASTER_ADDR is set), but this one was started alone (no WORLD_SIZE); "
            "remedy: `distributed_type: MULTI_GPU` in the accelerate config (on CPUs too), or torchrun; for one "
            "process, unset MASTER_ADDR"
        )
    if configured is not None and configured != (launched or 1):
        raise GroupError(
            f"the accelerate config sets {configured} processes, but {launched or 1} were launched; remedy: "
            "`distributed_type: MULTI_GPU` (on CPUs too) and num_processes as a multiple of num_machines"
        )
    return launched or 1


def _meet_in_this_attempt(*_: Any, timeout: timedelta, **__: Any) -> Iterator[tuple[distributed.Store, int, int]]:
    """Rendezvous in torchrun's store under a prefix for this attempt: the store keeps addresses of earlier attempts.

    Without the prefix no restart succeeds (torch 2.13 with gloo; https://github.com/pytorch/pytorch/issues/135712). All
    processes wait here for the last one, up to START_SECONDS; later operations have only `timeout`.
    """
    start = max(timeout, timedelta(seconds=START_SECONDS))
    for common, rank, world_size in distributed.rendezvous("env://", timeout=start):
        store = distributed.PrefixStore(settings.group().restart, common)
        if store.add("come", 1) == world_size:
            store.set("all have come", "")
        store.wait(["all have come"], start)
        _stores[:] = [store]
        yield store, rank, world_size


@contextmanager
def at_own_pace() -> Iterator[None]:
    """A block in which the processes differ in what they do and may take any time, such as saving a checkpoint.

    All processes must enter it, and leave it together. A collective operation in it would time out. Each process sends
    heartbeats through the group's store, from a thread; raise LostProcess if one stops sending them.
    """
    if not _stores:
        yield
        return
    heart = _Heart(distributed.PrefixStore(f"pace {next(_paces)}", _stores[0]))
    heart.start()
    try:
        yield
    finally:
        heart.done.set()
    while heart.is_alive():
        heart.join(heart.interval)
        if time.monotonic() - heart.answered > _timeout_seconds():
            raise LostProcess(_lost("process 0 or its machine"))  # which serves the store
    if heart.error:
        raise heart.error
    PartialState().wait_for_everyone()  # the process that serves the store must not end before the others have read it


class _Heart(threading.Thread):
    """Sends heartbeats until this process is `done`, then waits for the others.

    A thread, because a call to the store never returns if the machine that serves it hangs.
    """

    def __init__(self, store: distributed.Store) -> None:
        super().__init__(daemon=True)
        state = PartialState()
        self.store, self.rank, self.num_processes = store, state.process_index, state.num_processes
        self.interval = _timeout_seconds() / BEATS
        self.done = threading.Event()
        self.answered = time.monotonic()
        """When the store last answered."""
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self.done.wait(self.interval):
                self._add(str(self.rank), 1)
            if self._add("done", 1) == self.num_processes:
                self.store.set("all are done", "")
            self._wait_for_others()
        except (distributed.DistError, LostProcess) as error:
            self.error = error

    def _wait_for_others(self) -> None:
        """Raise LostProcess if one has sent no heartbeat for the timeout."""
        others = [rank for rank in range(self.num_processes) if rank != self.rank]
        beats, heard = dict.fromkeys(others, 0), dict.fromkeys(others, time.monotonic())
        due = time.monotonic()
        while not self.store.check(["all are done"]):  # Store.wait would log each of its timeouts
            time.sleep(POLL_SECONDS)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + self.interval
            self._add(str(self.rank), 1)
            for rank in others:
                if (beat := self._add(str(rank), 0)) != beats[rank]:
                    beats[rank], heard[rank] = beat, time.monotonic()
                elif time.monotonic() - heard[rank] > _timeout_seconds():
                    raise LostProcess(_lost(f"process {rank}"))

    def _add(self, key: str, number: int) -> int:
        found = self.store.add(key, number)
        self.answered = time.monotonic()
        return found


def _timeout_seconds() -> int:
    """Seconds after which a process that does not respond counts as lost: BERT_PIPELINE_TIMEOUT_SECONDS, else 25."""
    return settings.timeout_seconds(default=TIMEOUT_SECONDS)


def wait_for_predecessor(folder: Path) -> FileLock:
    """Lock `folder` for this rank: processes that lost their launcher may still be writing there.

    Call it before `join_group`, which has a timeout. The lock is held as long as the caller keeps the object.
    """
    lock = FileLock(folder / f"training-{settings.group().rank}.lock")
    lock.acquire()
    return lock


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Raise LostProcess instead of torch's connection errors, which do not mention processes."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeError.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise LostProcess(_lost("another one")) from error


def _lost(which: str) -> str:
    group = settings.group()
    return (
        f"process {group.rank} of {group.world_size} lost {which}, which ended or did not respond for "
        f"{_timeout_seconds()} seconds (BERT_PIPELINE_TIMEOUT_SECONDS); remedy: read the last log lines of the others, "
        "and run again: training resumes from the newest checkpoint"
    )


class StopSignal:
    """Records SIGTERM and the death of the launcher. All processes stop after the same step."""

    def __init__(self) -> None:
        self._stop = False
        signal.signal(signal.SIGTERM, self._remember)
        self._launcher_ended = _launcher_ended()

    def _remember(self, *_: Any) -> None:
        self._stop = True

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process is to stop. Every process must call it after each step."""
        if not self._stop and self._launcher_ended():
            log.warning("the launcher was killed: stopping, because nothing follows this training any more")
            self._stop = True
            if settings.group().local_rank is not None:
                os.kill(os.getppid(), signal.SIGTERM)  # else torchrun would restart the group
        requested = torch.tensor(float(self._stop), device=accelerator.device)
        if accelerator.num_processes > 1:
            distributed.all_reduce(requested)
        return bool(requested)


def _launcher_ended() -> Callable[[], bool]:
    """A function that returns whether the launcher on this machine has ended. Only local rank 0 checks; it returns
    False if the training was started by hand.
    """
    group = settings.group()
    if group.launcher is None or group.local_rank:
        return lambda: False
    try:
        launcher = os.pidfd_open(group.launcher)  # unlike a process id, never reused
    except ProcessLookupError:
        return lambda: True
    ends = select.poll()
    ends.register(launcher, select.POLLIN)
    return lambda: bool(ends.poll(0))
