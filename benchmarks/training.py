"""Pretraining beside transformers' Trainer: same pairs, same masks, same batches, same run.

    python -m benchmarks.training [--recipe small] [--device cpu|cuda] [--precision float32|bf16]
                                  [--text FILE] [--megabytes 8] [--max-seq-length N] [--json]

    <recipe>-128, <recipe>-512    the recipe's model and batch on pairs of at most so many tokens, beside the Trainer
                                  with each batch padded to its longest row, with rows padded to the full length, and
                                  as it comes: rows padded to the full length, float32, no torch.compile

A figure is real tokens a second (padding does not count) over the same steps of both sides, after a warm-up, in the
best round; ours and the peers take rounds in turns. Ours is the stage pretrained_checkpoint as everybody runs it. The
peer, but where it is taken as it comes, gets those of its settings that were the fastest in the first round; one that
fails has a row that says why.
Text is that of the recipe, where its files are found, or of --text; 8 MB of it, spread over its first 100.

Model-FLOP utilisation is the operations that the real tokens need (the formula: training/model/flops.py) a
second, as a share of the best rate of a large square matrix product, measured here in the same precision.
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
from benchmarks.machine import bf16_units, machine
from benchmarks.pretraining import cut_down
from benchmarks.rows import Row, Run, rate, row, take_turns, tell
from benchmarks.text import choose_fields
from bert_pipeline.data.sources.files import find_files
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.settings import CPU_ENVIRONMENT, home

LENGTHS = (128, 512)
ROUNDS = {"cpu": 2, "cuda": 1}
FLOPS = {"cpu": 1e12, "cuda": 1.5e15}
"""Of the steps that count: seconds of a small machine of its kind."""
SPREAD_MEGABYTES = 100.0
"""The text is taken from here and there in so much of it, because a corpus may begin with its longest documents."""
DOCUMENTS_PER_SHARD = 500
UNIT = "tokens/s"

ACCELERATE = {("cpu", "float32"): "cpu", ("cpu", "bf16"): "cpu_bf16", ("cuda", "bf16"): "single_gpu"}
"""The accelerate config of ours, by device and precision."""
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
"""What is tried for the peer: places, padding included, that it is given at once, torch.compile, workers to collate."""

AS_IT_COMES = "as it comes"


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    work: Path
    recipe: Recipe
    device: str
    precision: str
    cores: list[int]

    def run(self, module: str, task: str, **arguments: Any) -> Answer:
        """The same environment for everyone: what the launcher gives to training, and all cores."""
        config = ACCELERATE[self.device, self.precision]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(len(self.cores)))
        environment = CPU_ENVIRONMENT | threads | {"BERT_PIPELINE_ACCELERATE_CONFIG": config}
        return measure(f"benchmarks.{module}", task, cores=set(self.cores), environment=environment, **arguments)

    @property
    def hardware(self) -> dict[str, str]:
        return {"device": self.device, "precision": self.precision}


def compare(bench: Bench, stretch: Answer, peak: float) -> list[Row]:
    """Ours and the peers over one stretch of training."""
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
                f"{side} was trained on other pairs: {answers}, not the {stretch['tokens']} tokens asked for"
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
    tell("the peak of matrix products")
    peak = bench.run("pretraining", "matmul", **bench.hardware)
    among = SPREAD_MEGABYTES if text["text"] else None  # all of the sample is alike
    taken = bench.run("text", "take", **text, megabytes=megabytes, folder=bench.work / "text", among=among)
    tell(f"preparing {taken['documents']:,} documents, {taken['megabytes']:.1f} MB")
    corpus = {
        "path": str(bench.work / "text" / "text.jsonl"),
        "text_fields": text["fields"],
        "documents_per_shard": DOCUMENTS_PER_SHARD,
    }
    recipe = cut_down(bench.recipe, corpus, max_seq_lengths).model_dump(mode="json")
    prepared = bench.run("pretraining", "prepare", folder=bench.work, recipe=recipe, flops=FLOPS[bench.device])
    described = machine(bench.cores, "accelerate", "numpy", "torch", "transformers")
    return {
        "machine": described
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


def find_text(recipe: Recipe, asked: str | None) -> dict[str, Any]:
    """Which file, and which fields of it make up a document; none for the generated sample."""
    if asked:
        source = str(Path(asked).absolute())
        return {"text": source, "fields": choose_fields(source, None)}
    reason = f"{recipe.name} is a recipe for it"
    if recipe.corpus.source == "files":
        try:
            find_files(recipe.corpus.path)
            where = Path(os.environ.get("BERT_PIPELINE_DATA") or ".").absolute()
            return {"text": str(where / recipe.corpus.path), "fields": recipe.corpus.text_fields}
        except SourceError as error:
            reason = str(error)
    tell(f"WARNING: generated sample, whose lengths are not those of PubMed: {reason}; remedy: --text FILE")
    return {"text": None, "fields": ("text",)}


def table(result: Mapping[str, Any]) -> str:
    machine, text = result["machine"], result["text"]
    units = ", ".join(machine["bf16_units"]) or "none"
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores (bf16 units: {units}), Python {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
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
    parser.add_argument("--precision", choices=("float32", "bf16"), help="default: bf16 where there are units for it")
    parser.add_argument("--text", metavar="FILE", help=".txt, .jsonl, .csv, .parquet, each also .gz, .xz, .zst")
    parser.add_argument("--megabytes", type=float, default=8.0, help="of the text")
    parser.add_argument("--max-seq-length", type=int, choices=LENGTHS, help="this length alone")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    precision = arguments.precision or ("bf16" if arguments.device == "cuda" or bf16_units() else "float32")
    if (arguments.device, precision) not in ACCELERATE:
        parser.error(f"{precision} on {arguments.device} is not measured; remedy: --precision bf16")
    recipes = recipe_files()
    if arguments.recipe not in recipes:
        parser.error(f"no recipe is named {arguments.recipe}; remedy: one of {', '.join(recipes)}")
    recipe = load_recipe(recipes[arguments.recipe])
    asked = [arguments.max_seq_length] if arguments.max_seq_length else LENGTHS
    max_seq_lengths = [length for length in asked if length <= recipe.model.max_position_embeddings]
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
