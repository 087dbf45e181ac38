"""Encode texts to token ids; each distinct item is encoded once.

    texts -> items (items.py) -> normalized words (characters.py) -> pieces (wordpiece.py) -> ids at their places

Everything is compiled, for all of Unicode. Two rare cases go to the `tokenizers` library, which the result is equal to:

- items whose marks must be sorted (characters.py);
- texts that may contain an added token (`[DRUG]`). Added tokens are matched before the text is split, and may hold
  blanks and punctuation.
"""

import re
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from bert_pipeline.core.text import utf8
from bert_pipeline.data.tokenizer.characters import Characters
from bert_pipeline.data.tokenizer.items import itemize
from bert_pipeline.data.tokenizer.wordpiece import build_trie, cut, may_hold
from bert_pipeline.formats.tokenizer import token_id_type


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
        self._max_length = tokenizer.model.max_input_chars_per_word
        self._characters = Characters(tokenizer)
        pieces, prefix = tokenizer.get_vocab(with_added_tokens=False), tokenizer.model.continuing_subword_prefix
        # No word starts with ##, because punctuation is a word by itself.
        first = {piece: number for piece, number in pieces.items() if not piece.startswith(prefix)}
        following = {piece.removeprefix(prefix): number for piece, number in pieces.items() if piece not in first}
        self._pieces = build_trie(first, following)
        added = tokenizer.get_added_tokens_decoder().items()
        self._added = "|".join(re.escape(token.content) for _, token in added)
        normalized = {tokenizer.normalizer.normalize_str(token.content): number for number, token in added}
        self._added_pieces = build_trie(normalized, {})

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets): text n has the ids ids[offsets[n]:offsets[n + 1]], equal to the result of
        `tokenizer.encode(..., add_special_tokens=False)`. ids are uint16 or uint32, offsets int64.
        """
        if not self._added:
            return self._encode_items(texts)
        chosen = self._may_hold_added_tokens(texts)
        ids, offsets = self._encode_items(pc.if_else(chosen, "", texts))
        added, counts = self._encode_by_library(texts.filter(chosen).to_pylist())
        places = np.flatnonzero(chosen)
        ids = np.insert(ids, np.repeat(offsets[places], counts), added)
        longer = np.diff(offsets)
        longer[places] = counts
        return ids, np.concatenate([[0], np.cumsum(longer)])

    def _may_hold_added_tokens(self, texts: pa.StringArray) -> pa.BooleanArray:
        """Added tokens stand in the text as it is or, if they are `normalized`, in the normalized text."""
        chosen = np.array(pc.match_substring_regex(texts, self._added))
        text, ends = utf8(texts)
        may_hold(text, ends, self._characters.table(texts), self._added_pieces.edges, chosen)
        return pa.array(chosen)

    def _encode_items(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        table = self._characters.table(texts)
        items = itemize(texts, table.kinds)
        ids, spans = cut(items, table, self._pieces, self._max_length, self._dtype)
        others = np.flatnonzero(spans[:, 1] < 0)
        if len(others):
            other_ids, counts = self._encode_by_library(items.strings(others))
            spans[others] = np.stack([len(ids) + np.cumsum(counts) - counts, counts], axis=1)
            ids = np.concatenate([ids, other_ids])
        return _gather(items.numbers, items.ends, ids, spans)

    def _encode_by_library(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, counts): text n has counts[n] ids."""
        encoded = [each.ids for each in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.array([len(each) for each in encoded], np.int64)
        return np.fromiter(chain.from_iterable(encoded), self._dtype), counts


@njit(cache=True)
def _gather(numbers, ends, pieces, spans):
    """Copy the pieces of each item to the items' positions; return (ids, offsets)."""
    total = 0
    for item in numbers:
        total += spans[item, 1]
    ids = np.empty(total, pieces.dtype)
    offsets = np.empty(len(ends), np.int64)
    offsets[0] = 0
    place = 0
    for text in range(len(ends) - 1):
        for n in range(ends[text], ends[text + 1]):
            start, count = spans[numbers[n], 0], spans[numbers[n], 1]
            for piece in range(start, start + count):
                ids[place] = pieces[piece]
                place += 1
        offsets[text + 1] = place
    return ids, offsets
