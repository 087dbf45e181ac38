"""Pictures of facts and of training, as PNG bytes small enough to embed in a web page (under 100 kB).

Drawn with matplotlib's Figure, not with pyplot: no global state, no display, any thread.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

DPI = 80
WIDTH, HEIGHT = 6.4, 3.2  # inches: 512 x 256 pixels


def histogram(edges: Sequence[float], counts: Sequence[float], *, xlabel: str, ylabel: str) -> bytes:
    """Bars between `edges` (one more than `counts`)."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return _png(figure)


def training_curves(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Losses over optimizer steps, in training and on held-out pairs: MLM on the left, NSP (if any) on the right."""
    rows = list(rows)
    losses = [name for name in ("mlm_loss", "nsp_loss") if any(name in row for row in rows)]
    figure = Figure(figsize=(WIDTH * max(1, len(losses)), HEIGHT), layout="constrained")
    for axes, loss in zip(figure.subplots(1, max(1, len(losses)), squeeze=False)[0], losses, strict=False):
        axes.plot(*_series(rows, loss), linewidth=1, label="training")
        axes.plot(*_series(rows, f"heldout_{loss}"), "o-", markersize=4, label="held-out")
        axes.set(xlabel="step", ylabel=f"{loss.removesuffix('_loss').upper()} loss (nats)")
        axes.legend()
    return _png(figure)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
