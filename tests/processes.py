"""Processes of this machine, read from /proc: `ps` truncates its lines to COLUMNS and may not be installed."""

from contextlib import suppress
from pathlib import Path


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
