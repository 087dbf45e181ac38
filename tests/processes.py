"""Processes of this machine, read from /proc: `ps` cuts its lines to COLUMNS, and need not be installed."""

from contextlib import suppress
from pathlib import Path


def commands(parent: int | None = None) -> dict[int, list[str]]:
    """The arguments of each process that has not ended, by its number; of all, or of those that `parent` started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
            if command and parent in (None, started_by):  # one that has ended and was not waited for has none
                found[int(folder.name)] = command.decode(errors="replace").rstrip("\0").split("\0")
    return found
