"""The data stages beside their peers: same text, same run, one core each.

    python -m benchmarks.data [--text FILE] [--text-fields title,text] [--megabytes 25] [--json]

    encode                   text to ids: ours, and `tokenizers` over whole sentences; ids compared on every line
    pairs-and-masks          ids to masked rows in memory: ours, Google's algorithm, NVIDIA LDDL
    whole-way                sentences to masked rows on disk: ours, Google's algorithm, transformers 4.57, LDDL
    whole-way-from-raw-text  the same, but ours reads raw text, cleans it and finds the sentences, too
    whole-way-two-workers    ours with two workers on two cores, and with one
    loader                   rows on disk to tensors under fresh masks: ours, transformers' collator

A figure is millions of tokens a second in the best round; ours and the peers take rounds in turns. Tokens are those of
the text for `encode`; elsewhere those of the rows, with [CLS] and [SEP], without padding. Compiling, imports and the
start of processes do not count.

The peers are slow and read a smaller part of the same text. They are installed from the package index into folders of
their own, below BERT_PIPELINE_HOME/peers; a peer that cannot be had has a row that says why.
"""

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, measure
from benchmarks.machine import machine
from benchmarks.peers.environments import PACKAGES, environment
from benchmarks.rows import Row, Run, row, table, take_turns, tell
from benchmarks.text import Fields, choose_fields
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.settings import home

ROUNDS, SCALE_ROUNDS = 3, 2
PEER_MEGABYTES = 3.0
"""Of sentences, for the whole way of a peer."""
SCALE_MEGABYTES = 60.0
"""At least, for two workers and for memory, because processes take seconds to start."""
SHARDS = 8
"""At least, in the larger text; a shard holds no more documents than a recipe's default."""
BATCH_SIZE = 256
METHODS = ("encode_batch", "encode_batch_fast")

GOOGLE = "google-research/bert in Python"
TRANSFORMERS = f"{PACKAGES['transformers'][0].replace('==', ' ')} NSP dataset + collator"
LDDL = f"NVIDIA {PACKAGES['lddl'][0].replace('==', ' ')}"


@dataclass(frozen=True)
class Bench:
    """Where things are measured."""

    work: Path
    cores: list[int]

    def run(
        self, module: str, task: str, *, workers: int = 1, environments: tuple[str, ...] = (), **arguments: Any
    ) -> Answer:
        return measure(
            f"benchmarks.{module}",
            task,
            cores=set(self.cores[:workers]),
            search_path=[environment(name) for name in environments],
            environment={"BERT_PIPELINE_WORKERS": str(workers), "NUMBA_CACHE_DIR": str(self.work / "numba")},
            **arguments,
        )


@dataclass(frozen=True)
class Text:
    """The first megabytes of a text in a folder of their own; see text.py."""

    folder: Path
    fields: Fields
    documents: int
    megabytes: float

    @classmethod
    def take(cls, bench: Bench, name: str, source: str | None, fields: Fields, megabytes: float) -> "Text":
        folder = bench.work / name
        taken = bench.run("text", "take", text=source, fields=fields, megabytes=megabytes, folder=folder)
        return cls(folder, fields, taken["documents"], taken["megabytes"])

    def prepare(self, bench: Bench, documents_per_shard: int) -> Answer:
        tell(f"preparing {self.documents:,} documents, {self.megabytes:.1f} MB")
        arguments: dict[str, Any] = {"fields": self.fields, "documents_per_shard": documents_per_shard}
        return bench.run("text", "prepare", folder=self.folder, **arguments, peer_megabytes=PEER_MEGABYTES)


def encode(bench: Bench, text: Text) -> list[Row]:
    tell("encode")
    ids = bench.work / "ids"

    def library(method: str) -> Run:
        """A third of every shard each round, so that in the end every line was compared."""
        arguments: dict[str, Any] = {"folder": text.folder, "ours": ids, "method": method, "parts": ROUNDS}
        return lambda number: bench.run("peers.tokenizers_batch", "encode_batch", **arguments, part=number)

    peers = {f"tokenizers {version('tokenizers')} {method}": library(method) for method in METHODS}
    # All of them as ours: a comparison that fails is no reason to go on.
    runs: dict[str, Run] = {"ours": lambda _: bench.run("ours", "encode", folder=text.folder, out=ids), **peers}
    answers = take_turns(runs, {}, ROUNDS)
    for name in peers:
        for answer in answers[name]:
            if answer["difference"]:
                raise SystemExit(f"our ids are not those of {name}: {answer['difference']}")
    return [row("encode", answers["ours"], answers[name], name) for name in peers]


def datasets(bench: Bench, text: Text, max_seq_length: int) -> tuple[list[Row], Answer]:
    """pairs-and-masks and whole-way at one length, since the peers tell both times of a run; and a run of ours."""
    tell(f"pairs-and-masks and whole-way, {max_seq_length} tokens")
    length: dict[str, Any] = {"max_seq_length": max_seq_length}
    written = length | {"folder": text.folder, "out": bench.work / "out"}
    ours: dict[str, Run] = {
        "pairs-and-masks": lambda _: bench.run("ours", "pairs_and_masks", folder=text.folder, **length),
        "whole-way": lambda _: bench.run("ours", "whole_way", raw=False, **written),
        "whole-way-from-raw-text": lambda _: bench.run("ours", "whole_way", raw=True, **written),
    }

    def peer(module: str, task: str, *environments: str) -> Run:
        arguments = length | {"text": text.folder / "sentences.txt", "tokenizer": text.folder / "tokenizer"}
        out = bench.work / module
        return lambda _: bench.run(f"peers.{module}", task, environments=environments, out=out, **arguments)

    peers = {
        GOOGLE: peer("google", "google", "transformers"),
        TRANSFORMERS: peer("transformers_nsp", "transformers_nsp", "transformers"),
        LDDL: peer("lddl_pairs", "lddl", "lddl", "transformers"),
    }
    answers = take_turns(ours, peers, ROUNDS)
    clock = "pairs_and_masks_seconds"
    rows = [
        row("pairs-and-masks", answers["pairs-and-masks"], answers[name], name, clock, **length)
        for name in (GOOGLE, LDDL)
    ]
    for way in ("whole-way", "whole-way-from-raw-text"):
        best = min(answers[way], key=lambda answer: answer["seconds"])
        more = length | {"stage_seconds": best["stage_seconds"]}
        rows += [row(way, answers[way], answers[name], name, **more) for name in peers]
    return rows, best


def scale(bench: Bench, whole: Text, quarter: Text) -> tuple[Row, dict[str, float]]:
    """Two workers beside one on the larger text; the peak memory of one worker on that and on a quarter of it."""
    tell("two workers, and memory")

    def ours(text: Text, workers: int) -> Run:
        arguments: dict[str, Any] = {
            "folder": text.folder,
            "max_seq_length": 128,
            "out": bench.work / "out",
            "raw": True,
        }
        return lambda _: bench.run("ours", "whole_way", workers=workers, **arguments)

    runs = {"one worker": ours(whole, 1)}
    if len(bench.cores) > 1:
        runs["two workers"] = ours(whole, 2)
    answers = {"two workers": [{"reason": "this process may use one core only"}]} | take_turns(runs, {}, SCALE_ROUNDS)
    on_whole, on_quarter = answers["one worker"][0], ours(quarter, 1)(0)
    memory = {
        "megabytes_whole": whole.megabytes,
        "megabytes_quarter": quarter.megabytes,
        "peak_mib_whole": on_whole["worker_mib"],
        "peak_mib_quarter": on_quarter["worker_mib"],
        "growth_fraction": on_whole["worker_mib"] / on_quarter["worker_mib"] - 1,
        "main_peak_mib_whole": on_whole["main_mib"],
        "main_peak_mib_quarter": on_quarter["main_mib"],
    }
    return row("whole-way-two-workers", answers["two workers"], answers["one worker"], "ours, one worker"), memory


def loader(bench: Bench, text: Text) -> list[Row]:
    tell("loader")
    arguments: dict[str, Any] = {"folder": text.folder, "max_seq_length": 128, "batch_size": BATCH_SIZE}
    peer = f"transformers {version('transformers')} DataCollatorForLanguageModeling"
    answers = take_turns(
        {"ours": lambda _: bench.run("ours", "loader", **arguments)},
        {peer: lambda _: bench.run("peers.transformers_collator", "collator", **arguments)},
        ROUNDS,
    )
    return [row("loader", answers["ours"], answers[peer], peer, max_seq_length=128)]


def first_compilation(bench: Bench) -> float:
    """Seconds that a first use of the compiled code takes more than the next: both on a few made documents."""
    tell("compiling")
    seconds = []
    for name in ("compile", "compiled"):
        seconds.append(Text.take(bench, name, None, ("text",), 0.2).prepare(bench, 50)["seconds"])
    return seconds[0] - seconds[1]


def run(work: Path, source: str | None, text_fields: Fields | None, megabytes: float) -> dict[str, Any]:
    bench = Bench(work, sorted(os.sched_getaffinity(0)))
    fields = choose_fields(source, text_fields) if source else ("text",)
    compiling = first_compilation(bench)

    whole = Text.take(bench, "whole", source, fields, max(megabytes, SCALE_MEGABYTES))
    quarter = Text.take(bench, "quarter", source, fields, whole.megabytes / 4)
    text = Text.take(bench, "text", source, fields, megabytes)
    documents_per_shard = max(
        2, min(CorpusRecipe.model_fields["documents_per_shard"].default, whole.documents // SHARDS)
    )
    for each in (whole, quarter):
        each.prepare(bench, documents_per_shard)
    prepared = text.prepare(bench, documents_per_shard)

    rows = encode(bench, text)
    disk = {}
    for max_seq_length in (128, 512):
        made, ours = datasets(bench, text, max_seq_length)
        rows += made
        disk[max_seq_length] = ours["bytes_per_token"]
    two_workers, memory = scale(bench, whole, quarter)
    rows += [two_workers, *loader(bench, text)]
    return {
        "machine": machine(bench.cores, "numba", "numpy", "pyarrow", "tokenizers", "torch", "transformers"),
        "text": {
            "name": Path(source).name if source else "generated sample (few distinct words: give real text by --text)",
            "text_fields": fields,
            "documents": text.documents,
            "megabytes": text.megabytes,
            "documents_per_shard": documents_per_shard,
            **{key: prepared[key] for key in ("sentences", "words", "vocab_size", "peer_megabytes")},
        },
        "rows": rows,
        "memory": memory,
        "disk": disk,
        "first_compilation_seconds": compiling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", metavar="FILE", help=".txt, .jsonl, .csv, .parquet, each also .gz, .xz, .zst")
    parser.add_argument("--text-fields", type=lambda names: tuple(names.split(",")), help="default: text, title,text")
    parser.add_argument("--megabytes", type=float, default=25.0, help="of the text; two workers get 60 if there are")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    source = str(Path(arguments.text).absolute()) if arguments.text else None
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        result = run(Path(work), source, arguments.text_fields, arguments.megabytes)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
