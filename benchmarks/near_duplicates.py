"""Near duplicates: speed and quality of ours and of datasketch's MinHashLSH. One process on one core.

    python -m benchmarks.near_duplicates [--text FILE] [--documents 20000] [--threshold 0.8] [--json]

    signatures   texts to the stored signature of each document
    whole-way    texts to the pairs whose estimated similarity reaches the threshold

Rates are documents per second in the best round; both alternate. A tenth of the documents are variants of others with
known similarities (the end of the text is replaced). The reference is the exact Jaccard similarity of the sets of word
5-grams, for all pairs that reach the lowest of these similarities. They are found by prefix filtering, which misses
none (Bayardo, Ma and Srikant 2007, "Scaling up all pairs similarity search"). Compilation, imports and the reference
are not included in the rates.
"""

import argparse
import importlib
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Answer
from benchmarks.machine import machine
from benchmarks.peers.environments import PACKAGES, environment
from benchmarks.rows import Row, row, take_turns, tell
from benchmarks.text import documents
from bert_pipeline.core.tables import Table
from bert_pipeline.data.corpus.near_duplicates import (
    NGRAM_WORDS,
    SIGNATURE_SIZE,
    bands,
    packed,
    pairs_of_band,
    select_duplicates,
    signatures,
    similarity,
    unique_pairs,
)
from bert_pipeline.fitting.fields import choose_fields

ROUNDS = 2
TOGETHER = 1000
SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
MARGIN = 0.05
"""Pairs this near the threshold may fall on either side: the standard error of an estimate is 0.035 at 0.8."""
VOCABULARY = 50_000
PUBMED, SORTED = 38_000_000, 4_000_000
"""Number of records of the forecast, and of the sort from which it is extrapolated."""

Pairs = dict[tuple[int, int], float]
"""(earlier, later): similarity."""


def texts_of(source: str | None, count: int, rng: random.Random) -> list[str]:
    """`count` documents in random order, a tenth of them variants; fewer if the file has fewer."""
    originals = count - count // 10
    if source:
        texts = [" ".join(each.values()) for each in islice(documents(source, choose_fields(source)[0]), originals)]
    else:
        words = [f"w{number}" for number in range(VOCABULARY)]
        frequencies = list(accumulate(1 / (rank + 10) for rank in range(VOCABULARY)))
        sizes = (rng.randrange(100, 300) for _ in range(originals))
        texts = [" ".join(rng.choices(words, cum_weights=frequencies, k=size)) for size in sizes]
    number_of_variants = len(texts) // 9
    for number, original in enumerate(rng.sample(texts, number_of_variants)):
        texts.append(variant(original, SIMILARITIES[number % len(SIMILARITIES)], rng))
    rng.shuffle(texts)
    return texts


def variant(text: str, wanted: float, rng: random.Random) -> str:
    """A text with this similarity s to `text`: 2 s / (1 + s) of the n-grams are kept."""
    words = text.split()
    kept = round((len(words) - NGRAM_WORDS + 1) * 2 * wanted / (1 + wanted)) + NGRAM_WORDS - 1
    return " ".join([*words[:kept], *(f"x{rng.randrange(10**9)}" for _ in words[kept:])])


def ngrams(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    size = min(NGRAM_WORDS, len(words))
    return zip(*(words[n : len(words) - size + n + 1] for n in range(size)), strict=True)


def exact_pairs(texts: list[str], lowest: float) -> Pairs:
    """All pairs whose similarity is at least `lowest`.

    If the n-grams of every document are sorted, rarest first, two such documents share one of the first
    n - ceil(lowest * n) + 1 of their n n-grams.
    """
    held = [np.unique(np.fromiter(map(hash, ngrams(text)), np.int64)) for text in texts]
    sizes = np.array([len(each) for each in held])
    _, numbers, counts = np.unique(np.concatenate(held), return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    held = [np.sort(each) for each in np.split(rank[numbers], np.cumsum(sizes)[:-1])]
    holders: dict[int, list[int]] = {}
    found: Pairs = {}
    for later, mine in enumerate(held):
        prefix = mine[: len(mine) - int(np.ceil(lowest * len(mine))) + 1].tolist()
        for earlier in {other for ngram in prefix for other in holders.get(ngram, ())}:
            if min(sizes[earlier], sizes[later]) >= lowest * max(sizes[earlier], sizes[later]):
                both = len(np.intersect1d(held[earlier], mine, assume_unique=True))
                exact = both / (sizes[earlier] + sizes[later] - both)
                if exact >= lowest:
                    found[earlier, later] = float(exact)
        for ngram in prefix:
            holders.setdefault(ngram, []).append(later)
    return found


def ours(texts: list[str], threshold: float) -> tuple[Answer, Pairs]:
    started = time.perf_counter()
    parts = [texts[first : first + TOGETHER] for first in range(0, len(texts), TOGETHER)]
    kept = np.concatenate([packed(signatures(part)) for part in parts])
    signed = time.perf_counter()
    records = np.arange(len(texts))
    pairs = unique_pairs([pairs_of_band(hashes, records) for hashes in bands(kept, threshold).T])
    estimates = similarity(kept[pairs[:, 0]], kept[pairs[:, 1]])
    near = estimates >= threshold
    ended = time.perf_counter()
    found = {(a, b): float(value) for (a, b), value in zip(pairs[near].tolist(), estimates[near], strict=True)}
    answer = _answer(texts, started, signed, ended)
    return answer | {
        "candidates": len(pairs),
        "fallen": len(select_duplicates(pairs, estimates, threshold).records),
    }, found


def peer(datasketch: Any, texts: list[str], threshold: float) -> tuple[Answer, Pairs]:
    """As in its documentation: query, then insert; the candidates are also compared by their signatures."""
    started = time.perf_counter()
    made = []
    for text in texts:
        made.append(datasketch.MinHash(SIGNATURE_SIZE))
        made[-1].update_batch([" ".join(ngram).encode() for ngram in ngrams(text)])
    signed = time.perf_counter()
    index = datasketch.MinHashLSH(threshold, SIGNATURE_SIZE)
    found: Pairs = {}
    candidates = 0
    for later, signature in enumerate(made):
        for earlier in index.query(signature):
            estimate = made[earlier].jaccard(signature)
            candidates += 1
            if estimate >= threshold:
                found[earlier, later] = estimate
        index.insert(later, signature)
    return _answer(texts, started, signed, time.perf_counter()) | {"candidates": candidates}, found


def _answer(texts: list[str], started: float, signed: float, ended: float) -> Answer:
    seconds = {"seconds": ended - started, "process_seconds": ended - started, "signature_seconds": signed - started}
    return {"tokens": len(texts)} | seconds


def quality(found: Pairs, exact: Pairs, threshold: float) -> dict[str, Any]:
    """Recall and precision at the threshold and with a margin, and the recall at each similarity."""

    def recall(lowest: float, below: float = 1.1) -> float | None:
        wanted = [pair for pair, value in exact.items() if lowest <= value < below]
        return sum(pair in found for pair in wanted) / len(wanted) if wanted else None

    def precision(lowest: float) -> float | None:
        return sum(exact.get(pair, 0) >= lowest for pair in found) / len(found) if found else None

    return {
        "pairs": len(found),
        "recall": recall(threshold),
        "recall_above_margin": recall(threshold + MARGIN),
        "precision": precision(threshold),
        "precision_within_margin": precision(threshold - MARGIN),
        "found_at": {f"{each:g}": recall(each - MARGIN / 2, each + MARGIN / 2) for each in SIMILARITIES},
    }


def forecast(signature_rate: float, threshold: float) -> dict[str, Any]:
    """Time and size for all of PubMed on one core, one band at a time; sorting is extrapolated as n log n."""
    num_bands = bands(np.zeros((1, SIGNATURE_SIZE), np.uint8), threshold).shape[1]
    some = np.random.default_rng(0)
    hashes, records = some.integers(0, 2**64, SORTED, dtype=np.uint64), np.arange(SORTED)
    hashes[some.integers(0, SORTED, SORTED // 50)] = hashes[some.integers(0, SORTED, SORTED // 50)]
    kept = some.integers(0, 256, (SORTED // 10, SIGNATURE_SIZE), dtype=np.uint8)
    started = time.perf_counter()
    pairs_of_band(hashes, records)
    sorted_at = time.perf_counter()
    bands(kept, threshold)
    ended = time.perf_counter()
    scale = PUBMED / SORTED
    return {
        "records": PUBMED,
        "bands": num_bands,
        "kept_gigabytes": PUBMED * SIGNATURE_SIZE / 1e9,
        "signature_minutes": PUBMED / signature_rate / 60,
        "band_hash_minutes": scale * 10 * (ended - sorted_at) / 60,
        "sort_minutes": num_bands * scale * np.log(PUBMED) / np.log(SORTED) * (sorted_at - started) / 60,
    }


def run(source: str | None, count: int, threshold: float) -> dict[str, Any]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = texts_of(source, count, random.Random(1))
    tell(f"judging {len(texts):,} documents")
    exact = exact_pairs(texts, min(SIMILARITIES[0], threshold) - MARGIN)
    found: dict[str, Pairs] = {}

    def our_turn(_: int) -> Answer:
        answer, found["ours"] = ours(texts, threshold)
        return answer

    def peer_turn(_: int) -> Answer:
        folder = str(environment("datasketch"))
        if folder not in sys.path:
            sys.path.insert(0, folder)
        answer, found["peer"] = peer(importlib.import_module("datasketch"), texts, threshold)
        return answer

    ours(texts[:10], threshold)  # compiles
    answers = take_turns({"ours": our_turn}, {"peer": peer_turn}, ROUNDS)
    name = f"{PACKAGES['datasketch'][0].replace('==', ' ')} MinHashLSH"
    clocks = {"signatures": "signature_seconds", "whole-way": "seconds"}
    rows: list[Row] = [
        row(each, answers["ours"], answers["peer"], name, clock, "documents/s", threshold=threshold)
        for each, clock in clocks.items()
    ]
    return {
        "machine": machine([0], "numba", "numpy"),
        "text": {"name": Path(source).name if source else "generated", "documents": len(texts)},
        "threshold": threshold,
        "rows": rows,
        "candidates": {side: answers[side][-1].get("candidates") for side in answers},
        "fallen": answers["ours"][-1]["fallen"],
        "exact_pairs": sum(value >= threshold for value in exact.values()),
        "quality": {side: quality(pairs, exact, threshold) for side, pairs in found.items()},
        "forecast": forecast(rows[0]["ours"], threshold),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['machine']['cpu']}, one core; {result['text']['name']}: {result['text']['documents']:,} documents, "
        f"{result['exact_pairs']:,} pairs of similarity {result['threshold']:g} or more; "
        f"{result['fallen']:,} documents dropped",
        "",
    ]
    rates = []
    for each in result["rows"]:
        peer = (f"{each['peer']:,.0f}", f"{each['ratio']:.1f}x") if each["ratio"] else ("-", each["reason"])
        rates.append((each["name"], f"{each['ours']:,.0f}", *peer))
    lines.append(Table(("documents/s", "ours", result["rows"][0]["peer_name"], "ratio"), rates).text())
    shares = ("recall", "recall_above_margin", "precision", "precision_within_margin")
    found = [
        (side, f"{figures['pairs']:,}", f"{result['candidates'][side]:,}", *(_share(figures[key]) for key in shares))
        for side, figures in result["quality"].items()
    ]
    lines.append(Table(("quality", "pairs", "candidates", *(key.replace("_", " ") for key in shares)), found).text())
    recalls = {side: figures["found_at"] for side, figures in result["quality"].items()}
    similarities = list(recalls["ours"])
    found = [(side, *(_share(recall[each]) for each in similarities)) for side, recall in recalls.items()]
    lines.append(Table(("recall at similarity", *similarities), found).text())
    ahead = result["forecast"]
    lines += [
        f"{ahead['records']:,} records on one core: {ahead['kept_gigabytes']:.1f} GB kept, signatures "
        f"{ahead['signature_minutes']:.1f} min, hashes of {ahead['bands']} bands {ahead['band_hash_minutes']:.1f} min, "
        f"their sorts {ahead['sort_minutes']:.1f} min.",
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", metavar="FILE", help="read this text: .txt, .jsonl, .csv, .parquet, also .gz, .xz, .zst"
    )
    parser.add_argument("--documents", type=int, default=20_000, help="number of documents")
    parser.add_argument("--threshold", type=float, default=0.8, help="least similarity of a pair")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    result = run(arguments.text, arguments.documents, arguments.threshold)
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
