"""Sums between two rows of metrics.jsonl: losses, gradient norms, time, skipped steps and loss spikes."""

import math
from typing import Any

import torch
from accelerate import Accelerator

from bert_pipeline.training.batches.steps import Step
from bert_pipeline.training.model.loss import LossSums
from bert_pipeline.training.utilization import Peak

SPIKE_DEVIATIONS = 6.0
"""A loss this many standard deviations above the mean of earlier steps is a spike."""
SPIKE_MEMORY = 0.99
"""Exponential decay of that mean and deviation per step."""
SPIKE_FIRST_STEPS = 100
"""Nothing counts as a spike before this many steps."""


class Window:
    """Sums since the last row. Losses stay on the device until a row is due, so that no step synchronises."""

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
        """Count a step that updated the weights."""
        self._on_device.append(_sum_of(parts))
        load = step.load
        self._counts.append([load.masked, step.num_labelled, load.tokens, flops, 0.0, 0.0, grad_norm])
        self._max_grad_norm = max(self._max_grad_norm, grad_norm)
        self.skipped_in_a_row = 0

    def skip(self) -> None:
        """Count a step whose loss or gradient was not finite."""
        self._skipped += 1
        self.skipped_in_a_row += 1

    def time(self, seconds: float) -> None:
        """Add seconds that steps took."""
        if self._counts:
            self._counts[-1][4] += seconds

    def wait(self, seconds: float) -> None:
        """Count the part of these seconds that a step waited for data."""
        if self._counts:
            self._counts[-1][5] += seconds

    def gather(self, accelerator: Accelerator) -> None:
        """Add up the sums of all processes. Every process must call it."""
        if self._on_device:
            found = accelerator.reduce(torch.stack(self._on_device)).tolist()
            for sums, counts in zip(found, self._counts[len(self._sums) :], strict=True):
                self._num_spikes += self._spikes.see(_mean_losses(sums, counts)["loss"])
            self._sums += found
            self._on_device = []

    def row(self, peak: Peak) -> dict[str, float]:
        """Means over the window; call `gather` first. `peak_raised` is only in a row whose rate exceeded the peak."""
        row: dict[str, float] = {"skipped_steps": self._skipped, "loss_spikes": self._num_spikes}
        if not self._sums:
            return row
        sums, counts = ([sum(column) for column in zip(*rows, strict=True)] for rows in (self._sums, self._counts))
        by_name = dict(zip(self._COUNTS, counts, strict=True))
        seconds = max(by_name["seconds"], 1e-9)
        utilization, raised = peak.utilization(by_name["flops"] / seconds)
        return {
            **_mean_losses(sums, counts),
            **row,
            "grad_norm": by_name["grad_norm"] / len(self._counts),
            "max_grad_norm": self._max_grad_norm,
            "tokens": by_name["num_tokens"],
            "tokens_per_second": by_name["num_tokens"] / seconds,
            "data_wait_fraction": by_name["waited"] / seconds,
            "model_flops_utilization": utilization,
        } | ({"peak_raised": 1} if raised else {})

    def state(self) -> dict[str, Any]:
        """JSON values for `restore`; call `gather` first."""
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
    """(4,) float64: the sums over a process's micro-batches."""
    return torch.stack([torch.stack([value.detach().double() for value in part]) for part in parts]).sum(0)


def _mean_losses(sums: list[float], counts: list[float]) -> dict[str, float]:
    """Losses and accuracies; those of NSP only if a pair has a label. `loss` is the training objective."""
    mlm_loss, nsp_loss, mlm_correct, nsp_correct = sums
    masked, labelled = max(counts[0], 1), counts[1]
    row = {"mlm_loss": mlm_loss / masked, "mlm_accuracy": mlm_correct / masked}
    if labelled:
        row |= {"nsp_loss": nsp_loss / labelled, "nsp_accuracy": nsp_correct / labelled}
    return row | {"loss": row["mlm_loss"] + row.get("nsp_loss", 0.0)}


class _Spikes:
    """Exponentially weighted mean and variance of the losses (West 1979, doi 10.1145/359146.359153)."""

    def __init__(self) -> None:
        self.steps, self.mean, self.variance = 0, 0.0, 0.0

    def see(self, loss: float) -> bool:
        """Return whether this loss is a spike. A spike does not change the mean and variance."""
        deviation = loss - self.mean
        if self.steps >= SPIKE_FIRST_STEPS and deviation > SPIKE_DEVIATIONS * math.sqrt(self.variance):
            return True
        weight = max(1 - SPIKE_MEMORY, 1 / (self.steps + 1))
        self.mean += weight * deviation
        self.variance = (1 - weight) * (self.variance + weight * deviation * deviation)
        self.steps += 1
        return False
