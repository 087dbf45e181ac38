"""Fine-tuning and prediction compared with transformers' Trainer and with our own padded rows in float32.

    python -m benchmarks.evaluation [--task T]... [--model DIR] [--rounds N] [--json]

A figure is examples per second, in the best round, with all cores in one process. All sides take turns and use the same
examples, weights, optimizer and learning rates: after a warm-up of 10 steps, 2 epochs of the task's training set (more
if it is small); prediction of its test set, the second time. BC5CDR-chem has the settings of `small`, other tasks those
of their quick profile. Without --model, the model has the size of `small`, random weights, and a tokenizer learnt from
the training set: speed does not depend on the weights.

The Trainer pads each batch to its longest row. It runs with the settings that were the fastest in the first round;
those in bfloat16 are tried only where the processor has units for it.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, measure
from benchmarks.finetuning import read
from benchmarks.machine import bf16_units, described, machine, on_all
from benchmarks.rows import Row, Run, rate, row, take_turns, tell
from bert_pipeline.core.tables import Table
from bert_pipeline.evaluation.finetuning.protocol import max_positions, protocol
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import TaskRecipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.settings import home

TASKS = ("BC5CDR-chem", "GAD", "BIOSSES")
WARM_UP, MIN_STEPS, MIN_EPOCHS = 10, 100, 2
ROUNDS = 2
UNIT = "examples/s"
BEFORE = "our padded rows in float32"
PEER_SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "grouped": False, "compiled": False},
    "float32, grouped by length": {"precision": "float32", "grouped": True, "compiled": False},
    "bf16": {"precision": "bf16", "grouped": False, "compiled": False},
    "bf16, grouped by length": {"precision": "bf16", "grouped": True, "compiled": False},
    "bf16, grouped by length, compiled": {"precision": "bf16", "grouped": True, "compiled": True},
}
PEER_PREDICTIONS: dict[str, dict[str, Any]] = {
    f"{precision}, batches of {batch}": {"precision": precision, "batch": batch}
    for precision in ("float32", "bf16")
    for batch in (32, 128)
}


class Bench:
    """A task and the model that it is measured with."""

    def __init__(self, task: Task, model: Path, cores: list[int], rounds: int) -> None:
        settings = TaskRecipe(name=task.name)
        if task.name == "BC5CDR-chem":
            [settings] = load_recipe(recipe_files()["small"]).evaluation.tasks
        how = protocol(task, settings, max_positions(model))
        self.setting = how.settings[0]
        self.task, self.cores, self.rounds = task, cores, rounds
        self.inputs = {"model": str(model), "task_name": task.name, "max_seq_length": how.max_seq_length}
        self.described = self.run("finetuning", "lengths")
        steps = self.setting.num_steps(self.described["examples"]) // self.setting.num_epochs
        self.timed = self.setting._replace(num_epochs=max(MIN_EPOCHS, -(-MIN_STEPS // steps)))

    def run(self, module: str, what: str, **arguments: Any) -> Answer:
        return _in_a_process(module, what, self.cores, **self.inputs, **arguments)

    def rows(self) -> list[Row]:
        tell(f"{self.task.name}: {self.described['examples']:,} examples of {self.described['mean_length']:.1f} pieces")
        timed = {"setting": list(self.timed), "warm_up": WARM_UP}
        return [
            *self._compare("training", "train", worth_trying(PEER_SETTINGS), timed),
            *self._compare("prediction", "predict", worth_trying(PEER_PREDICTIONS), {}),
        ]

    def _compare(
        self, name: str, what: str, settings: Mapping[str, Mapping[str, Any]], more: Mapping[str, Any]
    ) -> list[Row]:
        def side(module: str, **arguments: Any) -> Run:
            return lambda _: self.run(module, what, **more, **arguments)

        ours = {"ours": side("finetuning", before=False), BEFORE: side("finetuning", before=True)}
        peers = {how: side("peers.transformers_finetuning", **chosen) for how, chosen in settings.items()}
        answers = take_turns(ours, peers, 1)
        works = [how for how in peers if "reason" not in answers[how][-1]]
        fastest = max(works or peers, key=lambda how: rate(answers[how], unit=UNIT) if works else 0.0)
        again = {fastest: peers[fastest]} if works else {}
        for how, found in take_turns(ours, again, self.rounds - 1).items():
            answers[how] += found
        trainer = f"transformers {version('transformers')} Trainer, {fastest}"
        about = {"task": self.task.name, "setting": self.timed._asdict(), **self.described}
        tried = {how: rate(answers[how], unit=UNIT) for how in works}
        return [
            row(f"{self.task.name}, {name}", answers["ours"], answers[BEFORE], BEFORE, unit=UNIT, **about),
            row(
                f"{self.task.name}, {name}", answers["ours"], answers[fastest], trainer, unit=UNIT, **about, tried=tried
            ),
        ]


def worth_trying(settings: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without units for bfloat16, it takes hundreds of times as long as float32."""
    has_units = bool(bf16_units())
    return {how: chosen for how, chosen in settings.items() if has_units or chosen["precision"] == "float32"}


def _in_a_process(module: str, what: str, cores: list[int], **arguments: Any) -> Answer:
    environment = on_all(cores) | {"CUDA_VISIBLE_DEVICES": ""}
    return measure(f"benchmarks.{module}", what, cores=set(cores), environment=environment, **arguments)


def table(result: Mapping[str, Any]) -> str:
    head = (UNIT, "examples", "mean length", "ours", "peer", "ratio", "peer")
    return "\n".join(
        [
            described(result["machine"]),
            f"Model: {result['model']}",
            "",
            Table(head, [_cells(each) for each in result["rows"]]).text(),
        ]
    )


def _cells(each: Row) -> tuple[str, ...]:
    begin = (each["name"], f"{each['examples']:,}", f"{each['mean_length']:.1f}", f"{each['ours']:,.0f}")
    if each["ratio"] is None:
        return (*begin, "-", "-", f"{each['peer_name']}: {each['reason']}")
    return (*begin, f"{each['peer']:,.0f}", f"{each['ratio']:.2f}x", each["peer_name"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", metavar="T", help=f"default: {', '.join(TASKS)}")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face model directory")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rows: list[Row] = []
    home().mkdir(parents=True, exist_ok=True)
    for name in arguments.task or TASKS:
        task, _ = read(name)
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as folder:
            model = arguments.model
            if model is None:
                model = Path(folder)
                _in_a_process("finetuning", "build", cores, folder=folder, task_name=name)
            rows += Bench(task, model.absolute(), cores, arguments.rounds).rows()
    result = {
        "machine": machine(cores, "torch", "transformers") | {"bf16_units": bf16_units()},
        "model": str(arguments.model or "the size of small, random weights"),
        "rows": rows,
    }
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
