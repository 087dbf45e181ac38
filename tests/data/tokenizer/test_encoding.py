"""Ids, words and normalized characters equal those of the `tokenizers` library, for all of Unicode."""

import gzip
import itertools
import json
import lzma
import os
from itertools import islice, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from benchmarks.scripts import SCRIPTS
from bert_pipeline.data.tokenizer.build import train_wordpiece
from bert_pipeline.data.tokenizer.characters import MARK, MOVES, Characters
from bert_pipeline.data.tokenizer.encoding import Encoder
from bert_pipeline.data.tokenizer.items import itemize
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS, read_tokenizer
from bert_pipeline.recipe import TokenizerRecipe

TEXT = [
    "Interleukin-2 (IL-2) raised β-catenin by 12.5 µg/ml; p < 0.05.",
    "Müller cells, naïve patients and 5-HT1A/2B receptors.",
    "Straße ΣΊΣΥΦΟΣ İstanbul ﬁbrosis ½ 中文字 ｆｕｌｌ",
] * 3
SETTINGS = [
    dict(zip(("lowercase", "strip_accents", "handle_chinese_chars", "clean_text"), values, strict=True))
    for values in product((True, False), (None, True, False), (True, False), (True, False))
]
UNCASED, CASED = SETTINGS[0], SETTINGS[12]
LETTERS = (
    "abcdefzAÉéïİıßſ0129.,$[]#-“αςΣ가두통각한ㄱ中痛カガがบกาक़्ाشّ😀ꦱ\u1100\u1161\u11a8\u0301\u0308\u1b44\u302e\u200b"
)


def a_tokenizer(options, added=()):
    """Its pieces are single characters, as letters and as continuations, and some longer ones."""
    normalizer = normalizers.BertNormalizer(**options)
    letters = dict.fromkeys(letter for each in LETTERS for letter in each + normalizer.normalize_str(each))
    longer = ["##", "###", "두통", "##통", "abc", "##bc", "##c가", "é", "##é", "cafe", "naive", "##痛", "##ا"]
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{each}" for each in letters), *longer])
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.add_tokens(list(added))
    return tokenizer


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


@settings(max_examples=200)
@given(texts=st.lists(st.text(letters, max_size=60) | st.sampled_from([*TEXT, "[SEP] [MASK]", "a" * 300]), max_size=8))
def test_ids_equal_tokenizers_on_any_unicode(encoder, tokenizer, texts):
    assert_same(encoder, tokenizer, texts)


@pytest.fixture(scope="module")
def encoders():
    """One of every kind of tokenizer, with its encoder."""
    tokenizers = [a_tokenizer(options) for options in SETTINGS]
    return [(Encoder(tokenizer), tokenizer) for tokenizer in tokenizers]


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from(LETTERS + " \n\u00a0\x85\x1f"), max_size=30), max_size=6))
def test_ids_equal_tokenizers_under_every_setting(encoders, texts):
    for encoder, tokenizer in encoders:
        assert_same(encoder, tokenizer, texts)


def words_by_tokenizers(tokenizer, text):
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def assert_same_characters(options, codes):
    """Each character alone and between letters becomes the same words as in the library; the tables' claims hold."""
    tokenizer = a_tokenizer(options)
    characters = Characters(tokenizer)
    blocks = [codes[n : n + 500] for n in range(0, len(codes), 500)]
    texts = pa.array([" ".join(f"{chr(code)} a{chr(code)}b" for code in block) for block in blocks])
    for words, text in zip(characters.words(texts), texts.to_pylist(), strict=True):
        assert words == words_by_tokenizers(tokenizer, text)
    table = characters.table(pa.array([], pa.string()))
    sizes = np.array([len(chr(code).encode()) for code in codes])
    assert (table.counts[codes] <= sizes).all(), "buffers have one place per byte"
    apart = [code for code in codes if table.kinds[code] == MARK]
    beside = pa.array([f"a{chr(code)}{chr(code)}b" for code in apart])
    assert all(len(words) >= 4 for words in characters.words(beside)), "a MARK is apart from its neighbours"


def code_points(planes):
    return [code for plane in planes for code in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= code < 0xE000]


SAMPLE = [
    *code_points([0])[:0x3400],
    *code_points([0])[0xA000::7],
    *code_points([1])[:0x2000],
    *code_points([1])[0x6000::3],
]
SAMPLE += [*code_points([2])[::101], *range(0x2F800, 0x2FA20), *range(0xE0000, 0xE01F0), *code_points([15])[::997]]


@pytest.mark.parametrize("options", [UNCASED, CASED, SETTINGS[8]], ids=str)
def test_characters_alone_and_between_letters(options):
    assert_same_characters(options, SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_every_code_point_alone_and_between_letters(options):
    assert_same_characters(options, code_points(range(17)))


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("options", [{}, {"strip_accents": False}, {"lowercase": False}], ids=str)
def test_ids_equal_tokenizers_in_every_script(name, options, tmp_path):
    texts = list(islice(SCRIPTS[name].documents(), 60))
    vocab_size = {"chinese": 180, "japanese": 225}.get(name, 310)  # their characters have no piece with ##
    trained = train_wordpiece(TokenizerRecipe(vocab_size=vocab_size, limit_alphabet=150, **options), texts)
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path)
    encoder = Encoder(tokenizer)
    assert_same(encoder, tokenizer, texts)
    ids, _ = encoder.encode(pa.array(texts))
    assert len(np.unique(ids)) > 140


MOVING = [
    "a\u302e\u1b44b",
    "\u302e\u0334\u1b44",
    "\u302ea\u1b44",
    "ꦱꦏ꧀ꦠ꧀ꦪ",
    "ꦱ꧀\u0301꧀",
    "\U0001d160\U0001d15e\u1b44",
    "\u1b44\u200b\u302e x",
]


@pytest.mark.parametrize("options", [UNCASED, CASED], ids=["uncased", "cased"])
def test_marks_that_change_places(options):
    """Only items with two such marks in a row are left to the library."""
    tokenizer = a_tokenizer(options)
    encoder, characters = Encoder(tokenizer), Characters(tokenizer)
    moving = [bool(characters.symbols(each)[0] & MOVES) for each in ("\u302e", "\u1b44", "꧀", "a", "中", "가")]
    assert moving == [options is UNCASED] * 3 + [False] * 3
    assert_same(encoder, tokenizer, [*MOVING, " ".join(MOVING), "".join(MOVING)])
    assert characters.words(pa.array(MOVING)) == [words_by_tokenizers(tokenizer, each) for each in MOVING]


ADDED = [AddedToken("[DRUG]"), AddedToken("naïve x", normalized=True), AddedToken("두통", normalized=True),
         AddedToken("Éa", normalized=False), AddedToken("#b", normalized=False, special=True)]  # fmt: skip
WITH_ADDED = [
    "[DRÜG] [drug]x",
    "Naïve X",
    "na\u0301i\u0308ve\u3000x",
    "두통 두\u200b통",
    "\u1103\u116e\u1110\u1169\u11bc",
]
WITH_ADDED += ["éa Éa É\u0301a", "a#b", "\u302e\u1b44 [dr\u1b44\u302eug]"]
parts = st.sampled_from([*WITH_ADDED, *"aé중 두통[]"]) | st.text(max_size=2)


@pytest.fixture(scope="module")
def encoders_with_added_tokens():
    tokenizers = [a_tokenizer(options, ADDED) for options in SETTINGS]
    return [(Encoder(tokenizer), tokenizer) for tokenizer in tokenizers]


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.lists(parts, max_size=6).map("".join), max_size=5))
def test_ids_equal_tokenizers_with_added_tokens(encoders_with_added_tokens, texts):
    for encoder, tokenizer in encoders_with_added_tokens:
        assert_same(encoder, tokenizer, [*texts, *WITH_ADDED])


def test_texts_without_an_added_token_are_not_left_to_the_library(monkeypatch):
    encoder = Encoder(a_tokenizer(UNCASED, ADDED))
    left = []
    by_library = Encoder._encode_by_library
    monkeypatch.setattr(
        Encoder, "_encode_by_library", lambda self, texts: left.extend(texts) or by_library(self, texts)
    )
    others = ["a “naïve” 두 통 patient", "drug", "中文", "μg/ml"]
    encoder.encode(pa.array([*others, "a [Drüg]", "Éa"]))
    assert left == ["a [Drüg]", "Éa"]


def test_a_slice_of_an_array_is_read_from_its_own_start(encoder):
    whole = pa.array(["left out", *TEXT, "left out too"])
    for part in (whole.slice(1, 3), whole.slice(4, 0)):
        ids, offsets = encoder.encode(part)
        again, same = encoder.encode(pa.array(part.to_pylist(), pa.string()))
        assert ids.tolist() == again.tolist() and offsets.tolist() == same.tolist()


def test_text_that_is_not_utf8_is_refused(encoder):
    for wrong in (b"\xff", b"abc \xf0\x9f", b"\xed\xa0\x80"):
        texts = pa.array([b"right", wrong]).view(pa.string())
        with pytest.raises(pa.ArrowInvalid, match="Invalid UTF8"):
            encoder.encode(texts)


def itemized(texts, tokenizer):
    items = itemize(pa.array(texts), Characters(tokenizer).table(pa.array(texts)).kinds)
    distinct = items.strings()
    return distinct, [[distinct[n] for n in items.numbers[a:b]] for a, b in itertools.pairwise(items.ends)]


def test_more_distinct_words_than_the_first_hash_table_holds(encoder, tokenizer):
    words = [f"{'w' * (number % 5)}{number:x}ß" for number in range(300_000)]
    texts = [" ".join(words[:1000]), " ".join(words), " ".join(words)]
    distinct, of_text = itemized(texts, tokenizer)
    assert distinct == words and of_text == [words[:1000], words, words]
    assert_same(encoder, tokenizer, [" ".join(words[::7])])


@pytest.mark.parametrize("word", ["x" * 100, "x" * 101, "é" * 101, "가" * 34, "a" + "~" * 3, "~", "\x7f", "in\x00side",
                                  "q" * 40 + "~", "中" * 200, "\u0301" * 200 + "a"])  # fmt: skip
def test_words_too_long_or_without_pieces_are_unknown_as_in_the_tokenizer(encoder, tokenizer, word):
    assert_same(encoder, tokenizer, [word, f"a {word} b", word.upper()])


def test_items_are_marks_chinese_characters_and_what_stands_between():
    texts = ["IL-2 (IL-2), β-IL", "", "-IL\x07 IL", "中文a字。“é” 가나\u00a0다"]
    _, of_text = itemized(texts, a_tokenizer(UNCASED))
    assert of_text == [
        ["IL", "-", "2", "(", "IL", "-", "2", ")", ",", "β", "-", "IL"], [], ["-", "IL\x07", "IL"],
        ["中", "文", "a", "字", "。", "“", "é", "”", "가나", "다"],
    ]  # fmt: skip


def test_another_kind_of_tokenizer_is_refused():
    with pytest.raises(ValueError, match="NoneType, Whitespace, WordPiece cannot be applied word by word; remedy"):
        foreign = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        foreign.pre_tokenizer = pre_tokenizers.Whitespace()
        Encoder(foreign)


CORPORA = ["pubmed-abstracts.jsonl.gz", "rct-fulltext.jsonl.xz", "clinical-trials.jsonl.xz", "general-english.jsonl.xz"]


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("parts", [1, pytest.param(None, marks=pytest.mark.slow)], ids=["first part", "every line"])
def test_ids_equal_tokenizers_on_real_text(encoder, tokenizer, name, parts):
    path = Path(os.environ["BERT_PIPELINE_DATA"], "corpus", name)
    with (gzip.open if name.endswith("gz") else lzma.open)(path, "rt", encoding="utf-8") as stream:
        for part in islice(iter(lambda: stream.readlines(200_000), []), parts):
            texts = [line for record in part for line in json.loads(record)["text"].splitlines()]
            assert_same(encoder, tokenizer, texts)
