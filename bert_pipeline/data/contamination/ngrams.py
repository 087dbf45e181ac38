"""Find n-grams of known texts in documents: by hash, then by comparing letters.

    known texts -> words -> distinct n-grams in a hash table      built once; its size depends on the known texts only
    documents -> words -> rolling hashes -> table -> n-grams      one pass over a corpus of any size
    n-grams found -> how much of each known text is covered

A word is a run of letters and digits, lower-cased and without accents; everything between words is ignored. So running
text and the tokens of an evaluation set ("22 - oxacalcitriol") give the same words. Placeholders for entities (@GENE$)
split a known text into pieces, and each piece is searched separately.
"""

import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

NGRAM_WORDS = 13
"""The length that Brown et al. 2020 (arXiv 2005.14165, appendix C) use to search for their test sets."""
MIN_WORDS = 8
"""A piece of 8 to 12 words is one n-gram, looked up by its first 8 words; shorter pieces are not searched."""
DUMMY = re.compile(r"@[^\s@$]+\$")

_BLANK, _LETTER, _PASSED_OVER = range(3)
BASE = 0x9E3779B97F4A7C15  # of the polynomial hash of n-grams; odd, so that no word is shifted out of it
_FNV_BASIS, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # from MurmurHash3's finalizer
_SHIFT = np.uint64(33)
_LOW = np.uint64(7)


class Words(NamedTuple):
    """The words of several texts."""

    letters: np.ndarray  # (bytes,) uint8: UTF-8, words concatenated without separators
    starts: np.ndarray  # (words + 1,) int32: where each word starts in `letters`
    firsts: np.ndarray  # (texts + 1,) int32: the first word of each text


class Matches(NamedTuple):
    """The overlap of one document with known texts; (n,) arrays over the n texts that share an n-gram with it."""

    texts: np.ndarray  # numbers of the texts, ascending
    words: np.ndarray  # number of words of the text that the shared n-grams cover
    longest_runs: np.ndarray  # longest run of such words, in words


def fold(texts: Sequence[str]) -> Words:
    """The words of texts after NFKD normalization, without case and accents."""
    encoded = [unicodedata.normalize("NFKD", text).lower().encode(errors="surrogatepass") for text in texts]
    ends = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=ends[1:])
    return Words(*_fold(np.frombuffer(b"".join(encoded), np.uint8), ends, _kinds()))


@cache
def _kinds() -> np.ndarray:
    """(code points,) uint8: the kind of each character. Control characters are ignored as in data/corpus/shard.py."""
    kinds = np.full(sys.maxunicode + 1, _BLANK, np.uint8)
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(character := chr(code))
        if category[0] in "LN":
            kinds[code] = _LETTER
        elif category[0] == "M" or (category in ("Cc", "Cf") and not character.isspace()):
            kinds[code] = _PASSED_OVER
    return kinds


@dataclass(frozen=True)
class NgramIndex:
    """The distinct n-grams of known texts and their positions in the texts."""

    letters: np.ndarray  # as in Words
    starts: np.ndarray
    piece_of_word: np.ndarray  # (words,) int32
    text_of_piece: np.ndarray  # (pieces,) int32
    num_words: np.ndarray  # (texts,) int32: words in pieces that are searched
    filter: np.ndarray  # (power of two,) uint8: one bit per hash; most lookups end here, in the CPU cache
    table: np.ndarray  # (power of two,) int32: hash table, open addressing: number of the n-gram; -1: empty
    hashes: np.ndarray  # (n-grams,) uint64
    places: np.ndarray  # (n-grams,) int32: first word of the first occurrence
    lengths: np.ndarray  # (n-grams,) int32: length in words
    occurrences: np.ndarray  # (occurrences,) int32: first words of all occurrences, grouped by n-gram
    offsets: np.ndarray  # (n-grams + 1,) int64: into `occurrences`
    base: np.ndarray  # (1,) uint64: base of the polynomial hash

    @classmethod
    def build(cls, texts: Sequence[Sequence[str]], base: int = BASE) -> "NgramIndex":
        """Build the index of texts. Each text is a sequence of parts; no n-gram spans two parts."""
        pieces = [[piece for part in parts for piece in DUMMY.split(part)] for parts in texts]
        text_of_piece = np.repeat(np.arange(len(texts), dtype=np.int32), [len(each) for each in pieces])
        words = fold([piece for each in pieces for piece in each])
        sizes = np.diff(words.firsts)
        counts = np.where(sizes < MIN_WORDS, 0, np.maximum(sizes - NGRAM_WORDS + 1, 1))
        table = np.full(1 << int(2 * counts.sum() + 1).bit_length(), -1, np.int32)
        filter = np.zeros(max(1, len(table) // 2), np.uint8)
        bases = np.array([base], np.uint64)
        ngrams, begins, hashes, places, lengths = _enter(*words, int(counts.sum()), filter, table, bases)
        offsets = np.zeros(len(hashes) + 1, np.int64)
        np.cumsum(np.bincount(ngrams, minlength=len(hashes)), out=offsets[1:])
        return cls(
            words.letters,
            words.starts,
            np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            text_of_piece,
            np.bincount(text_of_piece, np.where(counts, sizes, 0), len(texts)).astype(np.int32),
            filter,
            table,
            hashes,
            places,
            lengths,
            begins[np.argsort(ngrams, kind="stable")],
            offsets,
            bases,
        )

    @property
    def num_bytes(self) -> int:
        return sum(getattr(self, each.name).nbytes for each in fields(self))

    def save(self, folder: Path) -> None:
        for each in fields(self):
            np.save(folder / f"{each.name}.npy", getattr(self, each.name))

    @classmethod
    def load(cls, folder: Path) -> "NgramIndex":
        """Memory-map the index, so that all worker processes of a machine share it."""
        return cls(*(np.load(folder / f"{each.name}.npy", mmap_mode="c") for each in fields(cls)))

    def find(self, documents: Sequence[str]) -> dict[int, Matches]:
        """The matches of each document, by its number; documents without a match are omitted."""
        known = self.letters, self.starts, self.filter, self.table, self.hashes, self.places, self.lengths, self.base
        document, ngram = _scan(*fold(documents), *known)
        pairs = np.unique(document * len(self.hashes) + ngram)
        if not len(pairs):
            return {}
        document, ngram = np.divmod(pairs, len(self.hashes))
        numbers, starts = np.unique(document, return_index=True)
        parts = np.split(ngram, starts[1:])
        return {int(number): self._matches(part) for number, part in zip(numbers, parts, strict=True)}

    def _matches(self, ngrams: np.ndarray) -> Matches:
        """How much of each text these distinct n-grams cover."""
        counts = self.offsets[ngrams + 1] - self.offsets[ngrams]
        begins = self.occurrences[ranges(self.offsets[ngrams], counts)]
        covered = np.unique(ranges(begins, np.repeat(self.lengths[ngrams], counts)))
        piece = self.piece_of_word[covered]
        runs = np.flatnonzero(np.concatenate([[True], (np.diff(covered) > 1) | (np.diff(piece) > 0)]))
        lengths = np.diff(runs, append=len(covered))
        texts, starts = np.unique(self.text_of_piece[piece[runs]], return_index=True)
        return Matches(texts, np.add.reduceat(lengths, starts), np.maximum.reduceat(lengths, starts))


def ranges(begins: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenate the ranges begins[n], begins[n] + 1, ..., begins[n] + counts[n] - 1."""
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(begins - before, counts)


@njit(cache=True)
def _fold(text, ends, kinds):
    letters = np.empty(len(text), np.uint8)
    starts = np.empty(len(text) + 1, np.int32)
    firsts = np.zeros(len(ends), np.int32)
    place, word = 0, 0
    for n in range(len(ends) - 1):
        inside = False
        at = ends[n]
        while at < ends[n + 1]:
            code, width = np.uint32(text[at]), 1
            if code >= 0x80:
                width = 2 if code < 0xE0 else 3 if code < 0xF0 else 4
                code &= np.uint32(0x7F >> width)
                for k in range(1, width):
                    code = (code << np.uint32(6)) | np.uint32(text[at + k] & 0x3F)
            kind = kinds[code]
            if kind == _LETTER:
                if not inside:
                    starts[word] = place
                    word += 1
                    inside = True
                for k in range(width):
                    letters[place] = text[at + k]
                    place += 1
            elif kind == _BLANK:
                inside = False
            at += width
        firsts[n + 1] = word
    starts[word] = place
    return letters[:place].copy(), starts[: word + 1].copy(), firsts


@njit(cache=True)
def mixed(code):
    code = (code ^ (code >> _SHIFT)) * _MIX
    return code ^ (code >> _SHIFT)


@njit(cache=True)
def word_codes(letters, starts):
    codes = np.empty(len(starts) - 1, np.uint64)
    for word in range(len(codes)):
        code = _FNV_BASIS
        for at in range(starts[word], starts[word + 1]):
            code = (code ^ np.uint64(letters[at])) * _FNV_PRIME
        codes[word] = mixed(code)
    return codes


@njit(cache=True)
def hash_windows(codes, first, end, size, base, out):
    """Write to out[k] the hash of the n-gram of `size` words at first + k. Returns the number of n-grams."""
    oldest = np.uint64(1)
    for _ in range(size - 1):
        oldest *= base
    code = np.uint64(0)
    for word in range(first, end):
        code = code * base + codes[word]
        begin = word - size + 1
        if begin >= first:
            out[begin - first] = mixed(code)
            code -= codes[begin] * oldest
    return max(0, end - first - size + 1)


@njit(cache=True)
def _same(letters, starts, word, known_letters, known_starts, known_word, size):
    """Whether `size` words are equal at both positions."""
    shift = np.int64(known_starts[known_word]) - starts[word]
    for n in range(1, size + 1):
        if known_starts[known_word + n] - starts[word + n] != shift:
            return False
    for at in range(starts[word], starts[word + size]):  # noqa: SIM110 (compiled)
        if letters[at] != known_letters[at + shift]:
            return False
    return True


@njit(cache=True)
def _enter(letters, starts, firsts, total, filter, table, base):
    """Number the n-grams of all pieces. Returns (n-gram, first word) of each occurrence, and (hash, first word of the
    first occurrence, length) of each distinct n-gram.
    """
    codes = word_codes(letters, starts)
    windows = np.empty(len(codes), np.uint64)
    ngrams, begins = np.empty(total, np.int32), np.empty(total, np.int32)
    hashes, places, lengths = np.empty(total, np.uint64), np.empty(total, np.int32), np.empty(total, np.int32)
    found, entered = 0, 0
    for piece in range(len(firsts) - 1):
        first, end = firsts[piece], firsts[piece + 1]
        if end - first < MIN_WORDS:
            continue
        length = min(end - first, NGRAM_WORDS)
        key = NGRAM_WORDS if length == NGRAM_WORDS else MIN_WORDS
        count = hash_windows(codes, first, end, key, base[0], windows)
        for k in range(count if key == NGRAM_WORDS else 1):
            code = windows[k]
            slot = np.int64(code) & (len(table) - 1)
            while table[slot] >= 0 and not (
                hashes[table[slot]] == code
                and lengths[table[slot]] == length
                and _same(letters, starts, first + k, letters, starts, places[table[slot]], length)
            ):
                slot = (slot + 1) & (len(table) - 1)
            if table[slot] < 0:
                table[slot] = found
                hashes[found], places[found], lengths[found] = code, first + k, length
                filter[np.int64(code >> _SHIFT) & (len(filter) - 1)] |= np.uint8(1) << (code & _LOW)
                found += 1
            ngrams[entered], begins[entered] = table[slot], first + k
            entered += 1
    return ngrams, begins, hashes[:found].copy(), places[:found].copy(), lengths[:found].copy()


@njit(cache=True)
def _scan(letters, starts, firsts, known_letters, known_starts, filter, table, hashes, places, lengths, base):
    """(document, n-gram) for every occurrence of an n-gram of the table in the documents."""
    codes = word_codes(letters, starts)
    windows = np.empty(len(codes), np.uint64)
    most = len(codes) * (NGRAM_WORDS - MIN_WORDS + 1)  # at most one n-gram of each length per word
    documents, ngrams = np.empty(most, np.int64), np.empty(most, np.int64)
    count = 0
    for document in range(len(firsts) - 1):
        first, end = firsts[document], firsts[document + 1]
        for key in (MIN_WORDS, NGRAM_WORDS):
            for k in range(hash_windows(codes, first, end, key, base[0], windows)):
                code = windows[k]
                if not filter[np.int64(code >> _SHIFT) & (len(filter) - 1)] & (np.uint8(1) << (code & _LOW)):
                    continue
                slot = np.int64(code) & (len(table) - 1)
                while table[slot] >= 0:
                    ngram = table[slot]
                    length = lengths[ngram]
                    if (
                        hashes[ngram] == code
                        and (length == NGRAM_WORDS) == (key == NGRAM_WORDS)
                        and first + k + length <= end
                        and _same(letters, starts, first + k, known_letters, known_starts, places[ngram], length)
                    ):
                        documents[count], ngrams[count] = document, ngram
                        count += 1
                    slot = (slot + 1) & (len(table) - 1)
    return documents[:count].copy(), ngrams[:count].copy()
