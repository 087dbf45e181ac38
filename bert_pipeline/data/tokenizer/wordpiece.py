"""WordPiece: repeatedly take the longest piece that the rest of a word starts with.

Wu et al. 2016, arXiv 1609.08144; the rules are those of tokenization.py in google-research/bert. The pieces are held in
a trie, so one walk finds the longest one.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from bert_pipeline.core.text import decode
from bert_pipeline.data.tokenizer.characters import ALONE, CODE_POINT, GAP, MOVES, Table
from bert_pipeline.data.tokenizer.items import Items
from bert_pipeline.formats.tokenizer import UNK_ID

FIRST, FOLLOWING = 1, 2
"""Root nodes: pieces at the start of a word, and pieces that continue one, without their prefix."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing: 2**64 / golden ratio


class Trie(NamedTuple):
    """Edges in a hash table (open addressing, at most half full), one cache line per look-up.

    A row is the key of an edge, made of its first node and a code point, and its target: the second node and, plus one,
    the id of the piece that ends there. 0: empty, no piece.
    """

    edges: np.ndarray  # (slots, 2) int64: node << 21 | code point, node << 32 | id + 1


def build_trie(first: dict[str, int], following: dict[str, int]) -> Trie:
    """Build the trie of pieces with their ids; an empty piece is skipped."""
    pieces = [*first, *following]
    text = np.frombuffer("".join(pieces).encode("utf-32-le"), np.uint32)
    lengths = np.array(list(map(len, pieces)), np.int64)
    roots = np.repeat([FIRST, FOLLOWING], [len(first), len(following)])
    ids = np.array([*first.values(), *following.values()], np.int64)
    size = 4
    while True:
        trie = Trie(np.zeros((size, 2), np.int64))
        if _insert(trie.edges, text, lengths, roots, ids):
            return trie
        size *= 2


@njit(cache=True)
def _key(node, code):
    return node << 21 | code


@njit(cache=True)
def _slot_of(key, edges):
    return np.int64(((np.uint64(key) * _GOLDEN) >> np.uint64(32)) & np.uint64(len(edges) - 1))


@njit(cache=True)
def _insert(edges, text, lengths, roots, ids):
    """Return whether all pieces fit."""
    at, num_nodes = 0, FOLLOWING + 1
    for piece in range(len(lengths)):
        node, slot = roots[piece], np.int64(-1)
        for n in range(at, at + lengths[piece]):
            key = _key(node, np.int64(text[n]))
            slot = _slot_of(key, edges)
            while edges[slot, 0] and edges[slot, 0] != key:
                slot = (slot + 1) & (len(edges) - 1)
            if not edges[slot, 0]:
                if 2 * num_nodes > len(edges):
                    return False
                edges[slot, 0], edges[slot, 1] = key, num_nodes << 32
                num_nodes += 1
            node = edges[slot, 1] >> 32
        if slot >= 0:
            edges[slot, 1] = node << 32 | (ids[piece] + 1)
        at += lengths[piece]
    return True


@njit(cache=True)
def longest(edges, root, symbols, start, end):
    """(id, end) of the longest piece that symbols[start:end] starts with; the id is -1 if there is none."""
    found, found_end = np.int64(-1), start
    node = np.int64(root)
    for n in range(start, end):
        key = _key(node, np.int64(symbols[n] & CODE_POINT))
        slot = _slot_of(key, edges)
        while edges[slot, 0] != key:
            if not edges[slot, 0]:
                return found, found_end
            slot = (slot + 1) & (len(edges) - 1)
        node, piece = edges[slot, 1] >> 32, edges[slot, 1] & 0xFFFFFFFF
        if piece:
            found, found_end = piece - 1, n + 1
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
    used = _cut(items.text, items.starts, items.lengths, table, trie.edges, max_length, word, ids, spans)
    return Pieces(ids[:used], spans)


@njit(cache=True)
def _cut(text, starts, lengths, table, edges, max_length, word, ids, spans):
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
                    used = _write_word(word, size, edges, max_length, ids, used)
                    size = 0
                    if symbol & ALONE:
                        word[0] = symbol
                        used = _write_word(word, 1, edges, max_length, ids, used)
                else:
                    if n == begin and size and symbol & word[size - 1] & MOVES:
                        sorted_marks = False
                    word[size] = symbol
                    size += 1
        used = _write_word(word, size, edges, max_length, ids, used)
        spans[item, 0] = first
        spans[item, 1] = used - first if sorted_marks else -1
    return used


@njit(cache=True)
def _write_word(word, size, edges, max_length, ids, used):
    """Write the ids of a word to ids[used:]; return the end. An empty word has none."""
    first = used
    at = 0
    while at < size and size <= max_length:
        piece, piece_end = longest(edges, FIRST if at == 0 else FOLLOWING, word, at, size)
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
def may_hold(text, text_ends, table, edges, chosen):
    """Set chosen[n] if a piece of the trie stands anywhere in the normalized text n, or if its marks need sorting."""
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
            piece, _ = longest(edges, FIRST, normal, start, size)
            chosen[n] = piece >= 0
