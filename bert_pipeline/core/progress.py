"""Progress of long work: a log line every few seconds with rate and remaining time.

The lines go to Python's logging, so that Dagster's event log has them. The command line draws a bar in a terminal
instead; then only the last line of each work is logged.
"""

import logging
import time
from collections.abc import Callable
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


_display: "Callable[[Progress, str], None] | None" = None


def show_progress_with(display: "Callable[[Progress, str], None] | None") -> None:
    """Call `display(progress, line)` on every advance instead of logging lines; None: log again."""
    global _display
    _display = display


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
        finished = self.done == self.total
        if _display is None and not finished and not self._due(seconds):
            return
        line = self._line(seconds) + (f"  {note}" if note else "")
        if _display and not finished:
            _display(self, line)
        else:
            log.info("%s", line)

    def _line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        if self.total is None:
            return f"{self.what}: {self.done:,} {self.unit}  {rate:,.1f} {self.unit}/s"
        left = timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        return f"{self.what}: {self.done:,}/{self.total:,} {self.unit}  {rate:,.1f} {self.unit}/s  ETA {left}"
