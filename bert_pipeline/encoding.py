"""Text to token ids, each distinct word once.

BERT's normaliser works on single characters and its splitter cuts at every blank, so the pieces of a text are
those of its words between blanks, one after the other. Of a word in printable ASCII more is known: it is cut
around every punctuation mark, and between the marks nothing is. So a text is a sequence of *items*: runs of ASCII
letters and digits, single ASCII marks, and words with any other character as a whole. A corpus repeats its items:
a shard of abstracts holds each one some thirty times. The distinct ones are encoded by `tokenizers` and
remembered from shard to shard; the rest is copying.
"""

from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from bert_pipeline.formats import token_type

REMEMBERED_ITEMS = 500_000
"""Bound on the items that an encoder remembers (some 200 bytes each); beyond it, it forgets all of them."""

_BLANK, _LETTER, _MARK, _OTHER = range(4)
_KIND = np.full(256, _OTHER, np.uint8)
_KIND[0x20] = _BLANK
_KIND[0x21:0x7F] = _MARK
_KIND[[byte for byte in range(0x7F) if chr(byte).isalnum()]] = _LETTER


class Encoder:
    """Encodes with one tokenizer, and remembers the pieces of what it has seen.

    Raises ValueError for a tokenizer that does not normalise and split as BERT's does.
    """

    def __init__(self, tokenizer: Any) -> None:
        steps = type(tokenizer.normalizer).__name__, type(tokenizer.pre_tokenizer).__name__
        if steps != ("BertNormalizer", "BertPreTokenizer"):
            raise ValueError(
                f"a tokenizer with {steps[0]} and {steps[1]} cannot be applied word by word; "
                "remedy: one with BertNormalizer and BertPreTokenizer, such as the tokenizer stage makes"
            )
        self._tokenizer = tokenizer
        self._dtype = np.dtype(token_type(tokenizer.get_vocab_size()).to_pandas_dtype())
        self._pieces: dict[str, list[int]] = {}

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets): the ids of text n, as `tokenizer.encode(..., add_special_tokens=False)` gives them, are
        ids[offsets[n]:offsets[n + 1]]. ids are uint16 or uint32, offsets int64.
        """
        distinct, items, item_ends = itemize(texts)
        pieces = self._look_up(distinct)
        piece_ends = np.fromiter(chain([0], map(len, pieces)), np.int64, len(pieces) + 1).cumsum()
        table = np.fromiter(chain.from_iterable(pieces), self._dtype, piece_ends[-1])
        return _gather(items, item_ends, table, piece_ends)

    def _look_up(self, items: list[str]) -> list[list[int]]:
        if len(self._pieces) > REMEMBERED_ITEMS:
            self._pieces.clear()
        normalize, pieces_of = self._tokenizer.normalizer.normalize_str, self._tokenizer.model.tokenize
        other = []
        for item in items:
            if item in self._pieces:
                continue
            if item.isascii() and item.isprintable():  # nothing splits it
                self._pieces[item] = [piece.id for piece in pieces_of(normalize(item))]
            else:
                other.append(item)
        encoded = self._tokenizer.encode_batch_fast(other, add_special_tokens=False)
        self._pieces.update((item, pieces.ids) for item, pieces in zip(other, encoded, strict=True))
        return [self._pieces[item] for item in items]


def itemize(texts: pa.StringArray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(distinct, items, item_ends): the items of text n are distinct[i] for i in
    items[item_ends[n]:item_ends[n + 1]]; distinct ones in the order in which they first occur.

    items (items,) int32, item_ends (texts + 1,) int64.
    """
    _, offsets, data = texts.buffers()
    text = np.frombuffer(data or b"", np.uint8)
    ends = np.zeros(1, np.int32)
    if len(texts):
        ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    items, item_ends = np.empty(ends[-1] - ends[0], np.int32), np.zeros(len(ends), np.int64)
    capacity = 2**16  # of distinct items; doubled until they fit
    found = -1
    while found < 0:
        starts, lengths = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
        found = _itemize(text, ends, items, item_ends, starts, lengths)
        capacity *= 2
    raw = text.tobytes()
    places = zip(starts[:found].tolist(), lengths[:found].tolist(), strict=True)
    return [raw[start : start + length].decode() for start, length in places], items[: item_ends[-1]], item_ends


@njit(cache=True)
def _itemize(text, ends, items, item_ends, starts, lengths):
    """Number the items; distinct item n stands at text[starts[n]:starts[n] + lengths[n]].

    Returns how many distinct ones there are, or -1 where they are more than `starts` holds. The arrays do not grow
    in here, because numba then reads every element several times as slowly.
    """
    slots = np.full(2 * len(starts), -1, np.int32)  # a hash table: open addressing, at most half full
    hashes = np.empty(len(starts), np.uint64)
    mask = np.uint64(len(slots) - 1)
    found, place = 0, 0
    for n in range(len(ends) - 1):
        at, end_of_text = np.int64(ends[n]), np.int64(ends[n + 1])
        word_end = at
        whole = False
        while at < end_of_text:
            if _KIND[text[at]] == _BLANK:
                at += 1
                continue
            if at >= word_end:
                word_end, whole = at, False
                while word_end < end_of_text and _KIND[text[word_end]] != _BLANK:
                    whole = whole or _KIND[text[word_end]] == _OTHER
                    word_end += 1
            letters = _KIND[text[at]] == _LETTER
            end = at
            code = np.uint64(14695981039346656037)  # FNV-1a
            while end < word_end and (end == at or whole or (letters and _KIND[text[end]] == _LETTER)):
                code = (code ^ np.uint64(text[end])) * np.uint64(1099511628211)
                end += 1
            length = end - at
            slot = (code ^ (code >> np.uint64(29))) & mask
            item = slots[np.int64(slot)]
            while item >= 0 and not (
                hashes[item] == code and lengths[item] == length and _same(text, starts[item], at, length)
            ):
                slot = (slot + np.uint64(1)) & mask
                item = slots[np.int64(slot)]
            if item < 0:
                if found == len(starts):
                    return -1
                item = np.int32(found)
                slots[np.int64(slot)] = item
                starts[found], lengths[found], hashes[found] = at, length, code
                found += 1
            items[place] = item
            place += 1
            at = end
        item_ends[n + 1] = place
    return found


@njit(cache=True)
def _same(text, one, other, length):
    for n in range(length):  # noqa: SIM110 (compiled)
        if text[one + n] != text[other + n]:
            return False
    return True


@njit(cache=True)
def _gather(items, item_ends, table, piece_ends):
    """Put the pieces of each item, table[piece_ends[item]:piece_ends[item + 1]], in its place."""
    total = 0
    for item in items:
        total += piece_ends[item + 1] - piece_ends[item]
    ids = np.empty(total, table.dtype)
    offsets = np.empty(len(item_ends), np.int64)
    offsets[0] = 0
    place = 0
    for text in range(len(item_ends) - 1):
        for n in range(item_ends[text], item_ends[text + 1]):
            for piece in range(piece_ends[items[n]], piece_ends[items[n] + 1]):
                ids[place] = table[piece]
                place += 1
        offsets[text + 1] = place
    return ids, offsets
