"""Held-out loss over time, compared with transformers' Trainer: same text, pairs, masks and machine, one run.

    python -m benchmarks.quality [--recipe small] [--minutes 10] [--text FILE] [--picture PNG] [--json]

    Trainer at its best     AdamW at the rate of `small` before Muon, warm-up, bfloat16 and torch.compile where the
                            processor has bf16 units, batches padded to their longest row
    Trainer as it comes     its own optimizer settings, float32, no torch.compile, rows padded to the full length
    ours, BERT's start      the recipe with AdamW (same rate) and random weights as published
    ours, as shipped        the recipe

Each trains for the given minutes under a schedule that ends there; "ours, as shipped" also for shorter ones. A figure
is the minutes of training until the held-out MLM loss reaches the loss with which the best Trainer ends. The clock
counts steps only: no imports, compilation or held-out measurements. The held-out loss is computed by the same code for
all.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.children import Answer, measure
from benchmarks.curves import Curve, prepare_datasets, recipe_on, seconds_to
from benchmarks.machine import bf16_units, described, machine, on_all
from benchmarks.rows import Row, tell
from benchmarks.training import ACCELERATE
from bert_pipeline.core.tables import Table
from bert_pipeline.recipe import Recipe
from bert_pipeline.settings import home

LEARNING_RATE = 1.5e-3
"""Of AdamW without Muon: that of `small` before it used Muon. The Trainer, which does fewer steps and so has a shorter
warm-up, went astray with it in five minutes (LOG.md): to be tuned before its figure is published."""
WARMUP_FRACTION = 0.05
SHORTER = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Shares of the minutes for which "ours, as shipped" is also trained."""
PACE_STEPS = 80
"""Steps of the run that measures the pace of a side, from which the number of its steps follows."""
MEASUREMENTS = 12
"""Held-out measurements of a run."""
HELDOUT_PAIRS = 1000

BEST, AS_IT_COMES = "Trainer at its best", "Trainer as it comes"
PUBLISHED_START, SHIPPED = "ours, BERT's start", "ours, as shipped"

Learn = Callable[[int, int], Answer]
"""Trains for a number of steps, and measures every so many."""


def sides(folder: Path, recipe: Recipe, cores: list[int]) -> dict[str, Learn]:
    """The four sides by name."""
    precision = "bf16" if bf16_units() else "float32"
    environment = on_all(cores) | {"BERT_PIPELINE_ACCELERATE_CONFIG": ACCELERATE["cpu", precision]}

    def run(module: str, **arguments: Any) -> Learn:
        def learn(num_steps: int, eval_every: int) -> Answer:
            steps = {"num_steps": num_steps, "eval_every": eval_every, "heldout_pairs": HELDOUT_PAIRS}
            return measure(
                f"benchmarks.{module}",
                "learn",
                cores=set(cores),
                environment=environment,
                folder=folder,
                **steps,
                **arguments,
            )

        return learn

    def peer(**arguments: Any) -> Learn:
        return run("peers.transformers_quality", warmup_fraction=WARMUP_FRACTION, places=2**62, **arguments)

    compiled = precision == "bf16"
    return {
        BEST: peer(learning_rate=LEARNING_RATE, full_length=False, compiled=compiled, precision=precision),
        AS_IT_COMES: peer(learning_rate=None, full_length=True, compiled=False, precision="float32"),
        PUBLISHED_START: run("curves", recipe=published_start(recipe).model_dump(mode="json")),
        SHIPPED: run("curves", recipe=recipe.model_dump(mode="json")),
    }


def published_start(recipe: Recipe) -> Recipe:
    """The recipe with random weights as published, AdamW, and one phase at its last length."""
    chosen = recipe.model_dump(mode="json")
    chosen["model"]["structured_attention_layers"] = 0
    num_steps = 1000
    schedule = {"learning_rate": LEARNING_RATE, "warmup_steps": round(WARMUP_FRACTION * num_steps)}
    cleared = {"num_steps": num_steps, "muon_learning_rate": None, "learning_rate_handover": None}
    chosen["pretrain"] |= {"optimizer": "adamw", "phases": [chosen["pretrain"]["phases"][-1] | cleared | schedule]}
    return Recipe.model_validate_json(json.dumps(chosen))


def learn_for(minutes: float, learn: Learn, pace: float) -> Curve:
    """`pace`: seconds per step."""
    num_steps = max(MEASUREMENTS, round(60 * minutes / pace))
    return learn(num_steps, max(1, num_steps // MEASUREMENTS))["curve"]


def compare(folder: Path, recipe: Recipe, minutes: float, cores: list[int]) -> dict[str, Any]:
    """All curves by side, the loss to reach, and a row for each other side."""
    curves: dict[str, list[Curve]] = {}
    for name, learn in sides(folder, recipe, cores).items():
        last = learn(PACE_STEPS, PACE_STEPS)["curve"][-1]
        pace = last["seconds"] / last["step"]
        curves[name] = []
        for share in (*(SHORTER if name == SHIPPED else ()), 1):
            curves[name].append(learn_for(share * minutes, learn, pace))
            end = curves[name][-1][-1]
            tell(
                f"{name}, {end['seconds'] / 60:.1f} minutes, {end['step']:,.0f} steps: "
                f"held-out MLM loss {end['mlm_loss']:.3f}, accuracy {end['mlm_accuracy']:.3f}"
            )
    target = min(curves[name][-1][-1]["mlm_loss"] for name in (BEST, AS_IT_COMES))
    ours = seconds_to(target, curves[SHIPPED])
    rows = [_row(recipe.name, name, target, ours, curves[name]) for name in curves if name != SHIPPED]
    return {"mlm_loss": target, "curves": curves, "rows": rows}


def _row(recipe: str, name: str, target: float, ours: float | None, curves: list[Curve]) -> Row:
    """A side that never reaches the loss counts with all of its minutes: the ratio is then a lower bound."""
    reached = seconds_to(target, curves)
    spent = reached or curves[-1][-1]["seconds"]
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
    """Held-out loss over minutes of training, one colour for each side."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, curves) in enumerate(result["curves"].items()):
        for curve in curves:
            label = name if curve is curves[-1] else None
            minutes = [point["seconds"] / 60 for point in curve]
            losses = [point["mlm_loss"] for point in curve]
            axes.plot(minutes, losses, marker=".", linewidth=1, color=f"C{number}", label=label)
    axes.axhline(result["mlm_loss"], color="0.7", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="minutes of training", ylabel="held-out MLM loss (nats)")
    axes.legend()
    figure.savefig(path, dpi=80)


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
    ends = [
        (
            name,
            f"{end['seconds'] / 60:.1f}",
            f"{end['step']:,.0f}",
            f"{end['mlm_loss']:.3f}",
            f"{end['mlm_accuracy']:.3f}",
        )
        for name, curves in result["curves"].items()
        for end in (curve[-1] for curve in curves)
    ]
    return "\n".join(
        [
            described(result["machine"]),
            f"{text['name']}: {text['documents']:,} documents, {text['words'] / 1e6:.1f} M words; "
            f"{text['vocab_size']:,} pieces in the vocabulary",
            "",
            Table(("side", "minutes", "steps", "held-out MLM loss", "accuracy"), ends).text(),
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
    parser.add_argument("--picture", type=Path, metavar="PNG", help="write the curves to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    recipe = recipe_on(parser, arguments.recipe, arguments.text)
    cores = sorted(os.sched_getaffinity(0))
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        prepared = prepare_datasets(recipe, work, cores)
        compared = compare(Path(work), recipe, arguments.minutes, cores)
    measured_on = machine(cores, "accelerate", "torch", "transformers") | {"bf16_units": bf16_units()}
    text = {"name": Path(recipe.corpus.path).name or "generated sample", **prepared}
    result = {"machine": measured_on, "text": text, "minutes": arguments.minutes, **compared}
    if arguments.picture:
        draw(result, arguments.picture)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
