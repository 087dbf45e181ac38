"""Pretraining compared with transformers' Trainer: same pairs, same masks, same batches, same run.

    python -m benchmarks.training [--recipe small] [--device cpu|cuda] [--precision float32|bf16]
                                  [--text FILE] [--megabytes 8] [--max-seq-length N] [--json]

    <recipe>-128, <recipe>-512    the recipe's model and batch on pairs of at most 128 or 512 tokens, compared with the
                                  Trainer with each batch padded to its longest row, with rows padded to the full
                                  length, and "as it comes": rows padded to the full length, float32, no torch.compile

A figure is real tokens per second (without padding) over the same steps of both sides, after a warm-up, in the best
round; both sides take turns. Our side is the regular stage pretrained_checkpoint. The peer runs with the settings that
were the fastest in the first round, except "as it comes". If a peer fails, its row gives the reason.
The text is the recipe's if its files exist, or that of --text: 8 MB, sampled from its first 100 MB.

Model-FLOP utilisation is the operations per second that the real tokens need (formula: training/model/flops.py), as a
share of the peak of large square matrix products, measured here in the same precision.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, measure
from benchmarks.machine import bf16_units, described, machine, on_all
from benchmarks.pretraining import cut_down
from benchmarks.rows import Row, Run, rate, row, take_turns, tell
from bert_pipeline.data.sources.folders import find_files
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.fitting.fields import choose_fields
from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.settings import home

LENGTHS = (128, 512)
ROUNDS = {"cpu": 2, "cuda": 1}
FLOPS = {"cpu": 1e12, "cuda": 1.5e15}
"""Operations of the timed steps: some seconds on a small machine of its kind."""
SPREAD_MEGABYTES = 100.0
"""The text is sampled from this much of the corpus, because a corpus may begin with its longest documents."""
DOCUMENTS_PER_SHARD = 500
UNIT = "tokens/s"

ACCELERATE = {("cpu", "float32"): "cpu", ("cpu", "bf16"): "cpu_bf16", ("cuda", "bf16"): "single_gpu"}
"""Our accelerate config, by device and precision."""
PADDING = {"padded to the longest row": False, "padded to the full length": True}
PEER_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "whole batches": {"places": 2**62, "compiled": False, "workers": 0},
        "accumulating 4,096 places": {"places": 4096, "compiled": False, "workers": 0},
        "whole batches, compiled": {"places": 2**62, "compiled": True, "workers": 0},
        "accumulating 4,096 places, compiled": {"places": 4096, "compiled": True, "workers": 0},
    },
    "cuda": {
        "accumulating 65,536 places": {"places": 65_536, "compiled": False, "workers": 4},
        "accumulating 65,536 places, compiled": {"places": 65_536, "compiled": True, "workers": 4},
    },
}
"""Settings tried for the peer: tokens per micro-batch, padding included; torch.compile; workers that collate."""

AS_IT_COMES = "as it comes"


@dataclass(frozen=True)
class Bench:
    """A recipe and the machine that it is measured on."""

    work: Path
    recipe: Recipe
    device: str
    precision: str
    cores: list[int]

    def run(self, module: str, task: str, **arguments: Any) -> Answer:
        """Run a task in the same environment for both sides: the launcher's variables, and all cores."""
        config = ACCELERATE[self.device, self.precision]
        environment = on_all(self.cores) | {"BERT_PIPELINE_ACCELERATE_CONFIG": config}
        return measure(f"benchmarks.{module}", task, cores=set(self.cores), environment=environment, **arguments)

    @property
    def hardware(self) -> dict[str, str]:
        return {"device": self.device, "precision": self.precision}


def compare(bench: Bench, stretch: Answer, peak: float) -> list[Row]:
    """Compare both sides over the steps of one phase."""
    tell(f"{bench.recipe.name}, {stretch['max_seq_length']} tokens, {stretch['num_steps']} steps")
    steps = {key: stretch[key] for key in ("max_seq_length", "warm_up", "num_steps")} | {"folder": bench.work}

    def peer(**settings: Any) -> Run:
        return lambda _: bench.run("peers.transformers_trainer", "trainer", **steps, **(bench.hardware | settings))

    ours: dict[str, Run] = {"ours": lambda _: bench.run("pretraining", "pretrain", **steps)}
    peers = {
        f"{padding}, {how}": peer(full_length=full_length, **settings)
        for padding, full_length in PADDING.items()
        for how, settings in PEER_SETTINGS[bench.device].items()
    }
    usual = next(iter(PEER_SETTINGS[bench.device].values()))
    peers[AS_IT_COMES] = peer(full_length=True, **usual, precision="float32")
    answers = take_turns(ours, peers, 1)

    def speed(name: str) -> float:
        return 0.0 if "reason" in answers[name][-1] else rate(answers[name], unit=UNIT)

    fastest = [max((name for name in peers if name.startswith(padding)), key=speed) for padding in PADDING]
    fastest.append(AS_IT_COMES)
    again = {name: peers[name] for name in fastest if speed(name)}
    for name, more in take_turns(ours, again, ROUNDS[bench.device] - 1).items():
        answers[name] += more
    return [_row(bench, stretch, peak, answers["ours"], answers[name], name) for name in fastest]


def _row(bench: Bench, stretch: Answer, peak: float, ours: list[Answer], peer: list[Answer], name: str) -> Row:
    sides = {"ours": ours} | ({} if "reason" in peer[-1] else {"peer": peer})
    for side, answers in sides.items():
        if any(answer["tokens"] != stretch["tokens"] for answer in answers):
            raise SystemExit(
                f"{side} was trained on other pairs: {answers}, not the {stretch['tokens']} tokens expected"
            )
    best = {side: min(answers, key=lambda answer: answer["seconds"]) for side, answers in sides.items()}
    return row(
        f"{bench.recipe.name}-{stretch['max_seq_length']}",
        ours,
        peer,
        f"transformers {version('transformers')} Trainer, {name}",
        unit=UNIT,
        **{key: stretch[key] for key in ("max_seq_length", "global_batch_size", "num_steps", "mean_length", "fill")},
        **{key: best["ours"][key] for key in ("data_wait_fraction", "reported_utilization")},
        model_flops_utilization={side: stretch["flops"] / each["seconds"] / peak for side, each in best.items()},
        first_loss={side: each["first_loss"] for side, each in best.items()},
    )


def run(bench: Bench, text: Mapping[str, Any], megabytes: float, max_seq_lengths: list[int]) -> dict[str, Any]:
    tell("measuring the peak of matrix products")
    peak = bench.run("pretraining", "matmul", **bench.hardware)
    among = SPREAD_MEGABYTES if text["text"] else None  # the generated sample is uniform
    taken = bench.run("text", "take", **text, megabytes=megabytes, folder=bench.work / "text", among=among)
    tell(f"preparing {taken['documents']:,} documents, {taken['megabytes']:.1f} MB")
    corpus = {
        "path": str(bench.work / "text" / "text.jsonl"),
        "text_fields": text["fields"],
        "documents_per_shard": DOCUMENTS_PER_SHARD,
    }
    recipe = cut_down(bench.recipe, corpus, max_seq_lengths).model_dump(mode="json")
    prepared = bench.run("pretraining", "prepare", folder=bench.work, recipe=recipe, flops=FLOPS[bench.device])
    measured_on = machine(bench.cores, "accelerate", "numpy", "torch", "transformers")
    return {
        "machine": measured_on
        | bench.hardware
        | {"device_name": peak["device_name"], "bf16_units": bf16_units(), "peak_flops": peak["flops_per_second"]},
        "text": {
            "name": Path(text["text"]).name if text["text"] else "generated sample",
            "text_fields": text["fields"],
            **taken,
            **{key: prepared[key] for key in ("words", "vocab_size")},
        },
        "rows": [
            each for stretch in prepared["stretches"] for each in compare(bench, stretch, peak["flops_per_second"])
        ],
    }


def find_text(recipe: Recipe, file: str | None) -> dict[str, Any]:
    """The text file, and the fields that make up a document; no file for the generated sample."""
    if file:
        source = str(Path(file).absolute())
        return {"text": source, "fields": choose_fields(source)[0]}
    reason = f"{recipe.name} is a recipe for it"
    if recipe.corpus.source == "files":
        try:
            find_files(recipe.corpus.path)
            where = Path(os.environ.get("BERT_PIPELINE_DATA") or ".").absolute()
            return {"text": str(where / recipe.corpus.path), "fields": recipe.corpus.text_fields}
        except SourceError as error:
            reason = str(error)
    tell(f"WARNING: using the generated sample, whose lengths differ from PubMed's: {reason}; remedy: --text FILE")
    return {"text": None, "fields": ("text",)}


def table(result: Mapping[str, Any]) -> str:
    machine, text = result["machine"], result["text"]
    lines = [
        described(machine),
        f"Trained on {machine['device_name']} in {machine['precision']}; "
        f"matrix products at {machine['peak_flops'] / 1e12:.2f} TFLOP/s",
        f"{text['name']}: {text['documents']:,} documents, {text['megabytes']:.1f} MB; "
        f"{text['vocab_size']:,} pieces in the vocabulary",
        "",
        f"{'real tokens/s':20} {'fill':>5} {'ours':>10} {'peer':>10} {'ratio':>6} {'MFU ours, peer':>15}   peer",
        *map(_line, result["rows"]),
        "",
        *dict.fromkeys(map(_about_ours, result["rows"])),
    ]
    return "\n".join(lines)


def _about_ours(row: Row) -> str:
    return (
        f"{row['name']}: {row['global_batch_size']} pairs a step, {row['mean_length']:.0f} tokens a pair; "
        f"ours waited for data {row['data_wait_fraction']:.2%} of the time"
    )


def _line(row: Row) -> str:
    begin = f"{row['name']:20} {row['fill']:5.0%} {row['ours']:10,.0f}"
    used = row["model_flops_utilization"]
    if row["ratio"] is None:
        return f"{begin} {'-':>10} {'-':>6} {used['ours']:8.1%} {'-':>6}   {row['peer_name']}: {row['reason']}"
    shares = f"{used['ours']:8.1%} {used['peer']:6.1%}"
    return f"{begin} {row['peer']:10,.0f} {row['ratio']:5.1f}x {shares}   {row['peer_name']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="small", help="the name of a recipe (default: small)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("float32", "bf16"), help="default: bf16 if the processor has units for it"
    )
    parser.add_argument(
        "--text", metavar="FILE", help="text to train on: .txt, .jsonl, .csv, .parquet, also .gz, .xz, .zst"
    )
    parser.add_argument("--megabytes", type=float, default=8.0, help="megabytes of text to use (default: 8)")
    parser.add_argument("--max-seq-length", type=int, choices=LENGTHS, help="measure only this length")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    precision = arguments.precision or ("bf16" if arguments.device == "cuda" or bf16_units() else "float32")
    if (arguments.device, precision) not in ACCELERATE:
        parser.error(f"{precision} on {arguments.device} is not supported; remedy: --precision bf16")
    recipes = recipe_files()
    if arguments.recipe not in recipes:
        parser.error(f"unknown recipe {arguments.recipe}; remedy: one of {', '.join(recipes)}")
    recipe = load_recipe(recipes[arguments.recipe])
    lengths = [arguments.max_seq_length] if arguments.max_seq_length else LENGTHS
    max_seq_lengths = [length for length in lengths if length <= recipe.model.max_position_embeddings]
    if not max_seq_lengths:
        parser.error(f"{recipe.name} has {recipe.model.max_position_embeddings} positions; remedy: a larger recipe")
    text = find_text(recipe, arguments.text)
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        bench = Bench(Path(work), recipe, arguments.device, precision, sorted(os.sched_getaffinity(0)))
        result = run(bench, text, arguments.megabytes, max_seq_lengths)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
