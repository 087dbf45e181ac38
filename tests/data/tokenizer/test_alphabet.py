"""Which characters have pieces: exactly those pieces that can occur in a text."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.wordpiece import is_a_word
from tokenizers.normalizers import BertNormalizer

from bert_pipeline.data.tokenizer.alphabet import alphabet_of, choose_alphabet
from bert_pipeline.data.tokenizer.build import VocabularyError, _bert_tokenizer, _train, train_wordpiece
from bert_pipeline.data.tokenizer.learn import learn_pieces, spell
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS
from bert_pipeline.recipe import TokenizerRecipe

PLAIN = _bert_tokenizer(BertNormalizer(lowercase=False))
UNICODE = [each for each in map(chr, range(0x110000)) if unicodedata.category(each) not in ("Cc", "Cn", "Co", "Cs")]
"""All characters of Unicode that are assigned."""


@pytest.mark.parametrize(("lowercase", "strip_accents"), [(True, None), (False, False)])
def test_a_character_has_the_pieces_of_the_places_where_it_can_stand(lowercase, strip_accents):
    """All characters, first and after a letter, split by `tokenizers`."""
    tokenizer = _bert_tokenizer(BertNormalizer(lowercase=lowercase, strip_accents=strip_accents))
    text = " ".join(f"{each}a{each}" for each in UNICODE)
    first, following = set(), set()
    for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
        first.add(word[0])
        following.update(word[1:])
    assert following < first and len(first) > 120_000
    alphabet = alphabet_of(first, tokenizer)
    assert (set(alphabet.initial), set(alphabet.inside)) == (first, following)


def test_the_characters_that_are_words_are_those_of_bert():
    """`tokenizers` knows an older Unicode, and not the latest extensions of the Chinese characters."""
    alphabet = alphabet_of([each for each in UNICODE if PLAIN.normalizer.normalize_str(each).strip()], PLAIN)
    words = set(alphabet.initial) - set(alphabet.inside)
    assert {each for each in words if not is_a_word(each)} == {"\u166d", "\U000111c9"}, "no punctuation any more"
    known = {each for each in alphabet.initial if unicodedata.ucd_3_2_0.category(each) != "Cn" and is_a_word(each)}
    assert known <= words and len(known) > 70_000


@pytest.mark.parametrize(
    ("character", "places"),
    [
        ("a", "##a a"),
        ("7", "##7 7"),
        ("한", "##한 한"),
        ("か", "##か か"),
        ("°", "##° °"),
        ("β", "##β β"),
        ("(", "("),
        ("%", "%"),
        ("。", "。"),
        ("「", "「"),
        ("中", "中"),
        ("\ufe0f", "##\ufe0f \ufe0f"),  # variation selector: ❤️ is one word, but #️⃣ is two
        ("\u0301", "##\u0301 \u0301"),  # accent
    ],
)
def test_the_pieces_of_a_character(character, places):
    spelling = spell(pa.array([character]), np.array([1]))
    alphabet, _ = choose_alphabet(spelling, 10, PLAIN)
    pieces = learn_pieces(spelling, alphabet, (), vocab_size=0, min_frequency=1).pieces
    assert pieces == places.split() and alphabet.num_pieces == len(pieces)


@settings(max_examples=200)
@given(text=st.text("ab7é中葛。.(#%°한か\u0301\ufe0f\U000e0100 ", min_size=1, max_size=40), data=st.data())
def test_other_text_of_the_same_characters_has_no_unknown_piece(text, data):
    words = sorted({word for word, _ in PLAIN.pre_tokenizer.pre_tokenize_str(PLAIN.normalizer.normalize_str(text))})
    spelling = spell(pa.array(words, pa.string()), np.ones(len(words), np.int64))
    alphabet, _ = choose_alphabet(spelling, 100, PLAIN)
    pieces = learn_pieces(spelling, alphabet, SPECIAL_TOKENS, vocab_size=0, min_frequency=1).pieces
    tokenizer = _bert_tokenizer(PLAIN.normalizer, {piece: number for number, piece in enumerate(pieces)})
    other = data.draw(st.text(sorted(set(text)), max_size=40))
    assert "[UNK]" not in tokenizer.encode(other).tokens


HAN = [chr(0x4E00 + n) for n in range(3001)]
HAN_COUNTS = np.arange(3001, 0, -1)


def train_han(**keys):
    """3,001 Chinese characters, the n-th occurs 3,001 - n times."""
    return _train(TokenizerRecipe(min_frequency=1, **keys), pa.array(HAN), HAN_COUNTS)


def test_a_chinese_character_takes_one_piece():
    tokenizer, facts = train_han(vocab_size=3006, limit_alphabet=4000)
    assert set(tokenizer.get_vocab()) == {*SPECIAL_TOKENS, *HAN} and facts == {}
    with pytest.raises(VocabularyError, match="the 3001 characters of the text and the special tokens alone need 3006"):
        train_han(vocab_size=3005, limit_alphabet=4000)


def test_places_of_impossible_pieces_go_to_learnt_ones():
    text = (
        "(50 %) of the patients [with asthma], and 25 % of the others: better! why? it is; or \u201cit\u201d seems / is"
        " several clinical measurements improved"
    )
    pieces = list(train_wordpiece(TokenizerRecipe(vocab_size=100), [text] * 2).get_vocab())
    characters = set(text) - {" "}
    marks = set(filter(is_a_word, characters))
    assert len(marks) == 13 and marks <= set(pieces) and not {f"##{mark}" for mark in marks} & set(pieces)
    learnt = [piece for piece in pieces if len(piece.removeprefix("##")) > 1 and piece not in SPECIAL_TOKENS]
    assert len(learnt) == 100 - len(SPECIAL_TOKENS) - 2 * len(characters) + len(marks)


def test_a_too_small_alphabet_is_named_with_the_number_that_the_text_needs(caplog):
    """Without the rarest 94 characters, 0.1 % of the words are [UNK]."""
    _, facts = train_han(vocab_size=1005)
    unknown = HAN_COUNTS[1000:].sum() / HAN_COUNTS.sum()
    needed = next(n for n in range(3001) if HAN_COUNTS[n:].sum() <= 0.001 * HAN_COUNTS.sum())
    assert needed == 2907
    assert facts == {
        "cut_words_fraction": pytest.approx(unknown),
        "needed_alphabet": needed,
        "needed_alphabet_pieces": needed + 5,
    }
    assert "44.47 % of the words become [UNK], because tokenizer.limit_alphabet = 1000 is smaller" in caplog.text
    assert "set tokenizer.limit_alphabet to 2907 or more, and tokenizer.vocab_size to more than 2912" in caplog.text
    assert train_han(vocab_size=2912, limit_alphabet=needed)[1] == {}
    with pytest.raises(VocabularyError, match="alone need 2912"):
        train_han(vocab_size=2911, limit_alphabet=needed)
    assert len(caplog.records) == 1


@given(st.dictionaries(st.text("abcde%中", min_size=1, max_size=5), st.integers(1, 50), min_size=1), st.integers(1, 8))
def test_the_alphabet_needed_is_the_smallest_that_cuts_few_words(counts, limit):
    words = sorted(counts)
    spelling = spell(pa.array(words), np.array([counts[word] for word in words]))
    ranked = sorted(set("".join(words)), key=lambda c: (-sum(counts[w] * w.count(c) for w in words), c))

    def cut(size):
        return sum(counts[word] for word in words if not set(word) <= set(ranked[:size])) / sum(counts.values())

    alphabet, facts = choose_alphabet(spelling, limit, PLAIN)
    assert set(alphabet.initial) == set(ranked[:limit])
    assert bool(facts) == (cut(limit) > 0.001)
    if facts:
        needed = min(n for n in range(8) if cut(n) <= 0.001)
        pieces = sum(1 if is_a_word(character) else 2 for character in ranked[:needed])
        assert facts == {
            "cut_words_fraction": pytest.approx(cut(limit)),
            "needed_alphabet": needed,
            "needed_alphabet_pieces": 5 + pieces,
        }
