"""Encode texts to token ids; each distinct word is encoded once.

BERT's normalizer works on single characters and its splitter cuts at every blank, so the pieces of a text are the
pieces of its blank-separated words, concatenated. A word in printable ASCII is cut around every punctuation mark and
nowhere else. So a text is a sequence of *items*: runs of ASCII letters and digits, single ASCII punctuation marks, and
whole words that contain any other character. Items repeat: a shard of abstracts holds each one about thirty times.

This file cuts distinct ASCII items into pieces (WordPiece: repeatedly take the longest piece that the rest starts with;
Wu et al. 2016, arXiv 1609.08144, implemented like tokenization.py of google-research/bert). `tokenizers` encodes the
others, a few percent. Then the ids are copied to their places.

Added tokens (`[DRUG]`) are matched before the text is split, and may hold blanks and punctuation: `tokenizers` encodes
every text that may contain one.
"""

import re
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from bert_pipeline.formats.tokenizer import UNK_ID, token_id_type

_BLANK, _LETTER, _MARK, _OTHER = range(4)
_KIND = np.full(256, _OTHER, np.uint8)
_KIND[0x20] = _BLANK
_KIND[0x21:0x7F] = _MARK
_KIND[[byte for byte in range(0x7F) if chr(byte).isalnum()]] = _LETTER

_AS_IT_IS = np.arange(256, dtype=np.uint8)
_LOWER = np.frombuffer(bytes(range(256)).lower(), np.uint8)
_FNV_BASIS, _FNV_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)  # FNV-1a, 64 bits


class _Pieces(NamedTuple):
    """Pieces of a vocabulary and their hash table (open addressing, at most half full)."""

    text: np.ndarray  # (bytes,) uint8: piece n is text[ends[n]:ends[n + 1]]
    ends: np.ndarray  # (pieces + 1,) int64
    ids: np.ndarray  # (pieces,) int64
    slots: np.ndarray  # (slots,) int32: number of the piece; -1: empty
    longest: int  # length of the longest piece in bytes


class Encoder:
    """Encodes texts with one tokenizer.

    Raises ValueError unless the tokenizer has BERT's normalizer and pre-tokenizer and a WordPiece model.
    """

    def __init__(self, tokenizer: Any) -> None:
        parts = [type(part).__name__ for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)]
        if parts != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            raise ValueError(
                f"a tokenizer of {', '.join(parts)} cannot be applied word by word; remedy: use BertNormalizer, "
                "BertPreTokenizer and WordPiece, as the tokenizer stage does"
            )
        self._tokenizer = tokenizer
        self._dtype = np.dtype(token_id_type(tokenizer.get_vocab_size()).to_pandas_dtype())
        self._letters = _LOWER if tokenizer.normalizer.lowercase else _AS_IT_IS
        self._max_length = tokenizer.model.max_input_chars_per_word
        prefix = tokenizer.model.continuing_subword_prefix
        pieces = tokenizer.get_vocab(with_added_tokens=False)
        vocabulary = {piece: number for piece, number in pieces.items() if piece.isascii()}
        self._added = _pattern_of_added_tokens(tokenizer)
        self._first = _index(vocabulary)
        self._following = _index(
            {piece.removeprefix(prefix): number for piece, number in vocabulary.items() if piece.startswith(prefix)}
        )

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets): text n has the ids ids[offsets[n]:offsets[n + 1]], equal to the result of
        `tokenizer.encode(..., add_special_tokens=False)`. ids are uint16 or uint32, offsets int64.
        """
        if not self._added:
            return self._encode_items(texts)
        chosen = pc.match_substring_regex(texts, self._added)
        ids, offsets = self._encode_items(pc.if_else(chosen, "", texts))
        encoded = [each.ids for each in self._tokenizer.encode_batch_fast(texts.filter(chosen).to_pylist(),
                                                                          add_special_tokens=False)]  # fmt: skip
        places, lengths = np.flatnonzero(chosen), np.array([len(each) for each in encoded], np.int64)
        added = np.fromiter(chain.from_iterable(encoded), self._dtype)
        ids = np.insert(ids, np.repeat(offsets[places], lengths), added)
        longer = np.diff(offsets)
        longer[places] = lengths
        return ids, np.concatenate([[0], np.cumsum(longer)])

    def _encode_items(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        text, starts, lengths, items, item_ends = _scan(texts)
        pieces = np.empty(lengths.sum(), self._dtype)  # of all distinct items; a piece has at least one byte
        piece_starts, piece_counts = np.empty((2, len(starts)), np.int64)
        _cut(text, starts, lengths, self._letters, self._first, self._following, self._max_length,
             pieces, piece_starts, piece_counts)  # fmt: skip
        others = np.flatnonzero(piece_counts < 0)
        strings = _strings(text, starts[others], lengths[others])
        encoded = [each.ids for each in self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)]
        piece_counts[others] = [len(ids) for ids in encoded]
        piece_starts[others] = len(pieces) + np.cumsum(piece_counts[others]) - piece_counts[others]
        pieces = np.concatenate([pieces, np.fromiter(chain.from_iterable(encoded), self._dtype)])
        return _gather(items, item_ends, pieces, piece_starts, piece_counts)


def _pattern_of_added_tokens(tokenizer: Any) -> str:
    """A pattern that every text with an added token matches; empty if the tokenizer has none.

    Normalizing a text of printable ASCII changes nothing but its case; any other text is matched as a precaution.
    """
    contents = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    normalized = [tokenizer.normalizer.normalize_str(content) for content in contents]
    found = "|".join(re.escape(content) for content in sorted({*contents, *normalized}))
    return f"[^ -~]|(?i:{found})" if contents else ""


def itemize(texts: pa.StringArray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(distinct, items, item_ends): the items of text n are distinct[i] for i in
    items[item_ends[n]:item_ends[n + 1]]. `distinct` is in order of first occurrence.

    items: (items,) int32; item_ends: (texts + 1,) int64.
    """
    text, starts, lengths, items, item_ends = _scan(texts)
    return _strings(text, starts, lengths), items, item_ends


def _strings(text: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> list[str]:
    raw = text.data
    return [str(raw[start : start + n], "utf-8") for start, n in zip(starts.tolist(), lengths.tolist(), strict=True)]


def _scan(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(text, starts, lengths, items, item_ends): distinct item i is text[starts[i]:starts[i] + lengths[i]]."""
    _, offsets, data = texts.buffers()
    text = np.frombuffer(data or b"", np.uint8)
    ends = np.zeros(1, np.int32)
    if len(texts):
        ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    items, item_ends = np.empty(ends[-1] - ends[0], np.int32), np.zeros(len(ends), np.int64)
    capacity = 2**16  # for distinct items; doubled until they fit
    found = -1
    while found < 0:
        starts, lengths = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
        found = _itemize(text, ends, items, item_ends, starts, lengths)
        capacity *= 2
    return text, starts[:found], lengths[:found], items[: item_ends[-1]], item_ends


def _index(vocabulary: dict[str, int]) -> _Pieces:
    """Build the hash table of ASCII pieces. A piece is empty only if the vocabulary holds nothing but [UNK]."""
    pieces = [piece.encode() for piece in vocabulary]
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    slots = np.full(4 << len(pieces).bit_length(), -1, np.int32)
    index = _Pieces(
        np.frombuffer(b"".join(pieces), np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array(list(vocabulary.values()), np.int64),
        slots,
        int(lengths.max(initial=0)),
    )
    _fill(index)
    return index


@njit(cache=True)
def _slot_of(code, slots):
    return np.int64((code ^ (code >> np.uint64(29))) & np.uint64(len(slots) - 1))


@njit(cache=True)
def _fill(index):
    for piece in range(len(index.ids)):
        code = _FNV_BASIS
        for n in range(index.ends[piece], index.ends[piece + 1]):
            code = (code ^ np.uint64(index.text[n])) * _FNV_PRIME
        slot = _slot_of(code, index.slots)
        while index.slots[slot] >= 0:
            slot = (slot + 1) & (len(index.slots) - 1)
        index.slots[slot] = piece


@njit(cache=True)
def _longest_piece(text, start, end, letters, index):
    """(id, end) of the longest piece that text[start:] starts with; the id is -1 if there is none."""
    found, found_end = -1, start
    code = _FNV_BASIS
    for n in range(start, min(end, start + index.longest)):
        code = (code ^ np.uint64(letters[text[n]])) * _FNV_PRIME
        slot = _slot_of(code, index.slots)
        while index.slots[slot] >= 0:
            piece = index.slots[slot]
            begin = index.ends[piece]
            if index.ends[piece + 1] - begin == n + 1 - start:
                same = True
                for k in range(n + 1 - start):
                    if index.text[begin + k] != letters[text[start + k]]:
                        same = False
                        break
                if same:
                    found, found_end = index.ids[piece], n + 1
                    break
            slot = (slot + 1) & (len(index.slots) - 1)
    return found, found_end


@njit(cache=True)
def _cut(text, starts, lengths, letters, first, following, max_length, pieces, piece_starts, piece_counts):
    """Write the pieces of item i to pieces[piece_starts[i]:piece_starts[i] + piece_counts[i]]. The count is -1 for an
    item with characters other than printable ASCII.
    """
    used = 0
    for item in range(len(starts)):
        start, end = starts[item], starts[item] + lengths[item]
        piece_starts[item] = used
        for n in range(start, end):
            if _KIND[text[n]] == _OTHER:
                piece_counts[item] = -1
                break
        else:
            at = start
            while at < end and lengths[item] <= max_length:
                piece, piece_end = _longest_piece(text, at, end, letters, first if at == start else following)
                if piece < 0:
                    break
                pieces[used] = piece
                used += 1
                at = piece_end
            if at < end:  # not in the vocabulary
                used = piece_starts[item]
                pieces[used] = UNK_ID
                used += 1
            piece_counts[item] = used - piece_starts[item]


@njit(cache=True)
def _itemize(text, ends, items, item_ends, starts, lengths):
    """Number the items; distinct item n is text[starts[n]:starts[n] + lengths[n]].

    Returns the number of distinct items, or -1 if they do not fit in `starts`. The arrays do not grow in this function,
    because numba would then read every element several times slower.
    """
    slots = np.full(2 * len(starts), -1, np.int32)  # a hash table: open addressing, at most half full
    hashes = np.empty(len(starts), np.uint64)
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
            code = _FNV_BASIS
            while end < word_end and (end == at or whole or (letters and _KIND[text[end]] == _LETTER)):
                code = (code ^ np.uint64(text[end])) * _FNV_PRIME
                end += 1
            length = end - at
            slot = _slot_of(code, slots)
            item = slots[slot]
            while item >= 0 and not (
                hashes[item] == code and lengths[item] == length and _same(text, starts[item], at, length)
            ):
                slot = (slot + 1) & (len(slots) - 1)
                item = slots[slot]
            if item < 0:
                if found == len(starts):
                    return -1
                item = np.int32(found)
                slots[slot] = item
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
def _gather(items, item_ends, pieces, piece_starts, piece_counts):
    """Copy the pieces of each item to the items' positions; return (ids, offsets)."""
    total = 0
    for item in items:
        total += piece_counts[item]
    ids = np.empty(total, pieces.dtype)
    offsets = np.empty(len(item_ends), np.int64)
    offsets[0] = 0
    place = 0
    for text in range(len(item_ends) - 1):
        for n in range(item_ends[text], item_ends[text + 1]):
            start = piece_starts[items[n]]
            for piece in range(start, start + piece_counts[items[n]]):
                ids[place] = pieces[piece]
                place += 1
        offsets[text + 1] = place
    return ids, offsets
