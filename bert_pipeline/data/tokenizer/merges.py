"""Pairs of adjacent symbols in words: count them, queue them by count, and merge them in place.

Words are symbols (ids of pieces) in one array. A hash table holds the count of each pair; a heap holds the pairs with
the words that contain them. Equally frequent pairs are ordered by their ids, smaller ids first.

Two properties of the queue of `tokenizers` (models/bpe/trainer.rs) determine the merge order and are reproduced here.
If a queued pair appears in new words, it is queued again with only these words, and each entry is processed
separately. And the count of a pair still includes the places where the pair was already merged.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

_NONE = -1
_MULTIPLIER = -7046029254386353131  # 2**64 / golden ratio, odd (Knuth, volume 3, section 6.4)
_PAIRS, _QUEUED, _TOUCHED, _NODES, _FREE = range(5)


class Pairs(NamedTuple):
    """The words and the state of their pairs. A pair's key is left id << 32 | right id."""

    symbols: np.ndarray  # (symbols,) int32; word n starts at starts[n] and shrinks in place
    starts: np.ndarray  # (words,) int64
    lengths: np.ndarray  # (words,) int32
    counts: np.ndarray  # (words,) int64
    nodes: np.ndarray  # (number, 2) int32: linked lists of words, as (word, next node)
    sizes: np.ndarray  # (5,) int64: pairs, queue entries, touched slots, nodes ever used, first free node
    keys: np.ndarray  # (slots,) int64: hash table of pairs, open addressing, at most three quarters full
    pair_counts: np.ndarray  # (slots,) int64
    fresh: np.ndarray  # (slots,) int32: list of words in which the pair appeared since it was last queued
    touched: np.ndarray  # (slots,) int32: the slots with such a list
    queue: np.ndarray  # (entries, 3) int64: a binary heap of (count when queued, key, list of words)


def count_pairs(symbols: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> Pairs:
    """Count and queue all pairs. symbols: (symbols,) int32; lengths: (words,) int32; counts: (words,) int64.

    Merges overwrite `symbols` and `lengths`.
    """
    state = Pairs(
        symbols,
        np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)]),
        lengths,
        counts,
        # A merge removes one symbol and creates at most two new pairs, so three nodes per symbol are enough.
        # The operating system allocates only the part in use, rarely half of it.
        nodes=np.empty((3 * len(symbols) + 1, 2), np.int32),
        sizes=np.array([0, 0, 0, 0, _NONE]),
        **_table(2**16),
        queue=np.empty((2**16, 3), np.int64),
    )
    counted = 0
    while (counted := _count_words(state, counted)) < len(lengths):
        state = _with_larger_table(state)
    state = with_room(state, state.sizes[_TOUCHED])
    _enqueue(state)
    return state


def _table(slots: int) -> dict[str, np.ndarray]:
    return {
        "keys": np.full(slots, _NONE, np.int64),
        "pair_counts": np.zeros(slots, np.int64),
        "fresh": np.full(slots, _NONE, np.int32),
        "touched": np.empty(slots, np.int32),
    }


def with_room(state: Pairs, pairs: int) -> Pairs:
    """Return the state with room for `pairs` more pairs."""
    while _is_full(state, pairs):
        state = _with_larger_table(state)
    while state.sizes[_QUEUED] + pairs > len(state.queue):
        longer = np.empty((2 * len(state.queue), 3), np.int64)
        longer[: len(state.queue)] = state.queue
        state = state._replace(queue=longer)
    return state


def _with_larger_table(state: Pairs) -> Pairs:
    larger = state._replace(**_table(2 * len(state.keys)))
    _move_pairs(state, larger)
    return larger


@njit(cache=True)
def _slot(keys, key):
    """The slot of the pair, or the empty slot where it belongs."""
    mask = len(keys) - 1
    slot = ((key * _MULTIPLIER) >> 32) & mask
    while keys[slot] != key and keys[slot] != _NONE:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True)
def _is_full(state, pairs):
    """Whether the table has no room for `pairs` more pairs."""
    return 4 * (state.sizes[_PAIRS] + pairs) > 3 * len(state.keys)


@njit(cache=True)
def _move_pairs(state, larger):
    state.sizes[_TOUCHED] = 0
    for slot in range(len(state.keys)):
        if state.keys[slot] != _NONE:
            moved = _slot(larger.keys, state.keys[slot])
            larger.keys[moved] = state.keys[slot]
            larger.pair_counts[moved] = state.pair_counts[slot]
            larger.fresh[moved] = state.fresh[slot]
            if state.fresh[slot] != _NONE:
                larger.touched[state.sizes[_TOUCHED]] = moved
                state.sizes[_TOUCHED] += 1


@njit(cache=True)
def _count(state, left, right, count, word):
    """Add to the count of a pair. If it grows, add the word to the pair's list for the next queueing."""
    sizes, nodes = state.sizes, state.nodes
    key = np.int64(left) << 32 | right
    slot = _slot(state.keys, key)
    if state.keys[slot] == _NONE:
        state.keys[slot] = key
        sizes[_PAIRS] += 1
    state.pair_counts[slot] += count
    fresh = state.fresh[slot]
    if count < 0 or (fresh != _NONE and nodes[fresh, 0] == word):
        return
    if fresh == _NONE:
        state.touched[sizes[_TOUCHED]] = slot
        sizes[_TOUCHED] += 1
    node = sizes[_FREE]
    if node != _NONE:
        sizes[_FREE] = nodes[node, 1]
    else:
        node = sizes[_NODES]
        sizes[_NODES] += 1
    nodes[node, 0], nodes[node, 1] = word, fresh
    state.fresh[slot] = node


@njit(cache=True)
def _count_words(state, word):
    """Count the pairs of all words from `word` on; return the first word for which the table has no room."""
    while word < len(state.lengths):
        if _is_full(state, state.lengths[word]):
            break
        start = state.starts[word]
        for at in range(start, start + state.lengths[word] - 1):
            _count(state, state.symbols[at], state.symbols[at + 1], state.counts[word], word)
        word += 1
    return word


@njit(cache=True)
def _enqueue(state):
    """Queue the pairs that appeared since the last call, each with the words in which it appeared."""
    queue, sizes = state.queue, state.sizes
    for n in range(sizes[_TOUCHED]):
        slot = state.touched[n]
        count, key = state.pair_counts[slot], state.keys[slot]
        if count > 0:
            place = sizes[_QUEUED]
            sizes[_QUEUED] += 1
            while place > 0 and _before(count, key, queue[(place - 1) // 2]):
                queue[place] = queue[(place - 1) // 2]
                place = (place - 1) // 2
            queue[place, 0], queue[place, 1], queue[place, 2] = count, key, state.fresh[slot]
        state.fresh[slot] = _NONE
    sizes[_TOUCHED] = 0


@njit(cache=True)
def _before(count, key, entry):
    return count > entry[0] or (count == entry[0] and key < entry[1])


@njit(cache=True)
def most_frequent(state):
    """Pop the most frequent pair: (key, count, list of words). Outdated counts in the queue are corrected first."""
    queue, sizes = state.queue, state.sizes
    while sizes[_QUEUED] > 0:
        key, words = queue[0, 1], queue[0, 2]
        count = state.pair_counts[_slot(state.keys, key)]
        if count == queue[0, 0]:
            sizes[_QUEUED] -= 1
            last = queue[sizes[_QUEUED]]
            _sink(queue, sizes[_QUEUED], last[0], last[1], last[2])
            return key, count, words
        _sink(queue, sizes[_QUEUED], count, key, words)
    return 0, 0, _NONE


@njit(cache=True)
def _sink(queue, size, count, key, words):
    """Sift an entry down from the top of the heap."""
    place, child = 0, 1
    while child < size:
        if child + 1 < size and _before(queue[child + 1, 0], queue[child + 1, 1], queue[child]):
            child += 1
        if _before(count, key, queue[child]):
            break
        queue[place] = queue[child]
        place, child = child, 2 * child + 1
    queue[place, 0], queue[place, 1], queue[place, 2] = count, key, words


@njit(cache=True)
def merge(state, key, node, new):
    """Replace the pair by piece `new` in all words of the list, then queue the pairs that appear."""
    left, right = key >> 32, key & 0xFFFFFFFF
    symbols, nodes = state.symbols, state.nodes
    while node != _NONE:
        word = nodes[node, 0]
        count = state.counts[word]
        start = state.starts[word]
        end, at, to = start + state.lengths[word], start, start
        while at < end:
            if at + 1 < end and symbols[at] == left and symbols[at + 1] == right:
                if to > start:
                    _count(state, symbols[to - 1], left, -count, word)
                    _count(state, symbols[to - 1], new, count, word)
                if at + 2 < end:
                    _count(state, right, symbols[at + 2], -count, word)
                    _count(state, new, symbols[at + 2], count, word)
                symbols[to] = new
                at += 2
            else:
                symbols[to] = symbols[at]
                at += 1
            to += 1
        state.lengths[word] = to - start
        following = nodes[node, 1]
        nodes[node, 1] = state.sizes[_FREE]
        state.sizes[_FREE] = node
        node = following
    _enqueue(state)
