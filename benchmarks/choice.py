"""Does the recipe that `bert-pipeline init` writes end within a few percent of the best held-out loss?

    python -m benchmarks.choice --text FILE --runs FILE [--megabytes 6 60] [--minutes 2 10] [--json]

For the first megabytes of the text and each time: `init` chooses, then the chosen recipe is trained, and a narrower and
a wider model for the whole time, each on the same pairs; also a model of the chosen width, if the choice takes only a
part of the time. Each finished run becomes a line of --runs; runs that it has are not repeated. A ratio of 1.03 means
that the choice ended 3 % above the lowest loss.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, measure
from benchmarks.curves import prepare_datasets
from benchmarks.machine import bf16_units, described, machine, on_all
from benchmarks.rows import tell
from benchmarks.training import ACCELERATE
from bert_pipeline.core.tables import Table
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.fitting.fields import choose_fields
from bert_pipeline.fitting.shapes import HEAD_WIDTH, scaled
from bert_pipeline.recipe import Recipe
from bert_pipeline.settings import home

CHOICE = "choice"
"""The name of the run of init's recipe; the others are named by their width."""

WHOLE_TIME = 0.7
"""A choice whose steps take at least this share of the time took all of it: measurements and checkpoints are the rest.
Otherwise it takes at most half of it (fitting.choice.SHARES)."""

Run = dict[str, Any]
"""A line of --runs: text, megabytes, minutes, run, width, steps, tokens, seconds, mlm_loss, mlm_accuracy, predicted
(the bounds of the loss; only of the choice), machine."""


def in_minutes(recipe: Recipe, width: int, minutes: float) -> Recipe:
    """The recipe with a model of another width, trained for as many steps as fit into the minutes."""
    table = scaled(recipe, width).model_dump(mode="json")
    [phase] = table["pretrain"]["phases"]
    warmup = phase["warmup_steps"] / phase["num_steps"]
    phase |= {"num_steps": 0, "warmup_steps": None, "budget_fraction": 1.0, "warmup_fraction": warmup}
    table["pretrain"]["budget_minutes"] = minutes
    return Recipe.model_validate_json(json.dumps(table))


def widths_around(width: int) -> list[int]:
    """A narrower width, this one, and a wider one."""
    return [each for each in (width - HEAD_WIDTH, width, width + HEAD_WIDTH) if each >= 2 * HEAD_WIDTH]


def recipes_around(chosen: Recipe, minutes: float) -> dict[str, Recipe]:
    """The choice, and the grid around it, by the name of the run."""
    widths = widths_around(chosen.model.hidden_size)
    return {CHOICE: chosen} | {str(each): in_minutes(chosen, each, minutes) for each in widths}


def is_repetition(name: str, choice: Run, minutes: float) -> bool:
    """Whether this run of the grid is the same training as the choice."""
    return name == str(choice["width"]) and choice["seconds"] >= WHOLE_TIME * 60 * minutes


def is_complete(done: Sequence[Run], minutes: float) -> bool:
    runs = {run["run"]: run for run in done}
    if CHOICE not in runs:
        return False
    grid = map(str, widths_around(runs[CHOICE]["width"]))
    return all(name in runs or is_repetition(name, runs[CHOICE], minutes) for name in grid)


def ratio(runs: Sequence[Run]) -> float:
    """The loss of the choice over the lowest one."""
    [choice] = [run["mlm_loss"] for run in runs if run["run"] == CHOICE]
    return choice / min(run["mlm_loss"] for run in runs)


def table(runs: Sequence[Run]) -> str:
    rows = []
    for megabytes, minutes in dict.fromkeys((run["megabytes"], run["minutes"]) for run in runs):
        of_cell = [run for run in runs if (run["megabytes"], run["minutes"]) == (megabytes, minutes)]
        for run in of_cell:
            low, high = run["predicted"] or (None, None)
            is_choice = run["run"] == CHOICE
            rows.append(
                (
                    *(f"{megabytes:g}", f"{minutes:g}", f"{run['width']}{' (choice)' if is_choice else ''}"),
                    *(f"{run['steps']:,}", f"{run['tokens'] / 1e6:.1f}", f"{run['seconds'] / 60:.1f}"),
                    *(f"{low:.2f} to {high:.2f}" if low else "", f"{run['mlm_loss']:.3f}"),
                    f"{ratio(of_cell):.3f}" if is_choice else "",
                )
            )
    heads = ("MB of text", "minutes", "width", "steps", "tokens (M)", "minutes of steps", "predicted loss", "loss")
    return Table((*heads, "over the lowest"), rows).text()


def measure_cell(text: Path, fields: Sequence[str], minutes: float, done: Sequence[Run], work: Path) -> Iterator[Run]:
    """Yield the runs on this text in this time, without those that are done, as they end."""
    cores = sorted(os.sched_getaffinity(0))
    precision = "bf16" if bf16_units() else "float32"
    here = {"BERT_PIPELINE_ACCELERATE_CONFIG": ACCELERATE["cpu", precision]} | on_all(cores)

    def run(task: str, **arguments: Any) -> Answer:
        return measure("benchmarks.chosen", task, cores=set(cores), environment=here, **arguments)

    found = run("choose", text=text, fields=fields, minutes=minutes)
    chosen = Recipe.model_validate_json(json.dumps(found["recipe"]))
    tell(f"{minutes:g} minutes: init chooses {chosen.model.hidden_size} wide, {chosen.pretrain.num_steps:,} steps")
    prepare_datasets(chosen, str(work), cores)
    runs = {each["run"]: each for each in done}
    for name, recipe in recipes_around(chosen, minutes).items():
        if name in runs or (name != CHOICE and is_repetition(name, runs[CHOICE], minutes)):
            continue
        found = run("train", folder=work, recipe=recipe.model_dump(mode="json"))
        tell(f"{name}: held-out MLM loss {found['mlm_loss']:.3f} after {found['seconds'] / 60:.1f} minutes")
        predicted = chosen.expected_mlm_loss if name == CHOICE else None
        runs[name] = {"run": name, "width": recipe.model.hidden_size, "predicted": predicted} | found
        yield runs[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", required=True, help="the text; `init` reads the same formats")
    parser.add_argument("--runs", type=Path, metavar="FILE", required=True, help="file of all runs, a JSON object each")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[6.0, 60.0], help="sizes of the text (UTF-8)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 10.0], help="times of pretraining")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    try:
        fields = choose_fields(arguments.text)[0]
    except SourceError as error:
        parser.error(str(error))
    cores = sorted(os.sched_getaffinity(0))
    measured_on = machine(cores, "accelerate", "torch", "transformers") | {"bf16_units": bf16_units()}
    about = {"text": Path(arguments.text).name, "machine": measured_on}

    def stored() -> list[Run]:
        lines = arguments.runs.read_text(encoding="utf-8").splitlines() if arguments.runs.exists() else []
        return [run for run in map(json.loads, lines) if about.items() <= run.items()]

    home().mkdir(parents=True, exist_ok=True)
    for megabytes in arguments.megabytes:
        for minutes in arguments.minutes:
            cell = {"megabytes": megabytes, "minutes": minutes}
            done = [run for run in stored() if cell.items() <= run.items()]
            if is_complete(done, minutes):
                continue
            with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
                taken = {"text": Path(arguments.text).absolute(), "fields": fields, "megabytes": megabytes}
                measure("benchmarks.text", "take", cores=set(cores), **taken, folder=Path(work, "text"))
                for run in measure_cell(Path(work, "text", "text.jsonl"), fields, minutes, done, Path(work)):
                    with arguments.runs.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(about | cell | run) + "\n")
    runs = stored()
    print(json.dumps({"runs": runs}) if arguments.json else f"{described(measured_on)}\n\n{table(runs)}")


if __name__ == "__main__":
    main()
