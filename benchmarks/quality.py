"""Held-out loss over time, compared with transformers' Trainer: same text, pairs, masks and machine, one run.

    python -m benchmarks.quality [--recipe small] [--minutes 10] [--text FILE] [--runs FILE] [--picture PNG] [--json]

    Trainer at its best     AdamW at its best rate and decay with the recipe's betas, epsilon and clipping; bfloat16 and
                            torch.compile where the processor has bf16 units; batches padded to their longest row
    Trainer as it comes     its own optimizer settings, float32, no torch.compile, rows padded to the full length
    ours, BERT's start      the recipe with the same AdamW and unstructured random weights
    ours, as shipped        the recipe

Each trains for the given minutes under a schedule that ends there. A figure is the minutes of training until the
held-out MLM loss reaches the loss with which the best Trainer ends. The clock counts steps only: no imports,
compilation or held-out measurements. The held-out loss is computed by the same code for all. All sides but the last
start from the same weights.

AdamW is tuned for the Trainer: each of RATES, and at the best one each of DECAYS, is tried under the schedule that the
Trainer has, with as many steps. Our trainer computes these tries: it is faster, and gives the same losses
(tests/benchmarks/test_quality.py). If a run with the best settings diverges, one at the next lower rate follows.
"ours, as shipped" also trains under schedules of SHORTER shares of the minutes, until one reaches the loss.

This takes four times the minutes of training, about half of the minutes for each try, up to half of them for the
shorter schedules, and for each of the 15 runs or so about a minute of imports, compilation and held-out measurements:
about 80 minutes with --minutes 10 (computed). With --runs, each finished run becomes a line of the file, and the same
command repeats none of them.
"""

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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

RATES = (3e-4, 7.5e-4, 1.5e-3, 3e-3)
"""Learning rates of AdamW to choose from."""
DECAYS = (0.01, 0.1)
"""Weight decays of AdamW to choose from; the rates are tried with the first."""
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
class AdamW:
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Schedule:
    """`adamw` None: the side has settings and a warm-up of its own."""

    num_steps: int
    eval_every: int
    adamw: AdamW | None = None
    warmup_steps: int = 0


Side = Callable[[Schedule], Curve]
"""Trains a model under a schedule."""

Run = dict[str, Any]
"""A line of --runs: side, share (of the minutes; 0: the pace), steps_of, learning_rate, weight_decay, warmup_steps,
steps, seconds, mlm_loss, mlm_accuracy, diverged, curve."""


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
        adamw = asdict(schedule.adamw) | {"warmup_steps": schedule.warmup_steps} if schedule.adamw else None
        return learn("peers.transformers_quality", schedule, places=2**62, adamw=adamw, **arguments)

    def ours(schedule: Schedule, chosen: Recipe) -> Curve:
        return learn("curves", schedule, recipe=chosen.model_dump(mode="json"))

    return {
        BEST: lambda each: peer(each, full_length=False, compiled=compiled, precision=precision),
        AS_IT_COMES: lambda each: peer(each, full_length=True, compiled=False, precision="float32"),
        PUBLISHED_START: lambda each: ours(each, published_start(recipe, each)),
        SHIPPED: lambda each: ours(each, recipe),
    }


def published_start(recipe: Recipe, schedule: Schedule) -> Recipe:
    """The recipe with AdamW, unstructured random weights, and one phase at its last length."""
    assert schedule.adamw, "its settings are given"
    chosen = recipe.model_dump(mode="json")
    chosen["model"]["structured_attention_layers"] = 0
    phase = {
        "num_steps": schedule.num_steps,
        "learning_rate": schedule.adamw.learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "muon_learning_rate": None,
        "learning_rate_handover": None,
    }
    phases = [chosen["pretrain"]["phases"][-1] | phase]
    chosen["pretrain"] |= {"optimizer": "adamw", "weight_decay": schedule.adamw.weight_decay, "phases": phases}
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

    def run(self, name: str, share: float, adamw: AdamW | None = None, steps_of: str = "") -> Run:
        """Train a side for a share of the minutes (0: for PACE_STEPS), or as many steps as `steps_of` has in them."""
        settings = asdict(adamw) if adamw else {"learning_rate": None, "weight_decay": None}
        key = {"side": name, "share": share, "steps_of": steps_of or name, **settings}
        for run in self.finished:
            if key.items() <= run.items():
                return run
        pace = self._seconds_per_step(steps_of or name, adamw) if share else 0
        num_steps = max(LEAST_STEPS, round(60 * share * self.minutes / pace)) if share else PACE_STEPS
        schedule = Schedule(
            num_steps,
            eval_every=num_steps if share == 0 else num_steps // MEASUREMENTS,
            adamw=adamw,
            warmup_steps=warmup(num_steps) if adamw else 0,
        )
        about = {"warmup_steps": schedule.warmup_steps, "steps": num_steps}
        run = key | about | self._train(self.sides[name], schedule)
        tell(", ".join(f"{head} {cell}" for head, cell in zip(HEAD, _cells(run), strict=True) if cell))
        self.finished.append(run)
        if self.file:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"about": self.about, "run": run}) + "\n")
        return run

    def _seconds_per_step(self, name: str, adamw: AdamW | None) -> float:
        run = self.run(name, 0, adamw and AdamW(RATES[0], DECAYS[0]))
        return run["seconds"] / run["steps"]

    def _train(self, side: Side, schedule: Schedule) -> Run:
        """Losses that are no numbers are left out of the curve."""
        try:
            curve = side(schedule)
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


def tune(runs: Runs) -> list[Run]:
    """Each of RATES, and at the best one each of DECAYS, with our trainer in the steps of the other."""

    def attempt(rate: float, decay: float) -> Run:
        return runs.run(PUBLISHED_START, 1, AdamW(rate, decay), steps_of=BEST)

    of_rates = [attempt(rate, DECAYS[0]) for rate in RATES]
    return of_rates + [attempt(best(of_rates)["learning_rate"], decay) for decay in DECAYS[1:]]


def best(tries: Sequence[Run]) -> Run:
    """The one with the lowest loss of those that did not diverge."""
    sound = [run for run in tries if not run["diverged"]]
    return min(sound, key=lambda run: run["mlm_loss"], default=tries[0])


def train_whole(runs: Runs, name: str, tries: Sequence[Run]) -> list[Run]:
    """Train for all of the minutes with the best settings. A run that diverges is followed by one at the next lower
    rate; return all of them.
    """
    chosen = best(tries)
    whole: list[Run] = []
    for rate in sorted((rate for rate in RATES if rate <= chosen["learning_rate"]), reverse=True):
        whole.append(runs.run(name, 1, AdamW(rate, chosen["weight_decay"])))
        if not whole[-1]["diverged"]:
            return whole
    raise SystemExit(f"{name}: every rate diverged; remedy: a lower one in RATES")


def compare(runs: Runs, recipe: str) -> dict[str, Any]:
    """All runs in their order, the loss to reach, and a row for each other side."""
    tries = tune(runs)
    found = {
        BEST: train_whole(runs, BEST, tries),
        AS_IT_COMES: [runs.run(AS_IT_COMES, 1)],
        PUBLISHED_START: tries + train_whole(runs, PUBLISHED_START, tries),
        SHIPPED: [],
    }
    target = min(run["mlm_loss"] for name in (BEST, AS_IT_COMES) for run in found[name] if is_whole(run))
    for share in SHORTER:
        found[SHIPPED].append(runs.run(SHIPPED, share))
        if seconds_to(target, [found[SHIPPED][-1]["curve"]]):
            break
    found[SHIPPED].append(runs.run(SHIPPED, 1))
    ours = seconds_to(target, [run["curve"] for run in found[SHIPPED]])
    rows = [_row(recipe, name, target, ours, list(filter(is_whole, found[name]))) for name in found if name != SHIPPED]
    return {"mlm_loss": target, "runs": [run for name in found for run in found[name]], "rows": rows}


def is_whole(run: Run) -> bool:
    """Trained for all of the minutes, to the end."""
    return run["share"] == 1 and run["steps_of"] == run["side"] and not run["diverged"]


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
    """Held-out loss over minutes of training, one colour for each side; without the tries of AdamW."""
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


HEAD = ("side", "rate", "decay", "warm-up", "steps", "minutes", "held-out MLM loss", "accuracy", "diverged")


def _cells(run: Run) -> tuple[str, ...]:
    own_settings, lost = run["learning_rate"] is None, run["mlm_loss"] is None
    return (
        run["side"],
        "" if own_settings else f"{run['learning_rate']:g}",
        "" if own_settings else f"{run['weight_decay']:g}",
        "" if own_settings else f"{run['warmup_steps']:,}",
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
