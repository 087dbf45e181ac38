import gzip
import itertools
import json
import lzma
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bert_pipeline.data.tokenizer.build import train_wordpiece
from bert_pipeline.data.tokenizer.encoding import Encoder, itemize
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.recipe import TokenizerRecipe

TEXT = [
    "Interleukin-2 (IL-2) raised β-catenin by 12.5 µg/ml; p < 0.05.",
    "Müller cells, naïve patients and 5-HT1A/2B receptors.",
    "Straße ΣΊΣΥΦΟΣ İstanbul ﬁbrosis ½ 中文字 ｆｕｌｌ",
] * 3


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request, tmp_path_factory):
    trained = train_wordpiece(TokenizerRecipe(vocab_size=170, lowercase=request.param), TEXT)
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(str(folder / "tokenizer.json"))
    return read_tokenizer(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


def assert_same(encoder, tokenizer, texts):
    ids, offsets = encoder.encode(pa.array(texts, pa.string()))
    expected = [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert ids.tolist() == [number for text in expected for number in text]
    assert ids.dtype == np.uint16


letters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \t\n\u00a0\u2028\u0301\u200b\x00İΣσς[]#-ß中")


@settings(max_examples=300)
@given(texts=st.lists(st.text(letters, max_size=60) | st.sampled_from([*TEXT, "[SEP] [MASK]", "a" * 300]), max_size=8))
def test_ids_equal_tokenizers_on_any_unicode(encoder, tokenizer, texts):
    assert_same(encoder, tokenizer, texts)


def test_a_slice_of_an_array_is_read_from_its_own_start(encoder):
    whole = pa.array(["left out", *TEXT, "left out too"])
    for part in (whole.slice(1, 3), whole.slice(4, 0)):
        ids, offsets = encoder.encode(part)
        again, same = encoder.encode(pa.array(part.to_pylist(), pa.string()))
        assert ids.tolist() == again.tolist() and offsets.tolist() == same.tolist()


def test_more_distinct_words_than_the_first_hash_table_holds(encoder, tokenizer):
    words = [f"w{number:x}" for number in range(70_000)]
    distinct, items, _ = itemize(pa.array([" ".join(words + words)]))
    assert distinct == words and items.tolist() == [*range(70_000)] * 2
    assert_same(encoder, tokenizer, [" ".join(words[::7])])


@pytest.mark.parametrize("word", ["x" * 100, "x" * 101, "a" + "~" * 3, "~", "\x7f", "in\x00side", "q" * 40 + "~"])
def test_words_too_long_or_without_pieces_are_unknown_as_in_the_tokenizer(encoder, tokenizer, word):
    assert_same(encoder, tokenizer, [word, f"a {word} b", word.upper()])


def test_items_are_ascii_words_punctuation_marks_and_whole_other_words():
    distinct, items, ends = itemize(pa.array(["IL-2 (IL-2), β-IL", "", "-IL\x07 IL"]))
    assert [[distinct[n] for n in items[a:b]] for a, b in itertools.pairwise(ends)] == [
        ["IL", "-", "2", "(", "IL", "-", "2", ")", ",", "β-IL"], [], ["-IL\x07", "IL"],
    ]  # fmt: skip


def test_another_kind_of_tokenizer_is_refused():
    with pytest.raises(ValueError, match="NoneType, Whitespace, WordPiece cannot be applied word by word; remedy"):
        foreign = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        foreign.pre_tokenizer = pre_tokenizers.Whitespace()
        Encoder(foreign)


@pytest.mark.slow
@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
@pytest.mark.parametrize("name", ["pubmed-abstracts.jsonl.gz", "rct-fulltext.jsonl.xz", "clinical-trials.jsonl.xz"])
def test_ids_equal_tokenizers_on_every_line_of_real_text(encoder, tokenizer, name):
    path = Path(os.environ["BERT_PIPELINE_DATA"], "corpus", name)
    with (gzip.open if name.endswith("gz") else lzma.open)(path, "rt", encoding="utf-8") as stream:
        texts: list[str] = []
        for line in stream:
            texts += json.loads(line)["text"].splitlines()
            if len(texts) > 5000:
                assert_same(encoder, tokenizer, texts)
                texts = []
        assert_same(encoder, tokenizer, texts)
