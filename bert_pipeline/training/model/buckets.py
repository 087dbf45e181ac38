"""Groups the pairs of a packed row by padded length, for attention as batched matrix products.

Lengths are padded to multiples of 32 and a product has 1, 2, 4, ... pairs, so that few shapes occur: oneDNN compiles a
kernel for each shape that is not in its cache, which takes longer than the product itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

STEP = 32
"""Lengths are padded to a multiple of this many tokens."""
SCORES_AT_ONCE = 2**20
"""Most attention scores in a product of several pairs: 2 MB in bfloat16, which fit into the processor's cache."""


@dataclass(frozen=True)
class Side:
    """Maps the positions of the queries, or of the keys, to the padded order (pair, head, position in the pair)."""

    rows: Tensor  # (padded,) int64: the row of (positions * heads, width) at each; padding repeats a row of its pair
    padding: Tensor  # (padding,) int64: the entries of `rows` that are padding
    places: Tensor  # (positions * heads,) int64: the entry of `rows` that holds each row
    heads: int

    def gather(self, states: Tensor, padding: float | None = None) -> Tensor:
        """(positions, heads, width) to (padded, width). `padding`: value of the padding; else rows of its pair."""
        found = states.flatten(0, 1).index_select(0, self.rows)
        return found if padding is None else found.index_fill_(0, self.padding, padding)

    def scatter(self, padded: Tensor) -> Tensor:
        """(padded, width) to (positions, heads, width)."""
        return padded.index_select(0, self.places).unflatten(0, (-1, self.heads))


@dataclass(frozen=True)
class Chunk:
    """The pairs computed in one batched matmul."""

    batch: int  # pairs * heads
    query_rows: slice
    key_rows: slice
    padding: Tensor | None  # (batch, 1, STEP) bool: which of the last STEP keys are padding; None: no key is

    def queries(self, padded: Tensor) -> Tensor:
        """A view of (padded, width) as (batch, queries, width)."""
        return padded[self.query_rows].unflatten(0, (self.batch, -1))

    def keys(self, padded: Tensor) -> Tensor:
        return padded[self.key_rows].unflatten(0, (self.batch, -1))


@dataclass(frozen=True)
class Buckets:
    queries: Side
    keys: Side
    chunks: list[Chunk]


def buckets(query_offsets: Tensor, offsets: Tensor, heads: int) -> Buckets:
    """Sort the pairs by length first: other orders give more chunks. Cached, because all layers of a micro-batch use
    the same buckets.
    """
    return _buckets(query_offsets.numpy().tobytes(), offsets.numpy().tobytes(), heads)


@lru_cache(maxsize=4)
def _buckets(query_offsets: bytes, offsets: bytes, heads: int) -> Buckets:
    queries, keys = (_Lengths.read(each) for each in (query_offsets, offsets))
    chunks, query_row, key_row = [], 0, 0
    for pairs in _chunks(queries.padded, keys.padded, heads):
        batch, here = heads * len(pairs), slice(pairs.start, pairs.stop)
        width = int(keys.padded[pairs.start])
        last = np.arange(width - STEP, width)
        absent = np.repeat(last >= keys.lengths[here, None], heads, axis=0)[:, None]
        query_end, key_end = query_row + batch * int(queries.padded[pairs.start]), key_row + batch * width
        padding = torch.from_numpy(absent) if absent.any() else None
        chunks.append(Chunk(batch, slice(query_row, query_end), slice(key_row, key_end), padding))
        query_row, key_row = query_end, key_end
    return Buckets(_side(queries, heads), _side(keys, heads), chunks)


class _Lengths(NamedTuple):
    """Starts, lengths and padded lengths of the pairs: (pairs + 1,), (pairs,), (pairs,) int64."""

    starts: np.ndarray
    lengths: np.ndarray
    padded: np.ndarray

    @classmethod
    def read(cls, offsets: bytes) -> "_Lengths":
        starts = np.frombuffer(offsets, np.int32).astype(np.int64)
        lengths = np.diff(starts)
        return cls(starts, lengths, -(-lengths // STEP) * STEP)


def _chunks(queries: np.ndarray, keys: np.ndarray, heads: int) -> Iterator[range]:
    """Adjacent pairs with equal padded shapes, in chunks of the largest power of two within SCORES_AT_ONCE."""
    start = 0
    for (query, key), neighbours in groupby(zip(queries.tolist(), keys.tolist(), strict=True)):
        most, left = max(1, SCORES_AT_ONCE // (heads * query * key)), len(list(neighbours))
        while left:
            count = 1 << (min(most, left).bit_length() - 1)
            yield range(start, start + count)
            start, left = start + count, left - count


def _side(pairs: _Lengths, heads: int) -> Side:
    size, present = heads * int(pairs.padded.sum()), heads * int(pairs.starts[-1])
    rows, missing, places = (np.empty(count, np.int64) for count in (size, size - present, present))
    _fill(*pairs, heads, rows, missing, places)
    return Side(torch.from_numpy(rows), torch.from_numpy(missing), torch.from_numpy(places), heads)


@njit(cache=True, nogil=True)
def _fill(starts, lengths, padded, heads, rows, missing, places):  # writes the last three arguments; see Side
    at = lacking = 0
    for pair in range(len(lengths)):
        start, length = starts[pair], lengths[pair]
        for head in range(heads):
            for place in range(padded[pair]):
                row = (start + min(place, length - 1)) * heads + head
                rows[at] = row
                if place < length:
                    places[row] = at
                else:
                    missing[lacking] = at
                    lacking += 1
                at += 1
