"""The process group: joining it, timeouts, and stop requests.

Training is data parallel: each process holds the whole model. Weights, gradients and AdamW's moments of the largest
BERT (340 million parameters) take 5.4 GB, so sharding them (FSDP, DeepSpeed) would not pay; such configs are refused.
"""

import ctypes
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from filelock import FileLock
from torch import distributed

from bert_pipeline import settings
from bert_pipeline.training.job import check_data_parallel

TIMEOUT_SECONDS = 25
"""A hanging process costs at most a minute: after this timeout torchrun gives it another 30 seconds to exit
(`PContext.close` in torch 2.13; --shutdown-timeout does not apply; pytorch/pytorch#68258)."""

START_SECONDS = 60
"""Timeout for joining the group. Processes start at different times: one machine imports more slowly than another."""

log = logging.getLogger(__name__)


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
        yield store, rank, world_size


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
        group = settings.group()
        raise LostProcess(
            f"process {group.rank} of {group.world_size} lost another one, which ended or did not respond for "
            f"{_timeout_seconds()} seconds (BERT_PIPELINE_TIMEOUT_SECONDS); remedy: read the last log lines of the "
            "others, and run again: training resumes from the newest checkpoint"
        ) from error


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
