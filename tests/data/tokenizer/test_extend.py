"""The pieces that are added to an initial vocabulary: what they save, and that they are the best ones."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from bert_pipeline.data.tokenizer.build import _bert_tokenizer
from bert_pipeline.data.tokenizer.extend import useful_pieces
from bert_pipeline.formats.initial_model import split_piece
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS

LETTERS = "abcdn"
VOCABULARY = [*SPECIAL_TOKENS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "##an", "ban"]


def useful(words: dict[str, int], number: int, min_frequency: int = 1):
    tokenizer = _bert_tokenizer(None, {piece: number for number, piece in enumerate(VOCABULARY)})
    names = sorted(words)
    counts = np.array([words[name] for name in names])
    return useful_pieces(tokenizer, pa.array(names, pa.string()), counts, number, min_frequency)


def num_tokens(words: dict[str, int], new: list[str]) -> int:
    vocabulary = {piece: number for number, piece in enumerate([*VOCABULARY, *new])}
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return sum(count * len(model.tokenize(word)) for word, count in words.items())


def test_the_whole_word_is_added_not_the_steps_to_it():
    words = {"banana": 100, "cab": 1}
    assert num_tokens(words, []) == 303
    [best] = useful(words, 1)
    assert best == ("banana", 200) and num_tokens(words, ["banana"]) == 103


def test_pieces_are_ranked_by_the_tokens_that_they_save():
    found = useful({"banana": 10, "banc": 30, "cand": 12, "dab": 1}, 3)
    assert [each.piece for each in found] == ["banc", "cand", "banana"]
    assert [each.saved_tokens for each in found] == [30, 24, 20]


def test_words_with_unknown_characters_are_left_out():
    assert {each.piece for each in useful({"bé": 50, "da": 3}, 5)} == {"da"}
    assert useful({"é": 1}, 5) == []


def test_rare_pairs_give_no_piece():
    assert useful({"dab": 2}, 5, min_frequency=3) == []


@given(st.dictionaries(st.text(LETTERS, min_size=1, max_size=9), st.integers(1, 50), min_size=1, max_size=12))
def test_every_piece_is_new_and_the_saving_is_exact_if_all_are_added(words):
    found = useful(words, 1000)
    new = [each.piece for each in found]
    assert not set(new) & set(VOCABULARY) and len(set(new)) == len(new)
    assert [each.saved_tokens for each in found] == sorted((each.saved_tokens for each in found), reverse=True)
    assert num_tokens(words, []) - num_tokens(words, new) <= sum(each.saved_tokens for each in found)
    used = Counter()
    model = models.WordPiece({piece: n for n, piece in enumerate([*VOCABULARY, *new])}, unk_token="[UNK]")
    for word, count in words.items():
        for token in model.tokenize(word):
            used[token.value] += count
    for each in found:
        assert each.saved_tokens == used[each.piece] * (len(split_piece(each.piece, VOCABULARY)) - 1)


@pytest.mark.parametrize(
    ("piece", "parts"),
    [
        ("banana", ["ban", "##an", "##a"]),
        ("##band", ["##b", "##an", "##d"]),
        ("nab", ["n", "##a", "##b"]),
        ("be", []),
        ("ban", ["ban"]),
    ],
)
def test_a_piece_is_split_as_wordpiece_does(piece, parts):
    assert split_piece(piece, VOCABULARY) == parts
    if parts and not piece.startswith("##"):
        model = models.WordPiece({piece: n for n, piece in enumerate(VOCABULARY)}, unk_token="[UNK]")
        assert [token.value for token in model.tokenize(piece)] == parts
