"""Processes of this machine, read from /proc (`ps` truncates its lines to COLUMNS), and waiting for what they do."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PATIENCE_SECONDS = 300
"""Much longer than anything that a test waits for takes on a busy machine: only what hangs takes so long."""


def eventually(ready: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> float:
    """Wait until `ready()`; return the seconds that took."""
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < seconds, f"not ready after {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - begun


def commands(parent: int | None = None) -> dict[int, list[str]]:
    """Return the arguments of each running process by its id: of all, or only of the children of `parent`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
            if command and parent in (None, started_by):  # a zombie has no command line
                found[int(folder.name)] = command.decode(errors="replace").rstrip("\0").split("\0")
    return found
