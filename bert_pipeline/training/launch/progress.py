"""Log lines of the progress of training: losses, rate and remaining time."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta

from bert_pipeline.core.progress import LineTimer
from bert_pipeline.formats.metrics import Row

WINDOWS = 20
"""The remaining time follows from the seconds per step of this many rows of metrics."""

log = logging.getLogger(__name__)


class TrainingProgress:
    """Logs one line as often as Progress does, and one for each measurement on held-out pairs.

    The remaining time is computed from the step times in the rows, not from the time since this object was created,
    because a resumed run reads all rows of the earlier run at once.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._due = LineTimer()
        self._started = time.monotonic()
        self._step = 0
        self._windows: deque[tuple[int, float]] = deque(maxlen=WINDOWS)

    def __call__(self, rows: Sequence[Row]) -> None:
        """Log the newest of these rows, which were found at the same time, in the order of their steps."""
        heldout = [row for row in rows if "heldout_mlm_loss" in row]
        training = [row for row in rows if "learning_rate" in row]
        for row in training:
            self._count(row)
        counted = [row for row in training if "loss" in row]
        if counted and (self._due(time.monotonic() - self._started) or self._step == self.num_steps):
            self._log_losses(counted[-1])
        if len(counted) < len(training):
            log.warning("pretrain: step %d/%d  all steps between two rows were skipped", self._step, self.num_steps)
        if heldout:
            scores = {k.removeprefix("heldout_"): v for k, v in heldout[-1].items() if k != "step"}
            line = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            log.info("pretrain: step %d/%d  held-out: %s", heldout[-1]["step"], self.num_steps, line)

    def _count(self, row: Row) -> None:
        steps, self._step = row["step"] - self._step, row["step"]
        if steps > 0 and row["step"] > 1 and "loss" in row:  # the first step compiles; a resumed run steps back
            self._windows.append((steps, row["tokens"] / row["tokens_per_second"]))

    def _log_losses(self, row: Row) -> None:
        steps, seconds = (sum(column) for column in zip(*self._windows, strict=True)) if self._windows else (0, 0.0)
        left = timedelta(seconds=round((self.num_steps - self._step) * seconds / steps)) if steps else "unknown"
        log.info(
            "pretrain: step %d/%d  loss %.4f  lr %.2e  %s tokens/s  ETA %s",
            *(row["step"], self.num_steps, row["loss"], row["learning_rate"]),
            *(f"{row['tokens_per_second']:,.0f}", left),
        )
