"""Facts and samples of a corpus, computed from its live documents."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from bert_pipeline.core.text import NUM_CODE_POINTS
from bert_pipeline.data.tokenizer.characters import BLANK, LETTER
from bert_pipeline.data.tokenizer.items import itemize
from bert_pipeline.formats.corpus import CorpusShard, corpus_shards, iterate_documents
from bert_pipeline.formats.tables import SPLITS
from bert_pipeline.store.artifact import Facts

HISTOGRAM_EDGES = np.unique(np.round(2 ** np.arange(0, 31.5, 0.5)).astype(np.int64))
"""Half octaves from 1 to 2**31: 1, 2, 3, 4, 6, 8, 11, 16, ..."""

SHOWN_JOURNALS = 20
SHOWN_SHARDS = 64
SHOWN_DOCUMENTS = 5
EXAMPLE_LENGTH = 5_000  # characters
PART_BYTES = 2**22

FIRST_COUNT = 100
"""Words before the first count of the vocabulary; a count follows at each half octave, 25 times up to 500,000."""
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


def vocabulary_growth(batches: Iterable[pa.StringArray], max_words: int = 500_000) -> dict[str, list[int]]:
    """How the number of distinct lower-cased words grows with the words read; `batches`: the sentences.

    {"words": [100, 141, ...], "distinct": [...]}: exact counts; the last is at the end of the texts or at `max_words`.
    Memory holds the distinct words. A word between blanks is lower-cased, and its surroundings removed, once in a part.
    """
    numbers_of: dict[str, int] = {}
    firsts: list[np.ndarray] = []  # the places of the first occurrences
    seen = 0
    for sentences in _parts(batches):
        items = itemize(sentences, _split_at_blanks())
        known = len(numbers_of)
        lower = map(str.lower, items.strings())
        found = (item if item.isalnum() else "".join(WORD.findall(item)) for item in lower)
        numbers = np.array([numbers_of.setdefault(word, len(numbers_of)) if word else -1 for word in found], np.int64)
        places = np.empty(len(numbers_of) - known, np.int64)
        seen = _find_firsts(numbers, items.numbers, known, places, seen)
        firsts.append(places)
        if seen >= max_words:
            break
    seen = min(seen, max_words)
    octaves = (min(round(FIRST_COUNT * 2 ** (half / 2)), max_words) for half in range(2 * max_words.bit_length()))
    counts = sorted({count for count in octaves if count <= seen} | {seen} - {0})
    return {"words": counts, "distinct": np.searchsorted(np.concatenate([[], *firsts]), counts).tolist()}


@njit(cache=True)
def _find_firsts(words, items, known, places, seen):
    """Write the place of the first occurrence of word known + n to places[n]; return the number of words seen.

    Words are numbered in the order of their first occurrences; item i is the word words[i], or none (-1).
    """
    found = 0
    for item in items:
        if words[item] == known + found:
            places[found] = seen
            found += 1
        seen += words[item] >= 0
    return seen


def _parts(batches: Iterable[pa.StringArray]) -> Iterator[pa.StringArray]:
    """The sentences, in parts of PART_BYTES and more."""
    part: list[pa.StringArray] = []
    size = 0
    for sentences in batches:
        part.append(sentences)
        size += sentences.nbytes
        if size >= PART_BYTES:
            yield pa.concat_arrays(part)
            part, size = [], 0
    yield pa.concat_arrays([pa.array([], pa.string()), *part])


@cache
def _split_at_blanks() -> np.ndarray:
    kinds = np.full(NUM_CODE_POINTS, LETTER, np.uint8)
    kinds[[code for code in range(0x3001) if chr(code).isspace()]] = BLANK  # U+3000 is the last one
    return kinds


def _shards(corpus: Path, split: str) -> list[CorpusShard]:
    try:
        return corpus_shards(corpus, split)
    except FileNotFoundError:
        return []


def _spread(corpus: Path) -> Iterator[pa.StringArray]:
    """Sentences of the training documents of up to SHOWN_SHARDS shards, spread evenly over the corpus."""
    shards = _shards(corpus, "train")
    for shard in shards[:: -(-len(shards) // SHOWN_SHARDS) or 1]:
        for batch in shard.batches("sentences"):
            yield batch["sentences"].flatten()


def _train(corpus: Path) -> Iterator[list[str]]:
    return iterate_documents(corpus, "train") if _shards(corpus, "train") else iter(())


def _histogram(counts: np.ndarray) -> dict[str, list[int]]:
    """Drop the empty bins at both ends. Bin i counts edges[i] <= x < edges[i + 1]."""
    occupied = np.flatnonzero(counts)
    first, last = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, 0)
    return {"edges": HISTOGRAM_EDGES[first : last + 2].tolist(), "counts": counts[first : last + 1].tolist()}
