"""metrics.jsonl: one JSON object per line, appended by the main process of a training run.

Every row has "step", the number of finished optimizer steps. The launcher follows the file while it grows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append_row(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """All complete rows of a finished or growing file; an empty list if the file does not exist."""
    return list(RowFollower(path).new_rows())


class RowFollower:
    """Reads the rows appended since the last call. A half-written last line is returned by a later call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def new_rows(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            if self.path.stat().st_size < self._position:  # a resumed run removed the rows after its checkpoint
                self._position = 0
            stream.seek(self._position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                yield json.loads(line)
