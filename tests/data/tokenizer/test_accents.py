"""What stripping accents changes: measured on held-out text, reported where it costs letters."""

import logging
from itertools import product

import pyarrow as pa
import pytest

from bert_pipeline.data.corpus.build import build_raw_corpus
from bert_pipeline.data.tokenizer.accents import MAX_STRIPPED_FRACTION, describe_stripped, stripped_letters
from bert_pipeline.data.tokenizer.build import build_tokenizer
from bert_pipeline.recipe import CorpusRecipe, TokenizerRecipe

KOREAN = "환자는 두통을 호소하였다."


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (KOREAN, 1.0),
        ("が か", 0.5),  # dakuten
        ("患者头痛三天。", 0.0),
        ("ที่", 2 / 3),  # two of three characters are marks
        ("हिंदी", 1 / 5),  # the anusvara; vowel signs with a width of their own stay
        ("Bệnh", 1 / 4),
        ("Plain English ≥ 5, α, 37 °C", 0.0),  # ≥ and ° are no letters
        ("", 0.0),
    ],
)
def test_the_share_of_letters_that_change(text, share):
    assert stripped_letters([pa.array([text]), pa.array([], pa.string())]).share == pytest.approx(share)


def test_the_message_shows_what_becomes_of_the_most_frequent_letters():
    stripped = stripped_letters([pa.array(["두 두 é ี", "두"])])
    assert stripped.examples == [["두", "ᄃ + ᅮ"], ["é", "e"], ["ี", ""]]
    assert describe_stripped(*stripped) == (
        "stripping accents changes 100.00% of the letters of the held-out text (두 becomes ᄃ + ᅮ, é becomes e, "
        "◌ี becomes nothing)"
    )


@pytest.fixture(scope="module")
def korean_corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("korean")
    words = ["".join(pair) for pair in product("가나다라마바사아자차카타", repeat=2)]
    documents = [f"{KOREAN} {word} 약을 복용하였다. {word} 열이 있는가?" for word in words]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (folder / "corpus").mkdir()
    build_raw_corpus(CorpusRecipe(path=str(folder / "text.txt"), heldout_fraction=0.2), folder / "corpus", [])
    return folder / "corpus"


@pytest.mark.parametrize(
    ("keys", "share", "warns"),
    [
        ({}, 1.0, True),
        ({"lowercase": False}, 0.0, False),  # BERT strips accents only with lowercase
        ({"strip_accents": False}, 0.0, False),
        ({"strip_accents": True}, 1.0, False),
        ({"strip_accents": True, "lowercase": False}, 1.0, False),
    ],
)
def test_the_tokenizer_warns_unless_strip_accents_is_set(keys, share, warns, korean_corpus, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        facts = build_tokenizer(TokenizerRecipe(vocab_size=120, **keys), korean_corpus, tmp_path)
    assert facts["heldout_stripped_fraction"] == share and (share > MAX_STRIPPED_FRACTION) == bool(
        facts["stripped_examples"]
    )
    assert ("remedy: tokenizer.strip_accents = false" in caplog.text) == warns
