"""Whether a step fits into memory, asked before the first one.

A GPU says so itself, by an error. On a CPU the kernel kills a process that asks for too much, and nobody hears why.
There the step is refused beforehand where it cannot fit: what a step keeps for its backward pass is counted on a few
pairs, and needs no backward pass to be counted. It is less than the peak by a tenth to a half (temporary tensors), so
nothing is refused that would have fitted.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bert_pipeline import settings
from bert_pipeline.training.batches.dataset import Rows
from bert_pipeline.training.batches.packing import pack
from bert_pipeline.training.distributed import whole_weights
from bert_pipeline.training.model.loss import PretrainingLoss

SAFE_SHARE = 0.25
"""Of the tokens that would just fit by what is counted: what the message proposes."""


class TooLittleMemory(RuntimeError):
    """A training that does not fit into the memory of a device."""


@contextmanager
def want_of_memory_explained(tokens: int) -> Iterator[None]:
    """Name the remedy where a device has no room for a micro-batch of at most so many `tokens`."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise TooLittleMemory(
            f"a micro-batch of at most {tokens:,} tokens does not fit: {error}; remedy: a smaller "
            "BERT_PIPELINE_PER_DEVICE_TOKENS, or auto; run again, training goes on from its newest checkpoint"
        ) from error


def assert_a_step_fits(
    loss: nn.Module,
    objective: PretrainingLoss,
    rows: Rows,
    tokens: int,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> None:
    """Raise TooLittleMemory where a micro-batch of so many `tokens` cannot fit into the memory of this machine's CPUs.

    `rows`: several pairs to count on; `loss`: the objective as it was distributed. Every process calls it, and before
    any has made a step.
    """
    held = sum(_share(parameter) for parameter in objective.parameters())
    fixed = held if optimizer.state else 3 * held  # gradients and, where there are none yet, AdamW's two moments
    with whole_weights(loss):
        one = rows.take(np.array([0]))
        few, many = (_kept_for_backward(objective, each, accelerator) for each in (one, rows))
    each = (many - few) / (rows.num_tokens - one.num_tokens)  # what does not grow are weights in another precision
    free = free_on_cpu() // settings.group().local_world_size
    accelerator.wait_for_everyone()  # else one might count as taken what a faster one has begun to use
    if fixed + tokens * each <= free:
        return
    fitting = int(SAFE_SHARE * (free - fixed) / each)
    remedy = f"BERT_PIPELINE_PER_DEVICE_TOKENS={fitting}, or auto" if fitting > 0 else "free memory, or a smaller model"
    raise TooLittleMemory(
        f"a micro-batch of {tokens:,} tokens needs {(fixed + tokens * each) / 1e6:,.0f} MB at least "
        f"({fixed / 1e6:,.0f} MB for gradients and moments, {each / 1e3:,.1f} kB a token), and each process here can "
        f"have {free / 1e6:,.0f} MB; remedy: {remedy}"
    )


def _share(parameter: Tensor) -> int:
    """Bytes of this process's share of a parameter."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.numel() * local.element_size()


def _kept_for_backward(objective: PretrainingLoss, rows: Rows, accelerator: Accelerator) -> int:
    """Bytes that a forward pass on these rows keeps, parameters not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    kept: dict[int, Tensor] = {}  # holding them, so that no place in memory is used twice

    def see(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor
        return tensor

    objective.train()
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor), accelerator.autocast():
        objective(**{name: tensor.to(accelerator.device) for name, tensor in pack(rows).items()})
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def free_on_cpu(root: Path = Path("/")) -> int:
    """Bytes that may still be taken: of the machine, and of every control group around this process that has a limit.

    Pages of files that nobody uses count as free, in both.
    """
    [available] = re.findall(r"^MemAvailable:\s+(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    return min([int(available) * 1024, *_free_in_groups(root)])


def _free_in_groups(root: Path) -> Iterator[int]:
    """Of control groups of both versions (cgroups(7)); within a container its own group may be the root of them."""
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
