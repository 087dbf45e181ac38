import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.wordpiece import learn_vocabulary
from tokenizers.normalizers import BertNormalizer

from bert_pipeline.data.tokenizer.alphabet import choose_alphabet
from bert_pipeline.data.tokenizer.build import _bert_tokenizer
from bert_pipeline.data.tokenizer.learn import learn_pieces, spell
from bert_pipeline.formats.corpus import iterate_documents
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS

PLAIN = _bert_tokenizer(BertNormalizer(lowercase=False))


def learn(words, *, vocab_size, min_frequency=2, limit_alphabet=1000, times=1):
    """Learn from a Counter of words with all counts multiplied by `times`."""
    spelling = spell(pa.array(sorted(words), pa.string()), np.array([times * words[word] for word in sorted(words)]))
    alphabet, _ = choose_alphabet(spelling, limit_alphabet, PLAIN)
    return learn_pieces(spelling, alphabet, SPECIAL_TOKENS, vocab_size, times * min_frequency)


def text(letters, longest):
    return st.lists(st.text(letters, min_size=1, max_size=longest), min_size=1, max_size=40)


@settings(max_examples=300)
@given(
    words=text("ab", 12) | text("abc", 8) | text("abcdefgh", 6) | text("aβ中1.", 8),
    vocab_size=st.integers(10, 80),
    min_frequency=st.integers(1, 3),
    limit_alphabet=st.integers(1, 8),
)
def test_pieces_equal_tokenizers(words, vocab_size, min_frequency, limit_alphabet):
    """With few letters and words, nearly every merge is a tie, and many give an existing piece."""
    limits = {"vocab_size": vocab_size, "min_frequency": min_frequency, "limit_alphabet": limit_alphabet}
    words = [part for word in words for part in re.split("([中.])", word) if part]  # as BERT splits them
    assert learn(Counter(words), **limits).pieces == learn_vocabulary([" ".join(words)], lowercase=False, **limits)


def test_a_word_that_holds_a_new_pair_twice_is_merged_in_both_places():
    words = Counter({"xabyab": 3, "aaaaaaa": 2, "abab": 1})
    sentence = " ".join(words.elements())
    assert learn(words, vocab_size=40).pieces == learn_vocabulary([sentence], vocab_size=40)


def test_more_pairs_than_the_first_table_and_queue_hold():
    letters = [chr(n) for n in range(0xAC00, 0xAD00)]  # of Hangul
    words = Counter(
        {
            a + b + letters[(i + 7 * j) % 256]: 1 + i * j % 3
            for i, a in enumerate(letters)
            for j, b in enumerate(letters)
        }
    )
    assert len({word[:2] for word in words} | {"##" + word[1:] for word in words}) > 2**16
    expected = learn_vocabulary([" ".join(words.elements())], vocab_size=800, lowercase=False)
    assert learn(words, vocab_size=800).pieces == expected


def test_counts_beyond_32_bits_change_nothing():
    """`tokenizers` counts pairs as i32: from 2**31 on, the most frequent ones become negative."""
    words = Counter(["the", "the", "theory", "the", "other", "method", "that", "the", "weather", "then", "rather"])
    assert learn(words, vocab_size=60, times=2**40).pieces == learn(words, vocab_size=60).pieces
    assert "the" in learn(words, vocab_size=60, times=2**40).pieces


def test_every_word_more_frequent_than_the_last_merge_is_a_piece():
    words = Counter({f"{a}{b}{c}": ord(a) * ord(b) % 97 for a in "klmnop" for b in "aeiou" for c in "rstkl"})
    learnt = learn(words, vocab_size=100)
    common = {word for word, count in words.items() if count > learnt.last_count}
    assert common and common <= set(learnt.pieces)
    assert learn(words, vocab_size=20).last_count > max(words.values()), "no merge, no room"


def test_no_words_give_no_pieces():
    assert learn(Counter(), vocab_size=50).pieces == list(SPECIAL_TOKENS)
    assert learn(Counter("a"), vocab_size=50).pieces == [*SPECIAL_TOKENS, "##a", "a"]


def words_of(sentences):
    """Encode with `tokenizers` itself."""
    from tokenizers import normalizers, pre_tokenizers

    normalize, split = normalizers.BertNormalizer().normalize_str, pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    return Counter(word for sentence in sentences for word, _ in split(normalize(sentence)))


def test_pieces_of_the_sample_equal_tokenizers(tiny):
    sentences = [sentence for document in iterate_documents(tiny["raw_corpus"].path, "train") for sentence in document]
    assert learn(words_of(sentences), vocab_size=1000).pieces == learn_vocabulary(sentences, vocab_size=1000)


@pytest.mark.slow
@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_pieces_of_real_abstracts_equal_tokenizers():
    path = Path(os.environ["BERT_PIPELINE_DATA"], "corpus", "pubmed-abstracts.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        sentences = [text for line in lines for text in (json.loads(line)["title"], json.loads(line)["text"])]
    assert learn(words_of(sentences), vocab_size=16_000).pieces == learn_vocabulary(sentences, vocab_size=16_000)
