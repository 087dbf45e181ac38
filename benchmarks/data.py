"""Speed of the data stages and of their peers: same text, same run, one core each.

    python -m benchmarks.data [--text FILE]... [--text-fields title,text] [--megabytes 25] [--json]

    encode                   text to ids: ours, `tokenizers` on whole sentences; the ids of every line are compared
    pairs-and-masks          ids to masked rows in memory: ours, Google's algorithm, NVIDIA LDDL
    whole-way                sentences to masked rows on disk: ours, Google's algorithm, transformers 4.57, LDDL
    whole-way-from-raw-text  the same, but ours also reads raw text, cleans it and splits it into sentences
    whole-way-two-workers    ours with two workers on two cores, and with one
    loader                   rows on disk to tensors with fresh masks: ours, transformers' collator

With several texts, the first table shows the worst and the best ratio of each comparison, the lowest ratio first.

Rates are millions of tokens per second in the best round; ours and the peers alternate. `encode` counts the tokens of
the text; the others count the tokens of the rows, with [CLS] and [SEP], without padding. Compilation, imports and
process start-up are not included.

The peers are slow, so they read a smaller part of the same text. They are installed from the package index into their
own folders below BERT_PIPELINE_HOME/peers; if that fails, the row of the peer shows the reason.
"""

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, measure
from benchmarks.machine import machine
from benchmarks.peers.environments import PACKAGES, environment
from benchmarks.rows import Row, Run, about, extremes, row, table, take_turns, tell
from benchmarks.text import Fields
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.fitting.fields import choose_fields
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.settings import home

ROUNDS, SCALE_ROUNDS = 3, 2
PEER_MEGABYTES = 3.0
"""Sentences that a peer reads in whole-way."""
SCALE_MEGABYTES = 60.0
"""Least text for two workers and for memory, because processes take seconds to start."""
SHARDS = 8
"""Least number of shards of the larger text; a shard has at most the default number of documents of a recipe."""
BATCH_SIZE = 256
METHODS = ("encode_batch", "encode_batch_fast")

GOOGLE = "google-research/bert in Python"
TRANSFORMERS = f"{PACKAGES['transformers'][0].replace('==', ' ')} NSP dataset + collator"
LDDL = f"NVIDIA {PACKAGES['lddl'][0].replace('==', ' ')}"


@dataclass(frozen=True)
class Bench:
    """Folder and cores of the measurements of one text."""

    work: Path
    cores: list[int]
    compiled: Path
    """Folder of the compiled code, shared by all texts."""

    def run(
        self, module: str, task: str, *, workers: int = 1, environments: tuple[str, ...] = (), **arguments: Any
    ) -> Answer:
        return measure(
            f"benchmarks.{module}",
            task,
            cores=set(self.cores[:workers]),
            search_path=[environment(name) for name in environments],
            environment={"BERT_PIPELINE_WORKERS": str(workers), "NUMBA_CACHE_DIR": str(self.compiled)},
            **arguments,
        )


@dataclass(frozen=True)
class Text:
    """The first megabytes of a text, in their own folder; see text.py."""

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
        """Each round encodes a third of every shard, so that all rounds together compare every line."""
        arguments: dict[str, Any] = {"folder": text.folder, "ours": ids, "method": method, "parts": ROUNDS}
        return lambda number: bench.run("peers.tokenizers_batch", "encode_batch", **arguments, part=number)

    peers = {f"tokenizers {version('tokenizers')} {method}": library(method) for method in METHODS}
    # All are passed as ours, so that a failed comparison ends the benchmark.
    runs: dict[str, Run] = {"ours": lambda _: bench.run("ours", "encode", folder=text.folder, out=ids), **peers}
    answers = take_turns(runs, {}, ROUNDS)
    for name in peers:
        for answer in answers[name]:
            if answer["difference"]:
                raise SystemExit(f"our ids differ from {name}: {answer['difference']}")
    return [row("encode", answers["ours"], answers[name], name) for name in peers]


def datasets(bench: Bench, text: Text, max_seq_length: int) -> tuple[list[Row], Answer]:
    """Rows of pairs-and-masks and whole-way at one length (a peer's run gives both times), and our best run."""
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
    """Compare two workers with one on the larger text, and one worker's peak memory on all and on a quarter of it."""
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
    """Seconds of compilation: the first run on a few generated documents minus the second."""
    tell("compiling")
    seconds = []
    for name in ("compile", "compiled"):
        seconds.append(Text.take(bench, name, None, ("text",), 0.2).prepare(bench, 50)["seconds"])
    return seconds[0] - seconds[1]


def measure_text(bench: Bench, source: str | None, fields: Fields, megabytes: float) -> dict[str, Any]:
    """All comparisons on one text."""
    tell(f"text: {source or 'generated sample'}")
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
        "name": Path(source).name if source else "generated sample (few distinct words: give real text by --text)",
        "text_fields": fields,
        "documents": text.documents,
        "megabytes": text.megabytes,
        "documents_per_shard": documents_per_shard,
        **{key: prepared[key] for key in ("sentences", "words", "vocab_size", "peer_megabytes")},
        "rows": rows,
        "memory": memory,
        "disk": disk,
    }


def run(work: Path, sources: dict[str | None, Fields], megabytes: float) -> dict[str, Any]:
    cores, compiled = sorted(os.sched_getaffinity(0)), work / "numba"
    compiling = first_compilation(Bench(work, cores, compiled))
    texts = []
    for number, (source, fields) in enumerate(sources.items()):
        bench = Bench(work / f"text-{number}", cores, compiled)
        bench.work.mkdir()
        texts.append(measure_text(bench, source, fields, megabytes))
        tell("\n".join(about(texts[-1])))  # known even if a later text fails
        shutil.rmtree(bench.work)
    return {
        "machine": machine(cores, "numba", "numpy", "pyarrow", "tokenizers", "torch", "transformers"),
        "extremes": extremes(texts),
        "texts": texts,
        "first_compilation_seconds": compiling,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=os.path.abspath,
        action="append",
        help="read this text: .txt, .jsonl, .csv, .parquet, also .gz, .xz, .zst; repeat the option for several texts",
    )
    parser.add_argument(
        "--text-fields", type=lambda names: tuple(names.split(",")), help="default: the first found of the usual names"
    )
    parser.add_argument(
        "--megabytes", type=float, default=25.0, help="megabytes of text; two workers read 60 if available"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    sources: dict[str | None, Fields] = {}
    for text in arguments.text or [None]:
        try:
            sources[text] = arguments.text_fields or (choose_fields(text)[0] if text else ("text",))
        except SourceError as error:
            parser.error(str(error))
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=home()) as work:
        result = run(Path(work), sources, arguments.megabytes)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
