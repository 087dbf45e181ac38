"""What is counted between two rows of metrics.jsonl: losses, gradient norms, time, steps that were skipped, spikes."""

import math
from typing import Any

import torch
from accelerate import Accelerator

from bert_pipeline.training.batches.steps import Step
from bert_pipeline.training.model.loss import LossSums

SPIKE_DEVIATIONS = 6.0
"""A step's loss is a spike so many standard deviations above the mean of the steps before it."""
SPIKE_MEMORY = 0.99
"""Weight of what was known in that mean and deviation, for each step."""
SPIKE_FIRST_STEPS = 100
"""Steps before which nothing is called a spike."""


class Window:
    """Sums since the last row. Losses stay on the device until a row is due, so that no step waits for them."""

    _COUNTS = ("num_masked", "num_labelled", "num_tokens", "flops", "seconds", "waited", "grad_norm")

    def __init__(self) -> None:
        self._spikes = _Spikes()
        self.skipped_in_a_row = 0
        self.clear()

    def clear(self) -> None:
        self._on_device: list[torch.Tensor] = []  # by step: the LossSums of this process's micro-batches, (4,) float64
        self._sums: list[list[float]] = []  # by step, over all processes
        self._counts: list[list[float]] = []  # by step
        self._max_grad_norm = 0.0
        self._skipped = 0
        self._num_spikes = 0

    def add(self, parts: list[LossSums], step: Step, flops: float, grad_norm: float) -> None:
        """A step whose update was made; `time` is to follow."""
        self._on_device.append(_sum_of(parts))
        load = step.load
        self._counts.append([load.masked, step.num_labelled, load.tokens, flops, 0.0, 0.0, grad_norm])
        self._max_grad_norm = max(self._max_grad_norm, grad_norm)
        self.skipped_in_a_row = 0

    def skip(self) -> None:
        """A step whose loss or gradient was not finite."""
        self._skipped += 1
        self.skipped_in_a_row += 1

    def time(self, seconds: float, waited: float) -> None:
        """What the last step took, and the part of it that it waited for data."""
        if self._counts:
            self._counts[-1][4] += seconds
            self._counts[-1][5] += waited

    def gather(self, accelerator: Accelerator) -> None:
        """Bring the sums of all processes together. Every process calls it."""
        if self._on_device:
            found = accelerator.reduce(torch.stack(self._on_device)).tolist()
            for sums, counts in zip(found, self._counts[len(self._sums) :], strict=True):
                self._num_spikes += self._spikes.see(_mean_losses(sums, counts)["loss"])
            self._sums += found
            self._on_device = []

    def row(self, matmul_peak: float) -> dict[str, float]:
        """After `gather`: means over the window. `matmul_peak` is that of all devices together, operations a second."""
        row: dict[str, float] = {"skipped_steps": self._skipped, "loss_spikes": self._num_spikes}
        if not self._sums:
            return row
        sums, counts = ([sum(column) for column in zip(*rows, strict=True)] for rows in (self._sums, self._counts))
        by_name = dict(zip(self._COUNTS, counts, strict=True))
        seconds = max(by_name["seconds"], 1e-9)
        return {
            **_mean_losses(sums, counts),
            **row,
            "grad_norm": by_name["grad_norm"] / len(self._counts),
            "max_grad_norm": self._max_grad_norm,
            "tokens": by_name["num_tokens"],
            "tokens_per_second": by_name["num_tokens"] / seconds,
            "data_wait_fraction": by_name["waited"] / seconds,
            "model_flops_utilization": by_name["flops"] / seconds / matmul_peak,
        }

    def state(self) -> dict[str, Any]:
        """After `gather`: JSON values from which `restore` goes on."""
        return {
            "sums": self._sums,
            "counts": self._counts,
            "max_grad_norm": self._max_grad_norm,
            "skipped": self._skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "num_spikes": self._num_spikes,
            "spikes": vars(self._spikes),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = state["sums"], state["counts"]
        self._max_grad_norm, self._num_spikes = state["max_grad_norm"], state["num_spikes"]
        self._skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        vars(self._spikes).update(state["spikes"])


def _sum_of(parts: list[LossSums]) -> torch.Tensor:
    """(4,) float64 of a process's micro-batches."""
    return torch.stack([torch.stack([value.detach().double() for value in part]) for part in parts]).sum(0)


def _mean_losses(sums: list[float], counts: list[float]) -> dict[str, float]:
    """Losses and accuracies, NSP's where a pair has a label; `loss` is what is minimised."""
    mlm_loss, nsp_loss, mlm_correct, nsp_correct = sums
    masked, labelled = max(counts[0], 1), counts[1]
    row = {"mlm_loss": mlm_loss / masked, "mlm_accuracy": mlm_correct / masked}
    if labelled:
        row |= {"nsp_loss": nsp_loss / labelled, "nsp_accuracy": nsp_correct / labelled}
    return row | {"loss": row["mlm_loss"] + row.get("nsp_loss", 0.0)}


class _Spikes:
    """Mean and variance of the steps' losses, weighted exponentially (West 1979, doi 10.1145/359146.359153)."""

    def __init__(self) -> None:
        self.steps, self.mean, self.variance = 0, 0.0, 0.0

    def see(self, loss: float) -> bool:
        """Whether this loss is a spike; it then leaves mean and variance as they were."""
        deviation = loss - self.mean
        if self.steps >= SPIKE_FIRST_STEPS and deviation > SPIKE_DEVIATIONS * math.sqrt(self.variance):
            return True
        weight = max(1 - SPIKE_MEMORY, 1 / (self.steps + 1))
        self.mean += weight * deviation
        self.variance = (1 - weight) * (self.variance + weight * deviation * deviation)
        self.steps += 1
        return False
