"""Cut texts into items and number the distinct ones, so that each is processed once.

An item is a part of a text that can be tokenized by itself: a punctuation mark, a Chinese character, or a run of
other characters between them and white space. Items repeat: a shard of abstracts holds each one about thirty times.

A hash table (open addressing, at most half full) finds the number of an item. The key of an item of at most 7 bytes is
its bytes and its length, so equal keys mean equal items. The key of a longer one is a hash; its bytes are compared too.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from bert_pipeline.core.text import decode, utf8
from bert_pipeline.data.tokenizer.characters import BLANK, LETTER

FIRST_CAPACITY = 2**16
"""For distinct items; doubled until they fit."""

_SHORT = 7
_PRIME = np.uint64(0x100000001B3)  # FNV-1a, 64 bits
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing: 2**64 / golden ratio
_LONG = np.uint64(1 << 63)


class Items(NamedTuple):
    """Distinct item i is text[starts[i]:starts[i] + lengths[i]], in order of first occurrence. The items of text n are
    those with the numbers numbers[ends[n]:ends[n + 1]].
    """

    text: np.ndarray  # (bytes,) uint8, UTF-8
    starts: np.ndarray  # (items,) int64
    lengths: np.ndarray  # (items,) int64
    numbers: np.ndarray  # (occurrences,) int32
    ends: np.ndarray  # (texts + 1,) int64

    def strings(self, chosen: np.ndarray | slice = slice(None)) -> list[str]:
        """The distinct items, or those with the numbers `chosen`."""
        raw, starts, lengths = self.text.data, self.starts[chosen].tolist(), self.lengths[chosen].tolist()
        return [str(raw[start : start + n], "utf-8") for start, n in zip(starts, lengths, strict=True)]


def itemize(texts: pa.StringArray, kinds: np.ndarray) -> Items:
    """Cut texts, which must be valid UTF-8. `kinds`: (code points,) uint8, the kind of each character."""
    text, text_ends = utf8(texts)
    numbers, ends = np.empty(len(text), np.int32), np.zeros(len(text_ends), np.int64)
    starts, lengths = np.empty((2, FIRST_CAPACITY), np.int64)
    keys, slots = _empty_table(FIRST_CAPACITY)
    found, done = 0, 0
    while True:
        found, done = _itemize(text, text_ends, kinds, keys, slots, numbers, ends, starts, lengths, found, done)
        if done == len(texts):
            return Items(text, starts[:found], lengths[:found], numbers[: ends[-1]], ends)
        starts, lengths = (np.concatenate([each, np.empty_like(each)]) for each in (starts, lengths))
        old_keys, old_slots = keys, slots
        keys, slots = _empty_table(len(starts))
        _refill(old_keys, old_slots, keys, slots)


def _empty_table(capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys, slots): slot s holds the item slots[s] with the key keys[s]; 0: empty."""
    return np.zeros(2 * capacity, np.uint64), np.empty(2 * capacity, np.int32)


@njit(cache=True)
def _slot_of(key, keys):
    return np.int64(((key * _GOLDEN) >> np.uint64(32)) & np.uint64(len(keys) - 1))


@njit(cache=True)
def _refill(old_keys, old_slots, keys, slots):
    for n in range(len(old_keys)):
        if old_keys[n]:
            slot = _slot_of(old_keys[n], keys)
            while keys[slot]:
                slot = (slot + 1) & (len(keys) - 1)
            keys[slot], slots[slot] = old_keys[n], old_slots[n]


@njit(cache=True)
def _itemize(text, text_ends, kinds, keys, slots, numbers, ends, starts, lengths, found, done):
    """Number the items of the texts from number `done` on. Returns (found, done): the number of distinct items, and the
    number of the first text whose items do not fit in `starts`, or the number of texts.

    The arrays do not grow in this function, because numba would then read every element several times slower.
    """
    place = ends[done]
    for n in range(done, len(ends) - 1):
        at, end_of_text = np.int64(text_ends[n]), np.int64(text_ends[n + 1])
        while at < end_of_text:
            code, end = decode(text, at)
            kind = kinds[code]
            if kind == BLANK:
                at = end
                continue
            if kind == LETTER:
                while end < end_of_text:
                    code, after = decode(text, end)
                    if kinds[code] != LETTER:
                        break
                    end = after
            length = end - at
            key = np.uint64(0)
            for k in range(min(length, _SHORT)):
                key |= np.uint64(text[at + k]) << np.uint64(8 * k)
            if length <= _SHORT:
                key |= np.uint64(length) << np.uint64(56)
            else:
                for k in range(at + _SHORT, end):
                    key = (key ^ np.uint64(text[k])) * _PRIME
                key |= _LONG
            slot = _slot_of(key, keys)
            while keys[slot] and not (
                keys[slot] == key
                and (length <= _SHORT or _same(text, starts[slots[slot]], lengths[slots[slot]], at, length))
            ):
                slot = (slot + 1) & (len(keys) - 1)
            if not keys[slot]:
                if found == len(starts):
                    return found, n
                keys[slot], slots[slot] = key, found
                starts[found], lengths[found] = at, length
                found += 1
            numbers[place] = slots[slot]
            place += 1
            at = end
        ends[n + 1] = place
    return found, len(ends) - 1


@njit(cache=True)
def _same(text, one, one_length, other, other_length):
    if one_length != other_length:
        return False
    for n in range(one_length):  # noqa: SIM110 (compiled)
        if text[one + n] != text[other + n]:
            return False
    return True
