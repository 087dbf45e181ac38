"""Choose the pieces to add to the vocabulary of an initial model: those that save the most tokens on the text.

    words -> pieces of the vocabulary -> merged pairs: candidates -> those that save the most tokens

The candidates continue the vocabulary as if learning had never stopped: the most frequent pair of adjacent pieces
becomes one piece, and so on (learn.py). Many of them are only steps on the way to whole words. So the words are then
encoded with all candidates, and the candidates that really occur are ranked by the tokens that each saves: its count
times the pieces that it replaces, minus its count.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models

from bert_pipeline.data.tokenizer.learn import merge_frequent_pairs
from bert_pipeline.data.tokenizer.merges import count_pairs
from bert_pipeline.formats.initial_model import split_piece

CANDIDATES_PER_PIECE = 4


class Useful(NamedTuple):
    piece: str
    saved_tokens: int
    """Tokens that it saves on the text."""


def useful_pieces(
    tokenizer: Tokenizer, words: pa.StringArray, counts: np.ndarray, number: int, min_frequency: int
) -> list[Useful]:
    """At most `number` new pieces, those that save the most tokens first; ties by the order of learning.

    `words` are units of the tokenizer's pre-tokenizer, `counts` (words,) int64 how often each occurs. Words with
    characters that the vocabulary lacks are left out, so no piece has one.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    encoded = [_ids(tokenizer.model, word) for word in words.to_pylist()]
    known = np.array([vocabulary["[UNK]"] not in ids for ids in encoded], bool)
    chosen = [ids for ids, is_known in zip(encoded, known, strict=True) if is_known]
    if not chosen:
        return []
    pairs = count_pairs(
        np.array([number for ids in chosen for number in ids], np.int32),
        np.array([len(ids) for ids in chosen], np.int32),
        counts[known].astype(np.int64),
    )
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    merge_frequent_pairs(pieces, pairs, len(pieces) + CANDIDATES_PER_PIECE * number, min_frequency)
    candidates = pieces[len(vocabulary) :]
    replaced = {piece: split_piece(piece, vocabulary) for piece in candidates}
    found = {piece: number for number, piece in enumerate(pieces) if replaced.get(piece, True)}
    extended = models.WordPiece(found, unk_token="[UNK]", max_input_chars_per_word=100)
    occurrences: Counter[int] = Counter()
    for word, count in zip(words.filter(pa.array(known)).to_pylist(), counts[known].tolist(), strict=True):
        for used in _ids(extended, word):
            occurrences[used] += count
    useful = [
        Useful(piece, occurrences[found[piece]] * (len(parts) - 1))
        for piece, parts in replaced.items()
        if parts and occurrences[found[piece]]
    ]
    return sorted(useful, key=lambda each: -each.saved_tokens)[:number]


def _ids(model: models.WordPiece, word: str) -> list[int]:
    return [token.id for token in model.tokenize(word)]
