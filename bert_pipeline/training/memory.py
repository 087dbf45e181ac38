"""Checks before the first step that a step fits into memory, and explains out-of-memory errors.

A GPU reports a lack of memory as an error. On a CPU the kernel kills the process without an explanation, so a step that
cannot fit is refused before training: the tensors that the forward pass saves for backward are measured on a few pairs
and scaled up. That is 10 to 50 % less than the peak (temporary tensors), so no step is refused that would have fitted.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from bert_pipeline import settings
from bert_pipeline.training.batches.dataset import Rows
from bert_pipeline.training.batches.packing import pack
from bert_pipeline.training.distributed import at_own_pace
from bert_pipeline.training.model.loss import PretrainingLoss

SAFE_SHARE = 0.25
"""Share of the tokens that would just fit by this estimate; the error message proposes it."""


class TooLittleMemory(RuntimeError):
    """The training does not fit into the memory of a device."""


@contextmanager
def explain_out_of_memory(tokens: int) -> Iterator[None]:
    """Raise TooLittleMemory, with a remedy, instead of out-of-memory errors. `tokens`: limit of a micro-batch."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise TooLittleMemory(
            f"a micro-batch of at most {tokens:,} tokens does not fit: {error}; remedy: a smaller "
            "BERT_PIPELINE_PER_DEVICE_TOKENS, or auto; run again, training resumes from the newest checkpoint"
        ) from error


def assert_a_step_fits(
    objective: PretrainingLoss,
    rows: Rows,
    tokens: int,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> None:
    """Raise TooLittleMemory if a micro-batch of this many `tokens` cannot fit into the main memory of this machine.

    `rows`: several pairs to measure on. All processes must call it, before the first step.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in objective.parameters())
    fixed = weights if optimizer.state else 3 * weights  # gradients; plus AdamW's two moments unless they exist
    one = rows.take(np.array([0]))
    with at_own_pace():  # the first forward pass compiles; memory that a faster process uses later must not count here
        few, many = (_saved_for_backward(objective, each, accelerator) for each in (one, rows))
        free = free_on_cpu() // settings.group().local_world_size
    each = (many - few) / (rows.num_tokens - one.num_tokens)  # the constant part is the autocast copy of the weights
    if fixed + tokens * each <= free:
        return
    fitting = int(SAFE_SHARE * (free - fixed) / each)
    remedy = f"BERT_PIPELINE_PER_DEVICE_TOKENS={fitting}, or auto" if fitting > 0 else "free memory, or a smaller model"
    raise TooLittleMemory(
        f"a micro-batch of {tokens:,} tokens needs at least {(fixed + tokens * each) / 1e6:,.0f} MB "
        f"({fixed / 1e6:,.0f} MB for gradients and moments, {each / 1e3:,.1f} kB per token), but only "
        f"{free / 1e6:,.0f} MB are free for each process; remedy: {remedy}"
    )


def _saved_for_backward(objective: PretrainingLoss, rows: Rows, accelerator: Accelerator) -> int:
    """Bytes that a forward pass on these rows saves for backward, without the parameters."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    saved: dict[int, Tensor] = {}  # by address; holds the tensors, so that no address is reused

    def record(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            saved[address] = tensor
        return tensor

    objective.train()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor), accelerator.autocast():
        objective(**{name: tensor.to(accelerator.device) for name, tensor in pack(rows).items()})
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def free_on_cpu(root: Path = Path("/")) -> int:
    """Bytes that this process can still allocate: the least of the machine and of all control groups around it.

    The inactive page cache counts as free in both.
    """
    [available] = re.findall(r"^MemAvailable:\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    return min([int(available) * 1024, *_free_in_groups(root)])


def _free_in_groups(root: Path) -> Iterator[int]:
    """Free bytes of each limiting control group, version 1 or 2 (cgroups(7)). In a container the process's own group
    may be the root.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, limit, usage, unused = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            unused = "total_inactive_file"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            with suppress(FileNotFoundError, ValueError):  # no such group in this container, or the limit is "max"
                [pages] = re.findall(rf"^{unused} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
                yield int((folder / limit).read_text()) - int((folder / usage).read_text()) + int(pages)
