"""Facts and samples of a corpus, computed from its live documents."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from bert_pipeline.formats.corpus import CorpusShard, corpus_shards, iterate_documents
from bert_pipeline.formats.tables import SPLITS
from bert_pipeline.store.artifact import Facts

HISTOGRAM_EDGES = np.unique(np.round(2 ** np.arange(0, 31.5, 0.5)).astype(np.int64))
"""Half octaves from 1 to 2**31: 1, 2, 3, 4, 6, 8, 11, 16, ..."""

SHOWN_JOURNALS = 20
SHOWN_SHARDS = 64
SHOWN_DOCUMENTS = 5
EXAMPLE_LENGTH = 5_000  # characters

FIRST_COUNT = 100
"""Words before the first count of the vocabulary; a count follows at each half octave, 29 times up to 2,000,000."""
WORD = re.compile(r"\w(?:\S*\w)?")
"""Text between white space, without surrounding punctuation: `il-2`, `p<0.05`, `patients`."""


def about_documents(corpus: Path) -> Facts:
    """Counts, histograms, years, journals, the growth of the vocabulary and an example text."""
    counts = dict.fromkeys([f"{split}_{unit}" for unit in ("documents", "sentences", "words") for split in SPLITS], 0)
    histograms = {unit: np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64) for unit in ("sentences", "words")}
    years: Counter[str] = Counter()
    journals: Counter[str] = Counter()
    for split in SPLITS:
        for shard in _shards(corpus, split):
            table = shard.read("num_sentences", "num_words", "date", "journal")
            counts[f"{split}_documents"] += len(table)
            for unit in histograms:
                column = table[f"num_{unit}"].to_numpy()
                counts[f"{split}_{unit}"] += int(column.sum())
                histograms[unit] += np.histogram(column, HISTOGRAM_EDGES)[0]
            for found, values in ((years, pc.utf8_slice_codeunits(table["date"], 0, 4)), (journals, table["journal"])):
                found.update({row["values"]: row["counts"] for row in values.value_counts().to_pylist()})
    for found in (years, journals):
        found.pop("", None)
    return counts | {
        **{f"{unit}_per_document_histogram": _histogram(counts) for unit, counts in histograms.items()},
        "documents_by_year": dict(sorted(years.items())),
        "documents_by_journal": dict(sorted(journals.items(), key=lambda each: (-each[1], each[0]))[:SHOWN_JOURNALS]),
        "vocabulary_growth": vocabulary_growth(_spread(corpus)),
        "example": next(("\n".join(each)[:EXAMPLE_LENGTH] for each in _train(corpus)), ""),
    }


def samples(corpus: Path) -> list[tuple[str, list[str]]]:
    """(id, sentences) of the first document of each of the first SHOWN_DOCUMENTS training shards."""
    shown = []
    for shard in _shards(corpus, "train")[:SHOWN_DOCUMENTS]:
        batch = next(shard.batches("document_id", "sentences"))
        shown.append((batch["document_id"][0].as_py(), batch["sentences"][0].as_py()))
    return shown


def vocabulary_growth(texts: Iterable[list[str]], max_words: int = 2_000_000) -> dict[str, list[int]]:
    """How the number of distinct lower-cased words grows with the words read; `texts`: the sentences of each document.

    {"words": [100, 141, ...], "distinct": [...]}: exact counts; the last is at the end of the texts or at `max_words`.
    Memory holds the distinct words.
    """
    growth: dict[str, list[int]] = {"words": [], "distinct": []}
    distinct: set[str] = set()
    seen, count_at = 0, min(FIRST_COUNT, max_words)

    def count() -> None:
        growth["words"].append(seen)
        growth["distinct"].append(len(distinct))

    for words in (WORD.findall(sentence.lower()) for sentences in texts for sentence in sentences):
        while seen + len(words) >= count_at:
            taken, words = words[: count_at - seen], words[count_at - seen :]
            distinct.update(taken)
            seen = count_at
            count()
            if seen == max_words:
                return growth
            count_at = min(round(FIRST_COUNT * 2 ** (len(growth["words"]) / 2)), max_words)
        distinct.update(words)
        seen += len(words)
    if seen and seen not in growth["words"]:
        count()
    return growth


def _shards(corpus: Path, split: str) -> list[CorpusShard]:
    try:
        return corpus_shards(corpus, split)
    except FileNotFoundError:
        return []


def _spread(corpus: Path) -> Iterator[list[str]]:
    """Training documents of up to SHOWN_SHARDS shards, spread evenly over the corpus."""
    shards = _shards(corpus, "train")
    for shard in shards[:: -(-len(shards) // SHOWN_SHARDS) or 1]:
        for batch in shard.batches("sentences"):
            yield from batch["sentences"].to_pylist()


def _train(corpus: Path) -> Iterator[list[str]]:
    return iterate_documents(corpus, "train") if _shards(corpus, "train") else iter(())


def _histogram(counts: np.ndarray) -> dict[str, list[int]]:
    """Drop the empty bins at both ends. Bin i counts edges[i] <= x < edges[i + 1]."""
    occupied = np.flatnonzero(counts)
    first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, 0)
    return {"edges": HISTOGRAM_EDGES[first : last + 2].tolist(), "counts": counts[first : last + 1].tolist()}
