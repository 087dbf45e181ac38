"""Pairs of a packed row as batched matrix products take them: pairs of about one length side by side, by head.

Lengths are padded to multiples of 32 and the pairs of a product are 1, 2, 4, ..., so that few shapes occur: oneDNN
compiles a kernel for each shape that it has not seen of late, which takes longer than the product itself.
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
"""Tokens; lengths are padded to multiples of it."""
SCORES_AT_ONCE = 2**20
"""Scores that one product makes at most, where it is of several pairs: 2 MB in bfloat16, which stay in the cache."""


@dataclass(frozen=True)
class Side:
    """Where the places of the queries, or of the keys, stand in the padded order: (pair, head, place of the pair)."""

    rows: Tensor  # (padded,) int64: which row of (places * heads, width) stands there; any of its pair where none does
    padding: Tensor  # (padding,) int64: where none does
    places: Tensor  # (places * heads,) int64: where each row went
    heads: int

    def gather(self, states: Tensor, padding: float | None = None) -> Tensor:
        """(places, heads, width) to (padded, width). What stands at padding is some token's unless it is given."""
        found = states.flatten(0, 1).index_select(0, self.rows)
        return found if padding is None else found.index_fill_(0, self.padding, padding)

    def scatter(self, padded: Tensor) -> Tensor:
        """(padded, width) to (places, heads, width)."""
        return padded.index_select(0, self.places).unflatten(0, (-1, self.heads))


@dataclass(frozen=True)
class Chunk:
    """Pairs that one product is of."""

    batch: int  # pairs * heads
    query_rows: slice
    key_rows: slice
    padding: Tensor | None  # (batch, 1, STEP) bool: which of the last keys are, where any is

    def queries(self, padded: Tensor) -> Tensor:
        """(padded, width) to (batch, queries, width), a view."""
        return padded[self.query_rows].unflatten(0, (self.batch, -1))

    def keys(self, padded: Tensor) -> Tensor:
        return padded[self.key_rows].unflatten(0, (self.batch, -1))


@dataclass(frozen=True)
class Buckets:
    queries: Side
    keys: Side
    chunks: list[Chunk]


def buckets(query_offsets: Tensor, offsets: Tensor, heads: int) -> Buckets:
    """Of pairs in the order of their lengths; in any other order there are more chunks. The layers of a micro-batch
    share them.
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
    """Of the pairs: int64."""

    starts: np.ndarray
    lengths: np.ndarray
    padded: np.ndarray

    @classmethod
    def read(cls, offsets: bytes) -> "_Lengths":
        starts = np.frombuffer(offsets, np.int32).astype(np.int64)
        lengths = np.diff(starts)
        return cls(starts, lengths, -(-lengths // STEP) * STEP)


def _chunks(queries: np.ndarray, keys: np.ndarray, heads: int) -> Iterator[range]:
    """Neighbouring pairs of one padded shape, as many as the largest power of two that the cache holds."""
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
def _fill(starts, lengths, padded, heads, rows, missing, places):  # the last three are to be filled: see Side
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
