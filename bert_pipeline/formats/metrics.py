"""metrics.jsonl: one JSON object a line, written by the main process of a training run.

Every row has "step" (optimizer steps finished). The launcher follows the file while it grows.
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
    """All whole rows of a finished or growing file; none where there is no file yet."""
    return list(RowFollower(path).new_rows())


class RowFollower:
    """Reads the rows that were appended since the last look; a half-written last line waits for the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def new_rows(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            if self.path.stat().st_size < self._position:  # a resumed run cut off what came after its checkpoint
                self._position = 0
            stream.seek(self._position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                yield json.loads(line)
