"""WordPiece: repeatedly take the longest piece that the rest of a word starts with.

Wu et al. 2016, arXiv 1609.08144; the rules are those of tokenization.py in google-research/bert. The pieces are held in
a trie, so one walk finds the longest one.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numba import njit

from bert_pipeline.data.tokenizer.characters import ALONE, CODE_POINT, GAP, MOVES, Table, decode
from bert_pipeline.data.tokenizer.items import Items
from bert_pipeline.formats.tokenizer import UNK_ID

FIRST, FOLLOWING = 0, 1
"""Root nodes: pieces at the start of a word, and pieces that continue one, without their prefix."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing: 2**64 / golden ratio


class Trie(NamedTuple):
    """Edges in a hash table (open addressing, at most half full). Slot s holds the edge from a node to nodes[s]; its key
    keys[s] is made of that node and a code point; -1: empty.
    """

    keys: np.ndarray  # (slots,) int64
    nodes: np.ndarray  # (slots,) int32
    ids: np.ndarray  # (nodes,) int32: the id of the piece that ends at the node; -1: none


def build_trie(first: Iterable[tuple[str, int]], following: Iterable[tuple[str, int]] = ()) -> Trie:
    """Build the trie of pieces with their ids."""
    roots = [(FIRST, *each) for each in first] + [(FOLLOWING, *each) for each in following]
    text = np.frombuffer("".join(piece for _, piece, _ in roots).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.array([len(piece) for _, piece, _ in roots], np.int64)
    size = 4 << len(text).bit_length()
    trie = Trie(np.full(size, -1, np.int64), np.empty(size, np.int32), np.full(len(text) + 2, -1, np.int32))
    _insert(trie, text, lengths, np.array([root for root, _, _ in roots], np.int32),
            np.array([number for _, _, number in roots], np.int32))  # fmt: skip
    return trie


@njit(cache=True)
def _slot_of(key, keys):
    return np.int64(((np.uint64(key) * _GOLDEN) >> np.uint64(32)) & np.uint64(len(keys) - 1))


@njit(cache=True)
def _insert(trie, text, lengths, roots, ids):
    at = 0
    num_nodes = 2
    for piece in range(len(lengths)):
        node = roots[piece]
        for n in range(at, at + lengths[piece]):
            key = np.int64(node) << 21 | np.int64(text[n])
            slot = _slot_of(key, trie.keys)
            while trie.keys[slot] >= 0 and trie.keys[slot] != key:
                slot = (slot + 1) & (len(trie.keys) - 1)
            if trie.keys[slot] < 0:
                trie.keys[slot], trie.nodes[slot] = key, num_nodes
                num_nodes += 1
            node = trie.nodes[slot]
        trie.ids[node] = ids[piece]
        at += lengths[piece]


@njit(cache=True)
def longest(trie, root, symbols, start, end):
    """(id, end) of the longest piece that symbols[start:end] starts with; the id is -1 if there is none."""
    found, found_end = np.int32(-1), start
    node = np.int64(root)
    for n in range(start, end):
        key = node << 21 | np.int64(symbols[n] & CODE_POINT)
        slot = _slot_of(key, trie.keys)
        while trie.keys[slot] != key:
            if trie.keys[slot] < 0:
                return found, found_end
            slot = (slot + 1) & (len(trie.keys) - 1)
        node = np.int64(trie.nodes[slot])
        if trie.ids[node] >= 0:
            found, found_end = trie.ids[node], n + 1
    return found, found_end


class Pieces(NamedTuple):
    """Item i has the ids ids[spans[i, 0]:spans[i, 0] + spans[i, 1]]."""

    ids: np.ndarray  # (pieces,) uint16 or uint32
    spans: np.ndarray  # (items, 2) int64


def cut(items: Items, table: Table, trie: Trie, max_length: int, dtype: np.dtype) -> Pieces:
    """Cut every distinct item into pieces. The count of an item whose marks need sorting is -1.

    `max_length`: a word with more characters becomes [UNK].
    """
    ids = np.empty(items.lengths.sum(), dtype)  # no character becomes more symbols than it has bytes
    spans = np.empty((len(items.lengths), 2), np.int64)
    word = np.empty(items.lengths.max(initial=0), np.int32)
    used = _cut(items.text, items.starts, items.lengths, table, trie, max_length, word, ids, spans)
    return Pieces(ids[:used], spans)


@njit(cache=True)
def _cut(text, starts, lengths, table, trie, max_length, word, ids, spans):
    used = 0
    for item in range(len(starts)):
        first = used
        size = 0  # symbols of the current word
        sorted_marks = True
        at, end = starts[item], starts[item] + lengths[item]
        while at < end:
            code, at = decode(text, at)
            begin = table.starts[code]
            for n in range(begin, begin + table.counts[code]):
                symbol = table.symbols[n]
                if symbol & (GAP | ALONE):
                    used = _write_word(word, size, trie, max_length, ids, used)
                    size = 0
                    if symbol & ALONE:
                        word[0] = symbol
                        used = _write_word(word, 1, trie, max_length, ids, used)
                else:
                    if n == begin and size and symbol & word[size - 1] & MOVES:
                        sorted_marks = False
                    word[size] = symbol
                    size += 1
        used = _write_word(word, size, trie, max_length, ids, used)
        spans[item, 0] = first
        spans[item, 1] = used - first if sorted_marks else -1
    return used


@njit(cache=True)
def _write_word(word, size, trie, max_length, ids, used):
    """Write the ids of a word to ids[used:]; return the end. An empty word has none."""
    first = used
    at = 0
    while at < size and size <= max_length:
        piece, piece_end = longest(trie, FIRST if at == 0 else FOLLOWING, word, at, size)
        if piece < 0:
            break
        ids[used] = piece
        used += 1
        at = piece_end
    if at < size:  # not in the vocabulary, or too long
        ids[first] = UNK_ID
        used = first + 1
    return used


@njit(cache=True)
def may_hold(text, text_ends, table, trie, chosen):
    """Set chosen[n] if a piece of the trie stands anywhere in the normalized text n, or if its marks need sorting."""
    if trie.ids[FIRST] >= 0:  # the normalizer removes a whole added token
        chosen[:] = True
        return
    most = 0
    for n in range(len(chosen)):
        most = max(most, text_ends[n + 1] - text_ends[n])
    normal = np.empty(most, np.int32)
    for n in range(len(chosen)):
        size = 0
        at, end = np.int64(text_ends[n]), np.int64(text_ends[n + 1])
        while at < end and not chosen[n]:
            code, at = decode(text, at)
            begin = table.starts[code]
            for k in range(begin, begin + table.counts[code]):
                symbol = table.symbols[k]
                if k == begin and size and symbol & normal[size - 1] & MOVES:
                    chosen[n] = True
                normal[size] = symbol
                size += 1
        for start in range(size):
            if chosen[n]:
                break
            piece, _ = longest(trie, FIRST, normal, start, size)
            chosen[n] = piece >= 0
