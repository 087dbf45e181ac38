"""Print answers to standard output: JSON for programs, tables for people.

In a terminal, tables are drawn by rich; in a pipe or a file they are aligned text. Names, ids and texts come from
files that nobody checked: `printable` escapes their control characters, and nothing is interpreted as rich markup.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bert_pipeline.cli.progress import clear_progress
from bert_pipeline.core.printable import printable
from bert_pipeline.core.tables import Table


def show(*parts: Table | str) -> None:
    """Print tables and texts in their order."""
    clear_progress()
    for part in parts:
        if isinstance(part, str):
            print("\n".join(map(printable, part.split("\n"))))
        elif sys.stdout.isatty():
            _draw(_safe(part))
        else:
            print(_safe(part).text())


def show_json(value: Any) -> None:
    clear_progress()
    print(json.dumps(value))


def show_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(facts)
    else:
        show(facts_table(facts))


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Facts and their values; nested facts are indented."""
    return Table(("fact", "value"), list(_rows(facts)))


def _rows(facts: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield indent + name, ""
            yield from _rows(value, indent + "  ")
        else:
            yield indent + name, _value(value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _safe(table: Table) -> Table:
    return Table(table.head, [[printable(cell) for cell in row] for row in table.rows])


def _draw(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    drawing = Drawing(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in table.head:
        drawing.add_column(Text(heading), overflow="fold")
    for row in table.rows:
        drawing.add_row(*map(Text, row))
    Console(file=sys.stdout, highlight=False).print(drawing)
