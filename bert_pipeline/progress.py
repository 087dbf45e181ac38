"""Progress of long work: one line every few seconds, with rate and time left.

It goes to Python's logging, so a terminal and Dagster's event log show the same line.
"""

import logging
import time
from datetime import timedelta

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
LINES_AT_MOST = 60
"""...of a stage that goes on: later lines wait for a sixtieth of the time gone, since event logs keep them all."""


class Progress:
    """Tells how far `total` units of work have come. `what` is the stage, `unit` what is counted."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._started = self._told = time.monotonic()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; a line is written when the last one is old enough, and at the end."""
        self.done += units
        now = time.monotonic()
        if self.done == self.total or now - self._told >= max(
            SECONDS_BETWEEN_LINES, (now - self._started) / LINES_AT_MOST
        ):
            self._told = now
            log.info("%s", self._line(now - self._started) + (f"  {note}" if note else ""))

    def _line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        if self.total is None:
            return f"{self.what}: {self.done:,} {self.unit}  {rate:,.1f} {self.unit}/s"
        left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        return f"{self.what}: {self.done:,}/{self.total:,} {self.unit}  {rate:,.1f} {self.unit}/s  ETA {left}"
