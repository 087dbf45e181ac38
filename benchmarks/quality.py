"""Held-out loss over time, compared with transformers' Trainer: same text, pairs, masks and machine, one run.

    python -m benchmarks.quality [--recipe small] [--minutes 10] [--text FILE] [--runs FILE] [--picture PNG] [--json]

    Trainer at its best     AdamW with the recipe's betas, epsilon, decay and clipping at its best rate, bfloat16 and
                            torch.compile where the processor has bf16 units, batches padded to their longest row
    Trainer as it comes     its own optimizer settings, float32, no torch.compile, rows padded to the full length
    ours, BERT's start      the recipe with AdamW at its best rate and unstructured random weights
    ours, as shipped        the recipe

Each trains for the given minutes under a schedule that ends there. A figure is the minutes of training until the
held-out MLM loss reaches the loss with which the best Trainer ends. The clock counts steps only: no imports,
compilation or held-out measurements. The held-out loss is computed by the same code for all. All sides but the last
start from the same weights.

The two sides with AdamW are tuned in the same way: each of RATES is tried for a quarter of the minutes, under a
schedule that ends there; the rate with the lowest held-out loss trains for all of them. If that run diverges, the next
lower rate follows. A short run prefers higher rates than a long one (LOG.md), so the tries may choose too high a rate.
"ours, as shipped" also trains under schedules of SHORTER shares, until one reaches the loss.

This takes 2 x (3/4 + 1) + 1 + 1 = 5.5 times the minutes of training, up to 0.5 times for the shorter schedules, a run
of PACE_STEPS steps for each side, and for each of the 14 runs or so about a minute of imports, compilation and held-out
measurements: about 70 minutes with --minutes 10 (computed). With --runs, each finished run becomes a line of the file,
and the same command repeats none of them.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.children import MeasurementError, measure
from benchmarks.curves import COMPILING, Curve, prepare_datasets, recipe_on, seconds_to
from benchmarks.machine import bf16_units, described, machine, on_all
from benchmarks.rows import Row, tell
from benchmarks.training import ACCELERATE
from bert_pipeline.core.tables import Table
from bert_pipeline.recipe import Recipe
from bert_pipeline.settings import home

RATES = (3e-4, 7.5e-4, 1.5e-3)
"""Learning rates of AdamW to choose from."""
TRY = 1 / 4
"""The share of the minutes for which each rate is tried."""
SHORTER = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Shares of the minutes for which "ours, as shipped" is also trained."""
PACE_STEPS = 60
"""Steps of the run that measures the pace of a side, from which the number of its steps follows."""
LEAST_STEPS = 2 * COMPILING
MEASUREMENTS = 12
"""Held-out measurements of a run."""
HELDOUT_PAIRS = 1000
RISE = 1.0
"""A run whose held-out loss ends more nats than this above its lowest one has diverged."""

BEST, AS_IT_COMES = "Trainer at its best", "Trainer as it comes"
PUBLISHED_START, SHIPPED = "ours, BERT's start", "ours, as shipped"


@dataclass(frozen=True)
class Schedule:
    """`learning_rate` None: the side has a rate and a warm-up of its own."""

    num_steps: int
    eval_every: int
    learning_rate: float | None = None
    warmup_steps: int = 0


@dataclass(frozen=True)
class Side:
    learn: Callable[[Schedule], Curve]
    rates: Sequence[float | None] = (None,)
    """Learning rates to choose from, in rising order."""


Run = dict[str, Any]
"""A line of --runs: side, share (of the minutes; 0: the pace), learning_rate, warmup_steps, steps, seconds, mlm_loss,
mlm_accuracy, diverged, curve."""


def sides(folder: Path, recipe: Recipe, cores: Sequence[int], precision: str) -> dict[str, Side]:
    """The four sides by name; `precision` is that of all but the Trainer as it comes."""
    environment = on_all(cores) | {"BERT_PIPELINE_ACCELERATE_CONFIG": ACCELERATE["cpu", precision]}
    compiled = precision == "bf16"

    def learn(module: str, schedule: Schedule, **arguments: Any) -> Curve:
        return measure(
            f"benchmarks.{module}",
            "learn",
            cores=set(cores),
            environment=environment,
            folder=folder,
            num_steps=schedule.num_steps,
            eval_every=schedule.eval_every,
            heldout_pairs=HELDOUT_PAIRS,
            **arguments,
        )["curve"]

    def peer(schedule: Schedule, **arguments: Any) -> Curve:
        rate = {"learning_rate": schedule.learning_rate, "warmup_steps": schedule.warmup_steps}
        return learn("peers.transformers_quality", schedule, places=2**62, **rate, **arguments)

    def ours(schedule: Schedule, chosen: Recipe) -> Curve:
        return learn("curves", schedule, recipe=chosen.model_dump(mode="json"))

    return {
        BEST: Side(lambda each: peer(each, full_length=False, compiled=compiled, precision=precision), RATES),
        AS_IT_COMES: Side(lambda each: peer(each, full_length=True, compiled=False, precision="float32")),
        PUBLISHED_START: Side(lambda each: ours(each, published_start(recipe, each)), RATES),
        SHIPPED: Side(lambda each: ours(each, recipe)),
    }


def published_start(recipe: Recipe, schedule: Schedule) -> Recipe:
    """The recipe with AdamW, unstructured random weights, and one phase at its last length."""
    chosen = recipe.model_dump(mode="json")
    chosen["model"]["structured_attention_layers"] = 0
    phase = {
        "num_steps": schedule.num_steps,
        "learning_rate": schedule.learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "muon_learning_rate": None,
        "learning_rate_handover": None,
    }
    chosen["pretrain"] |= {"optimizer": "adamw", "phases": [chosen["pretrain"]["phases"][-1] | phase]}
    return Recipe.model_validate_json(json.dumps(chosen))


def warmup(num_steps: int) -> int:
    """A tenth of the steps, at least 100, at most half of them.

    The loss of a Trainer that reached 1.5e-3 in 32 steps spiked to 12 (LOG.md).
    """
    return min(max(num_steps // 10, 100), num_steps // 2)


def rise(guessing: float, curve: Curve) -> float:
    """By how much the last loss is above the lowest one, or above that of guessing. A spike on the way is none."""
    losses = [point["mlm_loss"] for point in curve]
    return losses[-1] - min(guessing, *losses)


class Runs:
    """Trains the sides for shares of the minutes. Runs that `file` has, with the same `about`, are not repeated."""

    def __init__(
        self, sides: Mapping[str, Side], minutes: float, guessing: float, about: Mapping[str, Any], file: Path | None
    ) -> None:
        """`guessing`: the loss of a model that has learnt nothing."""
        self.sides, self.minutes, self.guessing, self.about, self.file = sides, minutes, guessing, about, file
        lines = file.read_text(encoding="utf-8").splitlines() if file and file.exists() else []
        self.finished = [line["run"] for line in map(json.loads, lines) if line["about"] == about]

    def run(self, name: str, share: float, learning_rate: float | None) -> Run:
        key = {"side": name, "share": share, "learning_rate": learning_rate}
        for run in self.finished:
            if key.items() <= run.items():
                return run
        num_steps = max(LEAST_STEPS, round(60 * share * self.minutes / self.pace(name))) if share else PACE_STEPS
        warmup_steps = 0 if learning_rate is None else warmup(num_steps)
        eval_every = num_steps // MEASUREMENTS if share else num_steps
        schedule = Schedule(num_steps, eval_every, learning_rate, warmup_steps)
        run = key | {"warmup_steps": warmup_steps, "steps": num_steps} | self._train(self.sides[name], schedule)
        tell(", ".join(f"{head} {cell}" for head, cell in zip(HEAD, _cells(run), strict=True) if cell))
        self.finished.append(run)
        if self.file:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"about": self.about, "run": run}) + "\n")
        return run

    def pace(self, name: str) -> float:
        """Seconds per step, at the lowest rate."""
        run = self.run(name, 0, self.sides[name].rates[0])
        return run["seconds"] / run["steps"]

    def _train(self, side: Side, schedule: Schedule) -> Run:
        """Losses that are no numbers are left out of the curve."""
        try:
            curve = side.learn(schedule)
        except MeasurementError as error:
            if "not finite" not in str(error):  # our trainer stops after a few such gradients
                raise
            curve = []
        finite = [point for point in curve if math.isfinite(point["mlm_loss"])]
        end = finite[-1] if finite else {"mlm_loss": None, "mlm_accuracy": None}
        return {
            "seconds": curve[-1]["seconds"] if curve else 0.0,
            **{name: end[name] for name in ("mlm_loss", "mlm_accuracy")},
            "diverged": not curve or len(finite) < len(curve) or rise(self.guessing, finite) > RISE,
            "curve": finite,
        }


def train_whole(runs: Runs, name: str) -> list[Run]:
    """Try the rates of a side, then train for all of the minutes with the best one; return all of these runs.

    A whole run that diverges is followed by one at the next lower rate.
    """
    rates = runs.sides[name].rates
    tries = [runs.run(name, TRY, rate) for rate in rates] if len(rates) > 1 else []
    whole: list[Run] = []
    for rate in in_order_of_promise(tries) if tries else rates:
        whole.append(runs.run(name, 1, rate))
        if not whole[-1]["diverged"]:
            return tries + whole
    raise SystemExit(f"{name}: every rate diverged; remedy: a lower one in RATES")


def in_order_of_promise(tries: Sequence[Run]) -> list[float]:
    """The rate with the lowest loss, then the lower ones from high to low."""
    sound = [run for run in tries if not run["diverged"]]
    best = min(sound, key=lambda run: run["mlm_loss"], default=tries[0])["learning_rate"]
    return sorted((run["learning_rate"] for run in tries if run["learning_rate"] <= best), reverse=True)


def compare(runs: Runs, recipe: str) -> dict[str, Any]:
    """All runs in their order, the loss to reach, and a row for each other side."""
    found = {name: train_whole(runs, name) for name in (BEST, AS_IT_COMES, PUBLISHED_START)}
    target = min(run["mlm_loss"] for name in (BEST, AS_IT_COMES) for run in found[name] if is_whole(run))
    found[SHIPPED] = []
    for share in SHORTER:
        found[SHIPPED].append(runs.run(SHIPPED, share, None))
        if seconds_to(target, [found[SHIPPED][-1]["curve"]]):
            break
    found[SHIPPED] += train_whole(runs, SHIPPED)
    ours = seconds_to(target, [run["curve"] for run in found[SHIPPED]])
    rows = [_row(recipe, name, target, ours, list(filter(is_whole, found[name]))) for name in found if name != SHIPPED]
    return {"mlm_loss": target, "runs": [run for name in found for run in found[name]], "rows": rows}


def is_whole(run: Run) -> bool:
    """Trained for all of the minutes, to the end."""
    return run["share"] == 1 and not run["diverged"]


def _row(recipe: str, name: str, target: float, ours: float | None, whole: Sequence[Run]) -> Row:
    """A side that never reaches the loss counts with all of its minutes: the ratio is then a lower bound."""
    reached = seconds_to(target, [run["curve"] for run in whole])
    spent = reached or whole[-1]["seconds"]
    return {
        "name": recipe,
        "ours": ours and ours / 60,
        "peer": spent / 60,
        "peer_name": name,
        "unit": "minutes",
        "ratio": ours and spent / ours,
        "peer_reached": reached is not None,
    }


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Held-out loss over minutes of training, one colour for each side; without the tries of rates."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(run["side"] for run in result["runs"])):
        for run in result["runs"]:
            if run["side"] != name or not (name == SHIPPED or is_whole(run)):
                continue
            label = name if is_whole(run) else None
            minutes = [point["seconds"] / 60 for point in run["curve"]]
            losses = [point["mlm_loss"] for point in run["curve"]]
            axes.plot(minutes, losses, marker=".", linewidth=1, color=f"C{number}", label=label)
    axes.axhline(result["mlm_loss"], color="0.7", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="minutes of training", ylabel="held-out MLM loss (nats)")
    axes.legend()
    figure.savefig(path, dpi=80)


HEAD = ("side", "rate", "warm-up", "steps", "minutes", "held-out MLM loss", "accuracy", "diverged")


def _cells(run: Run) -> tuple[str, ...]:
    own_rate, lost = run["learning_rate"] is None, run["mlm_loss"] is None
    return (
        run["side"],
        "" if own_rate else f"{run['learning_rate']:g}",
        "" if own_rate else f"{run['warmup_steps']:,}",
        f"{run['steps']:,}",
        f"{run['seconds'] / 60:.1f}",
        "" if lost else f"{run['mlm_loss']:.3f}",
        "" if lost else f"{run['mlm_accuracy']:.3f}",
        "yes" if run["diverged"] else "",
    )


def table(result: Mapping[str, Any]) -> str:
    text = result["text"]
    rows = [
        (
            row["peer_name"],
            f"{row['peer']:.2f}" if row["peer_reached"] else f"more than {row['peer']:.1f}",
            "not reached" if row["ours"] is None else f"{row['ours']:.2f}",
            "-" if row["ratio"] is None else f"{'' if row['peer_reached'] else '> '}{row['ratio']:.1f}x",
        )
        for row in result["rows"]
    ]
    return "\n".join(
        [
            described(result["machine"]),
            f"{text['name']}: {text['documents']:,} documents, {text['words'] / 1e6:.1f} M words; "
            f"{text['vocab_size']:,} pieces in the vocabulary",
            "",
            Table(HEAD, [_cells(run) for run in result["runs"]]).text(),
            f"Minutes until the held-out MLM loss is {result['mlm_loss']:.3f}:",
            "",
            Table(("beside", "its minutes", "ours, as shipped", "ratio"), rows).text(),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="small", help="name of a recipe (default: small)")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of training of each side (default: 10)")
    parser.add_argument("--text", metavar="FILE", help="text to train on instead of the recipe's")
    parser.add_argument("--runs", type=Path, metavar="FILE", help="file of finished runs, which are not repeated")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="write the curves to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    recipe = recipe_on(parser, arguments.recipe, arguments.text)
    cores = sorted(os.sched_getaffinity(0))
    home().mkdir(parents=True, exist_ok=True)
    measured_on = machine(cores, "accelerate", "torch", "transformers") | {"bf16_units": bf16_units()}
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        prepared = prepare_datasets(recipe, work, cores)
        facts = {name: prepared[name] for name in ("documents", "words", "vocab_size")}
        text = {"name": Path(recipe.corpus.path).name or "generated sample", **facts}
        about = {"machine": measured_on, "text": text, "minutes": arguments.minutes}
        runs = Runs(
            sides(Path(work), recipe, cores, "bf16" if bf16_units() else "float32"),
            arguments.minutes,
            math.log(prepared["vocab_size"]),
            about | {"recipe": recipe.model_dump(mode="json")},
            arguments.runs,
        )
        result = about | compare(runs, recipe.name)
    if arguments.picture:
        draw(result, arguments.picture)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
