"""Tables as text: aligned columns for terminals and logs, Markdown for pages; sizes in bytes as text."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Rows of text with a heading for every column."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Aligned columns, a rule of at most 120 characters below the headings."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([text[0], "-" * min(max(map(len, text)), 120), *text[1:], ""])

    def markdown(self) -> str:
        return markdown_table(self.head, self.rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells must be safe for Markdown (see printable.plain)."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rows))


def byte_size(count: float) -> str:
    """A number of bytes in decimal units, with one decimal: `1.5 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
