"""What concerns several processes: their group, how long one waits for another, and who holds which weights.

Data parallel is accelerate's. FSDP2 (`torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, arXiv 2304.11277), where
each process keeps its share of the parameters and of AdamW's moments, is applied here: accelerate does it on GPUs
alone, and what runs there should be what is tested on CPUs.
"""

import ctypes
import logging
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import patch_environment
from filelock import FileLock
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import BertForPreTraining
from transformers.models.bert.modeling_bert import BertLayer

from bert_pipeline import settings

TIMEOUT_SECONDS = 25
"""A process that hangs may cost a minute: after this torchrun gives it another 30 seconds to end by itself
(`PContext.close` in torch 2.13; --shutdown-timeout is not about this; pytorch/pytorch#68258)."""

START_SECONDS = 60
"""At the start processes come later than others: one machine reads Python's modules more slowly than another."""

log = logging.getLogger(__name__)


class GroupError(RuntimeError):
    """The processes are not the group that was asked for."""


class LostProcess(RuntimeError):
    """Another process of the group ended, or does not answer."""


def join_group() -> Accelerator:
    """This process's place among those that were asked for; no device has worked before it is certain."""
    asked = _world_size_asked()
    # Where torchrun finds no accelerator, accelerate takes each of its processes for a run of its own.
    on_cpu = settings.group().local_rank is not None and not torch.accelerator.is_available()
    # BERT's buffers are constants, and processes may differ in how often they go forward.
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False),
        InitProcessGroupKwargs(init_method="attempt://", timeout=timedelta(seconds=_timeout_seconds())),
    ]
    distributed.register_rendezvous_handler("attempt", _meet_in_this_attempt)
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=handlers)
    if distributed.is_initialized():
        # Never freed: gloo's destructor holds the interpreter while it waits for threads that may wait for the
        # interpreter (torch 2.13); one group in twenty never came to its end.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(distributed.group.WORLD))
    if accelerator.num_processes != asked:
        raise GroupError(
            f"{asked} processes were asked for, but this one finds itself in a group of {accelerator.num_processes} "
            f"on {accelerator.device}; remedy: as many devices as processes, or for CPUs ACCELERATE_USE_CPU=true"
        )
    return accelerator


def _world_size_asked() -> int:
    """What the accelerate config says (launch.py hands it on), and what torchrun or `accelerate launch` say."""
    group = settings.group()
    wanted, launched = group.expected_world_size, group.world_size
    if launched is None and group.has_master:  # all that `accelerate launch` tells one process
        raise GroupError(
            "several processes were meant (MASTER_ADDR is set), but this one was started alone (no WORLD_SIZE); "
            "remedy: `distributed_type: MULTI_GPU` in the accelerate config (on CPUs too), or torchrun; for one "
            "process, unset MASTER_ADDR"
        )
    if wanted is not None and wanted != (launched or 1):
        raise GroupError(
            f"the accelerate config asks for {wanted} processes, but {launched or 1} were launched; remedy: "
            "`distributed_type: MULTI_GPU` (on CPUs too) and num_processes as a multiple of num_machines"
        )
    return launched or 1


def _meet_in_this_attempt(*_: Any, timeout: timedelta, **__: Any) -> Iterator[tuple[distributed.Store, int, int]]:
    """Meet at torchrun's store under this attempt's name: it still holds the addresses of those that it started before.

    Without this no restart succeeds (torch 2.13 with gloo; https://github.com/pytorch/pytorch/issues/135712). Here all
    wait for the last one: afterwards there is `timeout` alone.
    """
    start = max(timeout, timedelta(seconds=START_SECONDS))
    for common, rank, world_size in distributed.rendezvous("env://", timeout=start):
        store = distributed.PrefixStore(settings.group().restart, common)
        if store.add("come", 1) == world_size:
            store.set("all have come", "")
        store.wait(["all have come"], start)
        yield store, rank, world_size


def _timeout_seconds() -> int:
    """How long a process waits for the others before it takes one for lost: BERT_PIPELINE_TIMEOUT_SECONDS, else 25."""
    return settings.timeout_seconds(default=TIMEOUT_SECONDS)


def wait_for_predecessor(folder: Path) -> FileLock:
    """Processes that lost their launcher may still be at work here; each new one waits for that of its own rank.

    Call it before `join_group`, where waiting has a limit. The lock is held as long as the caller keeps it.
    """
    lock = FileLock(folder / f"training-{settings.group().rank}.lock")
    lock.acquire()
    return lock


@contextmanager
def loss_of_a_process_explained() -> Iterator[None]:
    """Say what it means when the others no longer answer: torch names a connection, not a process."""
    try:
        yield
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        group = settings.group()
        raise LostProcess(
            f"process {group.rank} of {group.world_size} lost another one, which ended or did not answer for "
            f"{_timeout_seconds()} seconds (BERT_PIPELINE_TIMEOUT_SECONDS); remedy: see what the others said last, and "
            "run again: training goes on from its newest checkpoint"
        ) from error


class StopSignal:
    """Remembers SIGTERM, and notices when the launcher was killed; the processes agree on the step after which they
    stop.
    """

    def __init__(self) -> None:
        self._seen = False
        signal.signal(signal.SIGTERM, self._remember)
        self._launcher_ended = _launcher_ended()

    def _remember(self, *_: Any) -> None:
        self._seen = True

    def asked(self, accelerator: Accelerator) -> bool:
        if not self._seen and self._launcher_ended():
            log.warning("the launcher was killed: nobody follows this training any more")
            self._seen = True
            if settings.group().local_rank is not None:
                os.kill(os.getppid(), signal.SIGTERM)  # torchrun would start the group again
        seen = torch.tensor(float(self._seen), device=accelerator.device)
        if accelerator.num_processes > 1:
            distributed.all_reduce(seen)
        return bool(seen)


def _launcher_ended() -> Callable[[], bool]:
    """Whether the process that launched the training here is gone. One process a machine looks; by hand nobody does."""
    group = settings.group()
    if group.launcher is None or group.local_rank:
        return lambda: False
    try:
        launcher = os.pidfd_open(group.launcher)  # a number may be given to another process, this stays
    except ProcessLookupError:
        return lambda: True
    ends = select.poll()
    ends.register(launcher, select.POLLIN)
    return lambda: bool(ends.poll(0))


def distribute(loss: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The loss as the processes train it together. Make the optimizer after this: FSDP2 replaces the parameters."""
    if not settings.group().shards_parameters or accelerator.num_processes == 1:
        return accelerator.prepare(loss)
    if settings.group().fsdp_version != "2":
        raise GroupError("FSDP1 is not supported; remedy: `fsdp_version: 2` in the accelerate config")
    # The parameters are whole from the first forward to the last backward of a step (ZeRO stage 2). So the processes
    # may differ in how often they go forward, as in data parallel; and moments are what takes the memory.
    for module in [module for module in loss.modules() if isinstance(module, BertLayer)]:
        fully_shard(module, reshard_after_forward=False)
    fully_shard(loss, reshard_after_forward=False)
    # "Evaluation" leaves out DistributedDataParallel; precision and compilation are applied.
    return accelerator.prepare_model(loss, evaluation_mode=True)


def synchronised(loss: nn.Module, last: bool, accelerator: Accelerator) -> AbstractContextManager[None]:
    """Around a micro-batch: the processes bring their gradients together in the `last` one of a step alone."""
    if shards := _shards(loss):
        root = shards[0]  # which hands it on to the others
        root.set_requires_gradient_sync(last)
        root.set_reshard_after_backward(last)
        root.set_is_last_backward(last)
        return nullcontext()
    return nullcontext() if last else accelerator.no_sync(loss)


@contextmanager
def whole_weights(loss: nn.Module) -> Iterator[None]:
    """Within it a process may go forward alone, or not at all. All processes enter it."""
    for module in _shards(loss):
        module.unshard()
    yield
    for module in _shards(loss):
        module.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which each process has its share. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which all processes have, as this process keeps it: on its device, its share under FSDP2.

    A scalar (AdamW's count of steps) is kept whole.
    """
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or not tensor.ndim:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_model(model: BertForPreTraining) -> BertForPreTraining:
    """The model that one process can use alone. All processes call it."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    found = BertForPreTraining(model.config)
    found.load_state_dict({name: whole(tensor) for name, tensor in model.state_dict().items()})
    return found


def _shards(loss: nn.Module) -> list[FSDPModule]:
    """The modules that FSDP2 shards, the root first; none under data parallel."""
    return [module for module in loss.modules() if isinstance(module, FSDPModule)]
