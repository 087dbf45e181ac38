"""Progress of long work: a log line every few seconds with rate and remaining time.

It uses Python's logging, so a terminal and Dagster's event log show the same line.
"""

import logging
import time
from datetime import timedelta

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
SHARE_BETWEEN_LINES = 1 / 60
"""Share of the elapsed time: long work logs less often, because event logs keep every line."""


class LineTimer:
    """Decides whether the next line is due, given the seconds since the work began."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, seconds: float) -> bool:
        if seconds - self._last < max(SECONDS_BETWEEN_LINES, seconds * SHARE_BETWEEN_LINES):
            return False
        self._last = seconds
        return True


class Progress:
    """Logs how much of `total` units of work is done. `what` names the stage; `total` may be unknown."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._started = time.monotonic()
        self._due = LineTimer()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; log a line if one is due, and at the end."""
        self.done += units
        seconds = time.monotonic() - self._started
        if self._due(seconds) or self.done == self.total:
            log.info("%s", self._line(seconds) + (f"  {note}" if note else ""))

    def _line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        if self.total is None:
            return f"{self.what}: {self.done:,} {self.unit}  {rate:,.1f} {self.unit}/s"
        left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        return f"{self.what}: {self.done:,}/{self.total:,} {self.unit}  {rate:,.1f} {self.unit}/s  ETA {left}"
