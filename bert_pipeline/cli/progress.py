"""Progress on standard error: a bar where it is a terminal, else the log lines of core.progress."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bert_pipeline.core.printable import log_to_stderr, printable
from bert_pipeline.core.progress import Progress, show_progress_with

if TYPE_CHECKING:
    from rich.live import Live

SECONDS_BETWEEN_DRAWINGS = 0.1


class Bar:
    """The bar of the latest Progress, in the last line of the terminal."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._drawn = 0.0
        self._lock = threading.RLock()  # downloads advance from several threads

    def draw(self, progress: Progress, line: str) -> None:
        with self._lock:
            if time.monotonic() - self._drawn < SECONDS_BETWEEN_DRAWINGS:
                return
            self._drawn = time.monotonic()
            self._draw(progress.done / progress.total if progress.total else 0.0, line)

    def clear(self) -> None:
        """Erase the bar; the next `draw` starts another."""
        with self._lock:
            if self._live:
                self._live.stop()
                self._live = None

    def _draw(self, share: float, line: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(1.0, share, width=24), Text(printable(line), no_wrap=True, overflow="ellipsis"))
        if self._live is None:
            console = Console(stderr=True)
            # No thread of rich refreshes the bar, and rich does not replace sys.stdout and sys.stderr.
            options = {"auto_refresh": False, "transient": True, "redirect_stdout": False, "redirect_stderr": False}
            self._live = Live(console=console, **options)  # type: ignore[arg-type]
            self._live.start()
            console.show_cursor(True)  # a killed process must not leave the terminal without a cursor
        self._live.update(row, refresh=True)


BAR = Bar()


@contextmanager
def progress_on_stderr() -> Iterator[None]:
    """Log to standard error; if that is a terminal, show progress as a bar below the log lines."""
    log_to_stderr()
    if not sys.stderr.isatty():
        yield
        return
    for handler in logging.getLogger().handlers:
        handler.addFilter(_clear_before_a_line)
    show_progress_with(BAR.draw)
    try:
        yield
    finally:
        show_progress_with(None)
        BAR.clear()
        for handler in logging.getLogger().handlers:
            handler.removeFilter(_clear_before_a_line)


def clear_progress() -> None:
    """Erase the bar before something else is printed to the terminal."""
    BAR.clear()


def _clear_before_a_line(record: logging.LogRecord) -> bool:
    BAR.clear()
    return True
