"""Near duplicates: MinHash signatures, banding, and a greedy pass in corpus order.

    text -> words -> 5-grams -> signature -> 128 bytes      depends on the text alone; stored with every record
    signatures -> bands -> pairs that share a band          one sort per band; never all pairs of documents
    pairs -> estimated similarity -> records to drop        the earliest stays; later files change no earlier decision

Similarity is the Jaccard similarity of the sets of word 5-grams (Broder 1997, "On the resemblance and containment of
documents"). The hash functions are implemented here because signatures are stored for years: MinHash libraries change
theirs (rensa 0.5.0, datasketch 2.0.0), which would require recomputing all signatures from the texts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from bert_pipeline.data.contamination.ngrams import BASE, fold, hash_windows, mixed, ranges, word_codes

SIGNATURE_SIZE = 128
"""The standard error of an estimated similarity s is sqrt(s (1 - s) / 128): 0.035 at 0.8."""
NGRAM_WORDS = 5
CANDIDATE_PROBABILITY = 0.95
"""Probability that a pair exactly at the threshold shares a band; it rises fast above the threshold."""
LOWEST_THRESHOLD = 0.05
"""Below this threshold, even bands of one row miss CANDIDATE_PROBABILITY."""
BUCKET = 32
"""A document is paired with at most the first 32 documents that share its band, so n documents give at most 32 n pairs
per band, whatever their texts."""

_PERMUTATIONS = np.random.PCG64(0).random_raw(2 * SIGNATURE_SIZE).astype(np.uint32).reshape(2, SIGNATURE_SIZE)
_MULTIPLIERS, _ADDENDS = (
    _PERMUTATIONS[0] | np.uint32(1),
    _PERMUTATIONS[1],
)  # odd multipliers map distinct hashes to distinct values
_GOLDEN = np.uint32(0x9E3779B1)  # Fibonacci hashing (Knuth, volume 3, section 6.4): the upper bits depend on all bits
_NONE = np.uint32(0xFFFFFFFF)
_CHANCE = 1 / 256


class Duplicates(NamedTuple):
    """The near duplicates to drop; (duplicates,) arrays, ascending by record."""

    records: np.ndarray  # int64
    stays: np.ndarray  # int64: the most similar earlier record that stays; the earliest of equals
    similarity: np.ndarray  # float32: estimated similarity of the two


def signatures(texts: Sequence[str]) -> np.ndarray:
    """(texts, SIGNATURE_SIZE) uint32: the minimum of each permutation over the word 5-grams of a text.

    Words are defined in contamination/ngrams.py: runs of letters and digits, without case and accents. A text of one to
    four words is one n-gram. Texts without words all have the same signature.
    """
    words = fold(texts)
    codes = word_codes(words.letters, words.starts)
    return _least(codes, words.firsts, np.uint64(BASE), _MULTIPLIERS, _ADDENDS)


def packed(signatures: np.ndarray) -> np.ndarray:
    """(n, SIGNATURE_SIZE) uint8: the stored form of signatures (b-bit minwise hashing, Li and König 2010, with b = 8).

    A quarter of the size; the standard error of a similarity grows by less than 1%.
    """
    return ((signatures * _GOLDEN) >> np.uint32(24)).astype(np.uint8)


def similarity(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """(n,) float32: the estimated Jaccard similarity of n pairs of packed signatures, each (n, SIGNATURE_SIZE) uint8.

    The share of equal bytes, corrected for bytes that are equal by chance (Li and König 2010, theorem 1).
    """
    equal = np.count_nonzero(earlier == later, axis=1) / SIGNATURE_SIZE
    return np.maximum((equal - _CHANCE) / (1 - _CHANCE), 0).astype(np.float32)


def num_rows(threshold: float) -> int:
    """Rows per band: the most for which a pair at the threshold shares a band with CANDIDATE_PROBABILITY.

    r rows give b = SIGNATURE_SIZE // r bands; a pair of similarity s shares at least one with probability
    1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2).
    Raises ValueError if the threshold is outside LOWEST_THRESHOLD to 1.
    """
    if not LOWEST_THRESHOLD <= threshold <= 1:
        raise ValueError(
            f"cannot detect a similarity of {threshold:g}; remedy: use a threshold of {LOWEST_THRESHOLD} to 1"
        )
    return max(
        rows
        for rows in range(1, SIGNATURE_SIZE + 1)
        if 1 - (1 - threshold**rows) ** (SIGNATURE_SIZE // rows) >= CANDIDATE_PROBABILITY
    )


def bands(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """(n, bands) uint64: a hash of each band of n signatures, either all packed or all unpacked.

    Packed signatures share a band slightly more often: a similarity s counts as s + (1 - s) / 256.
    """
    return _hash_bands(signatures, num_rows(threshold), np.uint64(BASE))


def pairs_of_band(hashes: np.ndarray, records: np.ndarray) -> np.ndarray:
    """(pairs, 2) int64: records with equal hashes in one band, the earlier record first; see BUCKET.

    `hashes` is (n,) uint64, `records` (n,) int64 and ascending. Partitioning the hashes by value (hash % parts) gives
    the same pairs in total, and adding later records changes no pair of earlier ones.
    """
    order = np.argsort(hashes)
    ordered = hashes[order]
    shared = np.zeros(len(order), np.bool_)
    shared[1:] = ordered[1:] == ordered[:-1]
    shared[:-1] |= shared[1:]
    order = order[shared]  # keep shared hashes only, sorted by bucket, then by record
    order = order[np.lexsort((order, hashes[order]))]
    _, begins, sizes = np.unique(hashes[order], return_index=True, return_counts=True)
    begins = np.repeat(begins, sizes)
    counts = np.minimum(np.arange(len(order)) - begins, BUCKET)
    earlier, later = ranges(begins, counts), np.repeat(np.arange(len(order)), counts)
    return records[np.stack([order[earlier], order[later]], axis=1)]


def unique_pairs(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """(m, 2) int64: each pair once, sorted by the later, then by the earlier record. Records must be below 2**31."""
    together = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    later, earlier = np.divmod(np.unique(together[:, 1] << 32 | together[:, 0]), 1 << 32)
    return np.stack([earlier, later], axis=1)


def select_duplicates(pairs: np.ndarray, similarity: np.ndarray, threshold: float) -> Duplicates:
    """The records with a similarity of at least `threshold` to an earlier record that stays.

    Records are decided in order, so each decision depends only on earlier records, and no record is dropped because of
    a dropped one. `pairs` is (m, 2) int64, the earlier record first; `similarity` is (m,) float32.
    """
    near = similarity >= np.float32(threshold)
    pairs, similarity = pairs[near], similarity[near]
    order = np.lexsort((pairs[:, 0], -similarity, pairs[:, 1]))
    pairs, similarity = pairs[order], similarity[order]
    chosen = _greedy(np.unique(pairs, return_inverse=True)[1].reshape(-1, 2))
    return Duplicates(pairs[chosen, 1], pairs[chosen, 0], similarity[chosen])


def duplicates_among(texts: Sequence[str], threshold: float) -> Duplicates:
    """The near duplicates of a list, by position, all in memory. The corpus itself works from stored signatures."""
    signed, records = packed(signatures(texts)), np.arange(len(texts))
    pairs = unique_pairs([pairs_of_band(band, records) for band in bands(signed, threshold).T])
    return select_duplicates(pairs, similarity(signed[pairs[:, 0]], signed[pairs[:, 1]]), threshold)


@njit(cache=True)
def _least(codes, firsts, base, multipliers, addends):
    out = np.full((len(firsts) - 1, len(multipliers)), _NONE, np.uint32)
    windows = np.empty(len(codes), np.uint64)
    for text in range(len(out)):
        first, end = firsts[text], firsts[text + 1]
        size = min(NGRAM_WORDS, end - first)
        count = hash_windows(codes, first, end, size, base, windows) if size else 0
        row = out[text]
        for k in range(count):
            code = np.uint32(windows[k])
            for n in range(len(row)):
                row[n] = min(row[n], np.uint32(multipliers[n] * code + addends[n]))
    return out


@njit(cache=True)
def _hash_bands(signatures, rows, base):
    out = np.zeros((len(signatures), signatures.shape[1] // rows), np.uint64)
    for n in range(out.shape[0]):
        for band in range(out.shape[1]):
            code = np.uint64(0)
            for at in range(band * rows, (band + 1) * rows):
                code = code * base + np.uint64(signatures[n, at])
            out[n, band] = mixed(code)
    return out


@njit(cache=True)
def _greedy(pairs):
    """Indices of the pairs that drop a record: for each later record, its first pair whose earlier record stays."""
    falls = np.zeros(pairs.max() + 1 if len(pairs) else 0, np.bool_)
    chosen = np.empty(len(pairs), np.int64)
    count = 0
    for n in range(len(pairs)):
        earlier, later = pairs[n]
        if not (falls[earlier] or falls[later]):
            falls[later] = True
            chosen[count] = n
            count += 1
    return chosen[:count]
