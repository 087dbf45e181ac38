"""Pictures of facts and of training as PNG bytes, small enough to embed in a web page (under 100 kB).

They use matplotlib's Figure, not pyplot: no global state, no display, usable from any thread.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from PIL import Image

DPI = 80
COLOURS = 64
WIDTH, HEIGHT = 6.4, 3.2  # inches: 512 x 256 pixels
IN_MARGINS = (0.14, 0.17, 0.83, 0.79)
"""Left, bottom, width and height of a single plot: layout="constrained" would take half of the time of a picture."""
NUMBER = StrMethodFormatter("{x:,.10g}")


def histogram(edges: Sequence[float], counts: Sequence[float], *, xlabel: str, ylabel: str) -> bytes:
    """Bars between `edges` (one more than `counts`). Bins of growing width get a logarithmic x axis."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes(IN_MARGINS)
    axes.stairs(counts, edges, fill=True)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.yaxis.set_major_formatter(NUMBER)
    if edges[0] > 0 and edges[-1] - edges[-2] > 2 * (edges[1] - edges[0]):
        axes.set_xscale("log")
        _number_the_decades(axes.xaxis, edges[-1] / edges[0])
    return _png(figure)


def growth(words: Sequence[int], distinct: Sequence[int], exponent: float | None) -> bytes:
    """Distinct words over words read, on logarithmic axes; the label of the fitted line shows the exponent."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes(IN_MARGINS)
    axes.loglog(words, distinct, marker="o", markersize=4, linestyle="", label="counted")
    if exponent is not None:
        height = np.mean(np.log(distinct) - exponent * np.log(words))  # the line's intercept by least squares
        ends = np.array([words[0], words[-1]], float)
        axes.loglog(ends, np.exp(height) * ends**exponent, linewidth=1, label=f"words$^{{{exponent:.2f}}}$")
    axes.set(xlabel="words read", ylabel="distinct words")
    axes.legend()
    _number_the_decades(axes.xaxis, words[-1] / words[0])
    _number_the_decades(axes.yaxis, distinct[-1] / distinct[0])
    return _png(figure)


PANELS = {
    "MLM loss (nats)": {"training": "mlm_loss", "held-out": "heldout_mlm_loss"},
    "NSP loss (nats)": {"training": "nsp_loss", "held-out": "heldout_nsp_loss"},
    "learning rate": {"": "learning_rate"},
    "gradient norm": {"mean": "grad_norm", "largest": "max_grad_norm"},
    "tokens a second": {"": "tokens_per_second"},
    "model FLOPs utilization": {"": "model_flops_utilization"},
}
"""The panels of the training curves: metric of each line, by label."""


def training_curves(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Panels over optimizer steps, in two columns; panels without values in `rows` are left out. Grey lines mark rows
    with a loss spike or a skipped step.
    """
    rows = list(rows)
    panels = {
        title: lines for title, lines in PANELS.items() if any(name in row for name in lines.values() for row in rows)
    }
    columns = 2 if len(panels) > 1 else 1
    lines_of_panels = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines_of_panels), layout="constrained")
    grid = figure.subplots(lines_of_panels, columns, squeeze=False).flatten()
    troubled = [row["step"] for row in rows if row.get("loss_spikes") or row.get("skipped_steps")]
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for step in troubled:
            axes.axvline(step, color="0.8", linewidth=1)
        for label, name in lines.items():
            marks = {"marker": "o", "markersize": 4} if name.startswith("heldout_") else {"linewidth": 1}
            axes.plot(*_series(rows, name), label=label, **marks)
        axes.set(xlabel="step", ylabel=title)
        if "" not in lines:
            axes.legend()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return _png(figure)


MARKS: dict[str, dict[str, Any]] = {
    "this model, 95 % interval": {"marker": "o", "color": "tab:blue"},
    "random weights": {"marker": "o", "color": "tab:orange", "markerfacecolor": "none", "linestyle": ""},
    "general domain": {"marker": "s", "color": "tab:red", "markersize": 5, "linestyle": ""},
    "PubMedBERT": {"marker": "D", "color": "tab:green", "markersize": 5, "linestyle": ""},
    "other published": {"marker": "|", "color": "0.6", "markersize": 10, "linestyle": ""},
}


def task_scores(tasks: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A row for each task: our score with its interval, the score from random weights if measured, published scores."""
    figure = Figure(figsize=(WIDTH, max(1.6, 0.34 * len(tasks) + 1.4)), layout="constrained")
    axes = figure.subplots()
    for row, measured in enumerate(tasks.values()):
        ours = measured["pretrained"]
        for model, score in measured["published"].items():
            axes.plot(100 * score, row, **MARKS["PubMedBERT" if model == "PubMedBERT" else "other published"])
        for score in measured["measured"].values():
            axes.plot(100 * score, row, **MARKS["general domain"])
        if "random_init" in measured:
            axes.plot(100 * measured["random_init"]["score_mean"], row, **MARKS["random weights"])
        axes.plot([100 * ours["low"], 100 * ours["high"]], [row, row], color="tab:blue", linewidth=2)
        axes.plot(100 * ours["score_mean"], row, **MARKS["this model, 95 % interval"])
    handles = [Line2D([], [], label=label, **style) for label, style in MARKS.items()]
    figure.legend(handles=handles, ncols=3, loc="outside upper center", fontsize="x-small")
    axes.set(yticks=range(len(tasks)), yticklabels=list(tasks), xlabel="test score (%)")
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    return _png(figure)


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def arm_scores(
    scores: Mapping[str, Mapping[str, Interval]], differences: Mapping[str, Mapping[str, Interval]]
) -> bytes:
    """A row of panels for each task: the score of each arm as a bar, and its difference to the reference. All with
    their intervals, by task and arm, as fractions.
    """
    arms = list(next(iter(scores.values())))
    height = 0.3 * len(arms) + 0.8
    figure = Figure(figsize=(WIDTH * 1.5, height * len(scores) + 0.2), layout="constrained")
    grid = figure.subplots(len(scores), 2, squeeze=False, sharex="col")
    for (left, right), task in zip(grid, scores, strict=True):
        for row, arm in enumerate(arms):
            score, difference = scores[task][arm], differences[task].get(arm)
            left.barh(row, 100 * score.value, color="tab:blue" if difference else "0.6", height=0.6)
            left.plot([100 * score.low, 100 * score.high], [row, row], color="black", linewidth=1.5)
            if difference:
                right.plot([100 * difference.low, 100 * difference.high], [row, row], color="tab:blue", linewidth=2)
                right.plot(100 * difference.value, row, marker="o", markersize=5, color="tab:blue")
        right.axvline(0, color="0.6", linewidth=1)
        left.set(yticks=range(len(arms)), yticklabels=arms, title=task)
        right.set(yticks=range(len(arms)), yticklabels=[""] * len(arms), ylim=left.get_ylim())
        left.invert_yaxis()
        right.invert_yaxis()
    grid[-1, 0].set(xlabel="test score (%), 95 % interval")
    grid[-1, 1].set(xlabel="difference to the reference, 95 % interval")
    return _png(figure)


def losses_by_arm(curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]]) -> bytes:
    """The held-out loss per word over steps: a colour for each arm, a line for each of its seeds."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    for number, (arm, of_seeds) in enumerate(curves.items()):
        for seed, (steps, losses) in enumerate(of_seeds):
            axes.plot(steps, losses, color=f"C{number}", linewidth=1, label=arm if seed == 0 else None)
    axes.set(xlabel="step", ylabel="held-out loss (nats per word)")
    axes.legend(fontsize="small")
    return _png(figure)


def model_scores(evaluated: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes:
    """A row for each task, and in it a mark for each model: its mean score and its interval."""
    tasks = list(next(iter(evaluated.values())))
    height = max(1.8, 0.2 * len(tasks) * (len(evaluated) + 1) + 1.2)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for number, (model, measured) in enumerate(evaluated.items()):
        rows = np.arange(len(tasks)) + 0.8 * ((number + 0.5) / len(evaluated) - 0.5)
        scores = [measured[task]["pretrained"] for task in tasks]
        colour, label = f"C{number % 10}", model.replace("$", r"\$")
        axes.plot([100 * each["score_mean"] for each in scores], rows, "o", color=colour, label=label)
        low, high = ([100 * each[end] for each in scores] for end in ("low", "high"))
        axes.hlines(rows, low, high, color=colour, linewidth=2)
    figure.legend(ncols=2, loc="outside upper center", fontsize="x-small")
    axes.set(yticks=range(len(tasks)), yticklabels=tasks, xlabel="test score (%), mean and 95 % interval")
    axes.invert_yaxis()
    axes.grid(axis="x", color="0.9")
    return _png(figure)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]


def _number_the_decades(axis: Axis, ratio: float) -> None:
    """Label a logarithmic axis with full numbers: 1, 2 and 5 of each decade if `ratio` of its ends is small, else 1."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1_000 else (1,)))
    axis.set_major_formatter(NUMBER)
    axis.set_minor_locator(NullLocator())


def _png(figure: Figure) -> bytes:
    """The figure as PNG with a palette of COLOURS, which takes a third of the bytes of a full-colour PNG."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    png = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(COLOURS).save(png, "png", optimize=True)
    return png.getvalue()
