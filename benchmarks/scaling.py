"""How the held-out loss depends on the width of the model and the number of steps.

    python -m benchmarks.scaling --runs FILE [--recipe small] [--widths 192 256 384] [--steps 500 1000 3000]
                                 [--text FILE] [--picture PNG] [--json]

The recipe's model is trained at every width (fitting/shapes.py) under a schedule of every length. Each finished run
becomes a line of --runs; runs that it has are not repeated. Then a `Relation` (fitting/loss.py) is fitted to all lines
of the same recipe and text: its constants are those of `bert-pipeline init`. Without --widths, nothing is trained.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from benchmarks.children import measure
from benchmarks.curves import prepare_datasets, recipe_on
from benchmarks.machine import bf16_units, described, machine, on_all
from benchmarks.rows import tell
from benchmarks.training import ACCELERATE
from bert_pipeline.core.tables import Table
from bert_pipeline.fitting.loss import Relation
from bert_pipeline.fitting.shapes import encoder_weights, scaled
from bert_pipeline.recipe import ModelRecipe, Recipe
from bert_pipeline.settings import home
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.model.flops import training_flops

HELDOUT_PAIRS = 1000
MEASUREMENTS = 4
"""Held-out measurements of a run."""

Run = dict[str, Any]
"""A line of --runs: recipe, text, width, weights, steps, tokens, seconds, mlm_loss, mlm_accuracy, curve, machine."""


def train(folder: str, recipe: Recipe, width: int, steps: int, cores: list[int]) -> Run:
    precision = "bf16" if bf16_units() else "float32"
    chosen = scaled(recipe, width)
    answer = measure(
        "benchmarks.curves",
        "learn",
        cores=set(cores),
        environment=on_all(cores) | {"BERT_PIPELINE_ACCELERATE_CONFIG": ACCELERATE["cpu", precision]},
        folder=folder,
        recipe=chosen.model_dump(mode="json"),
        num_steps=steps,
        eval_every=max(1, steps // MEASUREMENTS),
        heldout_pairs=HELDOUT_PAIRS,
    )
    end = answer["curve"][-1]
    return {
        "width": width,
        "weights": encoder_weights(chosen.model),
        "steps": steps,
        "tokens": answer["tokens"],
        "seconds": end["seconds"],
        "mlm_loss": end["mlm_loss"],
        "mlm_accuracy": end["mlm_accuracy"],
        "curve": answer["curve"],
    }


def fit(runs: Sequence[Run]) -> tuple[Relation, float]:
    """The relation with the least squared relative errors, and their root mean square.

    Raise ValueError if there are fewer runs than the relation has constants.
    """
    if len(runs) < 5:
        raise ValueError(f"{len(runs)} runs; remedy: at least 5, of several widths and numbers of steps")
    weights, tokens, losses = (np.array([run[name] for run in runs]) for name in ("weights", "tokens", "mlm_loss"))

    def errors(logarithms: np.ndarray) -> np.ndarray:
        fitted = [Relation(*np.exp(logarithms)).loss(w, t) for w, t in zip(weights, tokens, strict=True)]
        return np.log(fitted / losses)

    starts = [np.log([e, 1.0, a, 4.0, b]) for e in (0.5, 1.5, 2.5) for a in (0.2, 0.5) for b in (0.2, 0.5)]
    best = min((least_squares(errors, start, loss="soft_l1", f_scale=0.02) for start in starts), key=lambda r: r.cost)
    found = Relation(*(float(f"{value:.4g}") for value in np.exp(best.x)))
    return found, float(np.sqrt(np.mean(errors(best.x) ** 2)))


def draw(runs: Sequence[Run], found: Relation, recipe: Recipe, path: Path) -> None:
    """Losses over the operations of training, measured and fitted, one colour for each width."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, width in enumerate(sorted({run["width"] for run in runs})):
        model = scaled(recipe, width).model
        of_width = sorted((run for run in runs if run["width"] == width), key=lambda run: run["tokens"])
        per_token = _flops_per_token(recipe, model)
        tokens = np.geomspace(of_width[0]["tokens"], 30 * of_width[-1]["tokens"])
        fitted = [found.loss(encoder_weights(model), each) for each in tokens]
        axes.plot(tokens * per_token / 1e15, fitted, linewidth=1, color=f"C{number}")
        measured = [(run["tokens"] * per_token / 1e15, run["mlm_loss"]) for run in of_width]
        axes.plot(*zip(*measured, strict=True), "o", markersize=4, color=f"C{number}", label=f"{width} wide")
    axes.set(xscale="log", xlabel="training (10^15 floating-point operations)", ylabel="held-out MLM loss (nats)")
    axes.legend()
    figure.savefig(path, dpi=80)


def _flops_per_token(recipe: Recipe, model: ModelRecipe) -> float:
    """In full rows."""
    length = recipe.pretrain.phases[-1].max_seq_length
    row = Load(length, length**2, recipe.masking.masked_lm_prob * length, 1)
    return training_flops(model, recipe.tokenizer.vocab_size, row) / length


def table(runs: Sequence[Run], found: Relation | None) -> str:
    rows = [
        (
            str(run["width"]),
            f"{run['weights'] / 1e6:.1f}",
            f"{run['steps']:,}",
            f"{run['tokens'] / 1e6:.1f}",
            f"{run['seconds'] / 60:.1f}",
            f"{run['mlm_loss']:.3f}",
            f"{found.loss(run['weights'], run['tokens']):.3f}" if found else "-",
        )
        for run in sorted(runs, key=lambda run: (run["width"], run["steps"]))
    ]
    heads = ("width", "encoder weights (M)", "steps", "tokens (M)", "minutes", "held-out MLM loss", "fitted")
    return Table(heads, rows).text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, metavar="FILE", required=True, help="file of all runs, one JSON object each"
    )
    parser.add_argument("--recipe", default="small", help="name of a recipe with num_steps (default: small)")
    parser.add_argument("--widths", type=int, nargs="+", default=[], help="multiples of 64")
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1000, 3000], help="lengths of schedules")
    parser.add_argument("--text", metavar="FILE", help="text to train on instead of the recipe's")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="write the losses and the relation to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    recipe = recipe_on(parser, arguments.recipe, arguments.text)
    about = {"recipe": recipe.model_dump(mode="json"), "text": Path(recipe.corpus.path).name or "generated sample"}
    cores = sorted(os.sched_getaffinity(0))

    def stored() -> list[Run]:
        lines = arguments.runs.read_text(encoding="utf-8").splitlines() if arguments.runs.exists() else []
        return [run for run in map(json.loads, lines) if about.items() <= run.items()]

    measured_on = machine(cores, "accelerate", "torch", "transformers") | {"bf16_units": bf16_units()}
    done = {(run["width"], run["steps"]) for run in stored()}
    wanted = [(width, steps) for steps in sorted(arguments.steps) for width in arguments.widths]
    if missing := [each for each in wanted if each not in done]:
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
            prepare_datasets(recipe, work, cores)
            for width, steps in missing:
                found = train(work, recipe, width, steps, cores)
                tell(f"{width} wide, {steps:,} steps: held-out MLM loss {found['mlm_loss']:.3f}")
                with arguments.runs.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(about | found | {"machine": measured_on}) + "\n")
    runs = stored()
    relation, error = fit(runs) if len(runs) >= 5 else (None, None)
    if relation and arguments.picture:
        draw(runs, relation, recipe, arguments.picture)
    if arguments.json:
        print(json.dumps({"runs": runs, "relation": relation and vars(relation), "error": error}))
        return
    print(described(measured_on), "", table(runs, relation), sep="\n")
    if relation:
        print(f"{relation}; root mean square of the relative errors {error:.1%}")


if __name__ == "__main__":
    main()
