"""Show a run of the graph: live in a terminal, else as a few lines."""

import logging
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bert_pipeline.core.printable import one_record, printable
from bert_pipeline.formats.metrics import Row

if TYPE_CHECKING:
    from rich.console import RenderableType

LOSS = re.compile(r"^pretrain: step [\d/]+  loss (?P<loss>\d+\.\d+)")
HELDOUT = re.compile(r"^pretrain: step [\d/]+  held-out: ")
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 48
"""Most characters of a sparkline."""
SECONDS_OF_SILENCE = 60.0
"""After so long, a pipe or file gets the next line of the running stage, too."""


@dataclass
class Stage:
    """A step of the run: when it began and ended, its newest log line, and the losses of its training."""

    name: str
    began: float
    ended: float | None = None
    failed: bool = False
    line: str = ""

    @property
    def seconds(self) -> float:
        return (self.ended or time.time()) - self.began


class Stages:
    """What a run has done so far, from the rows of its log."""

    def __init__(self) -> None:
        self.all: dict[str, Stage] = {}
        self.losses: list[float] = []

    def add(self, row: Row) -> Stage | None:
        """Count a row; return the stage that it ended, if any."""
        if row["step"] is None:
            return None
        stage = self.all.setdefault(row["step"], Stage(row["step"], row["time"]))
        if row["event"] is None:
            stage.line = row["message"]
            if found := LOSS.match(row["message"]):
                self.losses.append(float(found["loss"]))
        elif row["event"] in ("STEP_SUCCESS", "STEP_FAILURE"):
            stage.ended, stage.failed = row["time"], row["event"] == "STEP_FAILURE"
            return stage
        return None


class Lines:
    """For pipes and files: one line for each stage that ended, each measurement on held-out text, each warning, and
    each minute without any of these.
    """

    def __init__(self) -> None:
        self.stages = Stages()
        self._printed = math.inf
        """Time of the row that was printed last; at the start, of the first row."""

    def __call__(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._printed = min(self._printed, row["time"])
            if stage := self.stages.add(row):
                state = "failed" if stage.failed else "done"
                self._print(f"{stage.name}: {state} in {_duration(stage.seconds)}", row["time"])
            elif row["event"] is None and (
                row["level"] >= logging.WARNING
                or HELDOUT.match(row["message"])
                or (row["step"] and row["time"] - self._printed >= SECONDS_OF_SILENCE)
            ):
                self._print(row["message"], row["time"])

    def _print(self, text: str, at: float) -> None:
        print(one_record(text), file=sys.stderr, flush=True)
        self._printed = at


class Live:
    """The stages with their times, the newest line of the running one, and the loss as a sparkline. For a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as Drawing

        self.stages = Stages()
        self.console = Console(stderr=True, highlight=False)
        self._drawing = Drawing(console=self.console, auto_refresh=False)

    def __enter__(self) -> "Live":
        self._drawing.start()
        self.console.show_cursor(True)  # a killed process must not leave the terminal without a cursor
        return self

    def __exit__(self, *error: Any) -> None:
        self._drawing.stop()

    def __call__(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.stages.add(row)
            if row["event"] is None and row["level"] >= logging.WARNING:
                self.console.print(one_record(row["message"]), style="yellow", markup=False)
        self._drawing.update(self._picture(), refresh=True)

    def _picture(self) -> "RenderableType":
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=1)
        table.add_column(width=max(map(len, self.stages.all), default=1))
        table.add_column(width=8, justify="right")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for stage in self.stages.all.values():
            running = stage.ended is None
            mark, style = ("▸", "bold") if running else ("✗", "red") if stage.failed else ("✓", "green")
            line = printable(stage.line.removeprefix(f"{stage.name}: ")) if running else ""
            table.add_row(Text(mark, style=style), stage.name, _duration(stage.seconds), Text(line))
        if not self.stages.all:
            table.add_row("▸", "", "", "loading the graph")
        if self.stages.losses:
            losses = self.stages.losses
            curve = f"{sparkline(losses)}  {losses[0]:.2f} → {losses[-1]:.2f}"
            table.add_row("", "loss", "", Text(curve, style="cyan"))
        return table


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """The values as bars, lowest to highest; more than `width` values are averaged in groups of about equal size."""
    count = min(len(values), width)
    groups = [values[n * len(values) // count : (n + 1) * len(values) // count] for n in range(count)]
    means = [sum(group) / len(group) for group in groups]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1)) if span else 0] for mean in means)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
