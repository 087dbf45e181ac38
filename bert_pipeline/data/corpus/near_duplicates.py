"""Which documents are nearly the same: MinHash, bands, and a greedy pass in the order of the corpus.

    text -> words -> 5-grams -> signature -> 128 bytes      a function of the text alone, kept with every record
    signatures -> bands -> pairs that share a band          a sort for each band; never all pairs of documents
    pairs -> estimated similarity -> who falls              the earliest stays; a later file changes no earlier fate

Similarity is the Jaccard similarity of the sets of word 5-grams (Broder 1997, "On the resemblance and containment of
documents"). The hashes are of this house, not a library's, because they are kept for years: libraries of MinHash
change theirs (rensa 0.5.0, datasketch 2.0.0), and what is kept must then be made again from every text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from bert_pipeline.data.contamination.ngrams import BASE, fold, hash_windows, mixed, ranges, word_codes

SIGNATURE_SIZE = 128
"""The standard error of a similarity s is sqrt(s (1 - s) / 128): 0.035 at 0.8."""
NGRAM_WORDS = 5
CANDIDATE_PROBABILITY = 0.95
"""Of a pair exactly at the threshold; it grows fast above."""
LOWEST_THRESHOLD = 0.05
"""Below, not even bands of one row give a pair that probability."""
BUCKET = 32
"""A document is paired with no more than the first 32 of those with which it shares a band, so that n documents make
at most 32 n pairs a band, whatever they hold."""

_PERMUTATIONS = np.random.PCG64(0).random_raw(2 * SIGNATURE_SIZE).astype(np.uint32).reshape(2, SIGNATURE_SIZE)
_MULTIPLIERS, _ADDENDS = _PERMUTATIONS[0] | np.uint32(1), _PERMUTATIONS[1]  # odd: no two hashes become one
_GOLDEN = np.uint32(0x9E3779B1)  # Fibonacci hashing (Knuth, volume 3, section 6.4): the upper bits depend on all
_NONE = np.uint32(0xFFFFFFFF)
_CHANCE = 1 / 256


class Fallen(NamedTuple):
    """The near duplicates that go; arrays of (fallen,), ascending by record."""

    records: np.ndarray  # int64
    stays: np.ndarray  # int64: the most similar earlier record of those that stay; among equals the earliest
    similarity: np.ndarray  # float32: of the two, estimated


def signatures(texts: Sequence[str]) -> np.ndarray:
    """(texts, SIGNATURE_SIZE) uint32: the least value of each permutation over the word 5-grams of a text.

    Words are as in ngrams.py: runs of letters and digits, without case and accents. A text of one to four words is
    one n-gram. Texts without words are all alike.
    """
    words = fold(texts)
    codes = word_codes(words.letters, words.starts)
    return _least(codes, words.firsts, np.uint64(BASE), _MULTIPLIERS, _ADDENDS)


def packed(signatures: np.ndarray) -> np.ndarray:
    """(n, SIGNATURE_SIZE) uint8: what is kept of signatures (b-bit minwise hashing, Li and König 2010, with b = 8).

    A quarter of the size; the standard error of a similarity grows by less than a hundredth of itself.
    """
    return ((signatures * _GOLDEN) >> np.uint32(24)).astype(np.uint8)


def similarity(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """(n,) float32: the estimated Jaccard similarity of n pairs, given as packed signatures of (n, SIGNATURE_SIZE).

    The share of equal bytes, less those that chance makes equal (Li and König 2010, theorem 1).
    """
    equal = np.count_nonzero(earlier == later, axis=1) / SIGNATURE_SIZE
    return np.maximum((equal - _CHANCE) / (1 - _CHANCE), 0).astype(np.float32)


def num_rows(threshold: float) -> int:
    """Positions in a band: as many as leave a pair at the threshold its CANDIDATE_PROBABILITY of sharing a band.

    r rows make b = SIGNATURE_SIZE // r bands, of which a pair of similarity s shares one with the probability
    1 - (1 - s^r)^b (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2). Raises ValueError.
    """
    if not LOWEST_THRESHOLD <= threshold <= 1:
        raise ValueError(f"similarity {threshold:g} cannot be told; remedy: a threshold of {LOWEST_THRESHOLD} to 1")
    return max(
        rows
        for rows in range(1, SIGNATURE_SIZE + 1)
        if 1 - (1 - threshold**rows) ** (SIGNATURE_SIZE // rows) >= CANDIDATE_PROBABILITY
    )


def bands(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """(n, bands) uint64: a hash of each band of n signatures, packed or not: all one or all the other.

    Packed ones share a band a little more often: a similarity s counts as s + (1 - s) / 256.
    """
    return _hash_bands(signatures, num_rows(threshold), np.uint64(BASE))


def pairs_of_band(hashes: np.ndarray, records: np.ndarray) -> np.ndarray:
    """(pairs, 2) int64: records, the earlier first, whose hashes of one band are equal; see BUCKET.

    `hashes` is (n,) uint64, `records` (n,) int64 and ascending. The pairs of any partition of the hashes by value
    (hash % parts) are together those of all, and records that come later change no pair of earlier ones.
    """
    order = np.argsort(hashes)
    ordered = hashes[order]
    shared = np.zeros(len(order), np.bool_)
    shared[1:] = ordered[1:] == ordered[:-1]
    shared[:-1] |= shared[1:]
    order = order[shared]  # the few that are not alone, in buckets and there in the order of records
    order = order[np.lexsort((order, hashes[order]))]
    _, begins, sizes = np.unique(hashes[order], return_index=True, return_counts=True)
    begins = np.repeat(begins, sizes)
    counts = np.minimum(np.arange(len(order)) - begins, BUCKET)
    earlier, later = ranges(begins, counts), np.repeat(np.arange(len(order)), counts)
    return records[np.stack([order[earlier], order[later]], axis=1)]


def unique_pairs(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """(m, 2) int64: each pair once, ascending by the later record, then by the earlier. Records are below 2**31."""
    together = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    later, earlier = np.divmod(np.unique(together[:, 1] << 32 | together[:, 0]), 1 << 32)
    return np.stack([earlier, later], axis=1)


def fallen(pairs: np.ndarray, similarity: np.ndarray, threshold: float) -> Fallen:
    """The records that are at least `threshold` similar to an earlier one that stays.

    In the order of the records, so the fate of each rests on earlier ones only, and nobody falls because of one that
    fell. `pairs` is (m, 2) int64, the earlier record first; `similarity` (m,) float32.
    """
    near = similarity >= np.float32(threshold)
    pairs, similarity = pairs[near], similarity[near]
    order = np.lexsort((pairs[:, 0], -similarity, pairs[:, 1]))
    pairs, similarity = pairs[order], similarity[order]
    chosen = _greedy(np.unique(pairs, return_inverse=True)[1].reshape(-1, 2))
    return Fallen(pairs[chosen, 1], pairs[chosen, 0], similarity[chosen])


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
    """The pairs by which a record falls: of each record the first whose earlier one stays."""
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
