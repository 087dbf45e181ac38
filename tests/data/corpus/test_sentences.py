"""Sentence splitting: no text is lost, and sentences equal those of segtok and those of people."""

import gzip
import json
import lzma
import os
import re
import sys
import time
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from segtok.segmenter import split_multi

from bert_pipeline.data.corpus import sentences
from bert_pipeline.data.corpus.sentences import split_sentences
from bert_pipeline.data.sources.sample.documents import sample_documents

SENTENCES = st.lists(
    st.sampled_from(
        ["Aspirin", "E. coli", "et al. ", "5 mg/kg i.p.", "(Fig. 2)", ". ", "? ", "\n", "\n \n", "\u2028", "é"]
    )
    | st.text(max_size=20)
)

PARAGRAPH_END = re.compile(r"\n\s*\n|\r\s*\r|\u2029")
PIECE = re.compile(r".{1,5000}(?:(?<=[.?!] )(?=[A-Z])|\Z)|.{1,5000}(?<= )|.{1,5000}", re.DOTALL)


def sentences_of_segtok(text):
    """The oracle: segtok's own function on each piece of each paragraph."""
    pieces = [piece for part in PARAGRAPH_END.split(text) for piece in PIECE.findall(" ".join(part.split()))]
    return [sentence for piece in pieces for sentence in split_multi(piece) if sentence]


# What segtok's rules look at; and characters on which the `regex` that it uses and Python's `re` and `str` might not
# agree (U+1DF25 and U+10D70 are letters since Unicode 15 and 16).
# fmt: off
MARKERS = [".", "?", "!", '."', ".)", ".]", ".')]", ".”", '?"', "。", "．", "..", "…", ";", ":", ",", "-", "‐"]
BRACKETS = ["(", "[", ")", "]", "((", ")]", "(1998)"]
WORDS = [
    "a", "A", "Ab", "ab", "ABC", "Smith", "John", "the", "and", "are", "of", "is", "between", "andante", "coli", "spp",
    "gene-A", "p53", "Doctor", "by", "Señor", "J.", "A.-B", "Clin.", "5", "05", "31", "1999", "12,", "0.05", "Jan",
    "May", "Mär", "e.g", "i.v", "eg", "Fig", "figs", "cf", "vs", "al", "U.K", "z.B", "Dr", "No", "approx",
]
CHARACTERS = [*"αΔéǅªʰ²½٣漢\u200b\u00ad\U0001df25\U00010d70", "Aʰ", "x\u0301"]
SPACES = [" ", " ", " ", "", "", "\n", "\u00a0", "\u001c", "\u0085", "\u2028", "\n\n", " et al. ", ", and "]
# fmt: on
LENGTHS = st.integers(2, 20).map(lambda length: "so we go on " * 4 + "x" * length)  # short in a bracket: below 55
RULES = st.tuples(
    st.sampled_from(WORDS) | st.sampled_from(BRACKETS + CHARACTERS) | LENGTHS,
    st.just(".") | st.sampled_from([*MARKERS, *BRACKETS, *CHARACTERS, ""]),
    st.sampled_from(SPACES),
).map("".join)


@pytest.mark.parametrize(
    "text",
    [
        "It stands . And alone. In 5. May it snowed. In 5. Summers too. It was John F. Kennedy. It was John F. 5.",
        *(f"({'x' * length}. {'Y' * 80}). End." for length in range(50, 55)),  # where a bracket's sentence is short
        *(f"({'x' * 80}. {'Y' * length}). End." for length in range(50, 55)),
        *(unit * (12_000 // len(unit)) for unit in ("x", "x ", "x. ", "by J. Abby ")),  # pieces of exactly 5,000
    ],
)
def test_rare_cases_equal_segtok(text):
    assert split_sentences(text) == sentences_of_segtok(text)


@settings(max_examples=2_000)
@given(st.lists(RULES, min_size=2, max_size=25).map("".join) | st.lists(RULES | st.text(max_size=5)).map("".join))
def test_the_sentences_equal_segtok(text):
    assert split_sentences(text) == sentences_of_segtok(text)


@settings(max_examples=30)
@given(st.lists(RULES, min_size=1, max_size=8).map("".join))
def test_the_sentences_of_paragraphs_of_several_pieces_equal_segtok(text):
    text *= 1 + 12_000 // len(text)
    assert split_sentences(text) == sentences_of_segtok(text)


def test_the_sentences_of_the_sample_equal_segtok():
    documents = list(sample_documents(500, seed=1))
    assert [split_sentences(text) for _, text in documents] == [sentences_of_segtok(text) for _, text in documents]


@pytest.mark.slow  # minutes: the oracle takes 2 MB a second
@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
@pytest.mark.parametrize("name", ["pubmed-abstracts.jsonl.gz", "rct-fulltext.jsonl.xz", "clinical-trials.jsonl.xz"])
def test_the_sentences_of_real_text_equal_segtok(name):
    path = Path(os.environ["BERT_PIPELINE_DATA"], "corpus", name)
    opened = {".gz": gzip.open, ".xz": lzma.open}[path.suffix]
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            record = json.loads(line)
            for text in (record.get("title") or "", record["text"]):
                assert split_sentences(text) == sentences_of_segtok(text), f"{name}, line {number}"
    assert number > 1_000


def test_segtok_and_str_split_agree_on_white_space():
    """Otherwise a marker could end in something other than the blank that the splitter searches for."""
    assert not "".join(regex.findall(r"\s", "".join(map(chr, range(sys.maxunicode + 1))))).split()


@given(SENTENCES.map("".join))
def test_only_white_space_is_lost(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == " ".join(sentence.split()) for sentence in sentences)


@pytest.mark.parametrize(
    "sentences",
    [
        ["We gave 0.5 mg/kg i.v. to 12 rats (Fig. 2).", "The response was dose-dependent (P < 0.05)."],
        ["E. coli K-12 was grown at 37 °C.", "Smith et al. used S. aureus instead."],
        ["IL-2 rose 3-fold vs. placebo.", "IFN-γ did not."],
        ["Is it safe?", "Data from the U.K. suggest so."],
        ["BACKGROUND: Dr. A. Jones reported it (J. Clin. Invest. 1998).", "METHODS: We repeated it."],
    ],
)
def test_abbreviations_do_not_end_a_sentence(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_line_may_be_wrapped_and_a_blank_line_ends_a_sentence(newline):
    text = newline.join(["Methods", "", "Rats were", "  given water. They", "drank.", " ", "Results"])
    assert split_sentences(text) == ["Methods", "Rats were given water.", "They drank.", "Results"]


def test_the_line_separators_of_unicode_are_a_space_and_a_paragraph():
    assert split_sentences("Rats\u2028drank\u00a0water\u2029Mice too") == ["Rats drank water", "Mice too"]


def test_an_empty_text_gives_no_sentence():
    assert split_sentences("") == split_sentences(" \n\u3000\n ") == []


def test_a_long_paragraph_is_cut_between_sentences():
    sentences = [f"Patient {n} of the study did well." for n in range(5_000)]
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("unit", ["(X et al. ", 'foo." and ', "x", "x. ", "((("])
def test_time_is_linear_in_the_length(unit):
    started = time.process_time()
    split_sentences(unit * (40_000 // len(unit)))
    assert time.process_time() - started < 60


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_boundaries_of_real_abstracts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    from benchmarks.sentences import bc5cdr, measure

    texts = list(bc5cdr(Path(os.environ["BERT_PIPELINE_DATA"], "blurb")))
    assert len(texts) == 2 * 1500, "a title and an abstract for each document of BC5CDR"
    assert measure(split_sentences, texts)["f1"] > 0.995


@given(st.text(st.sampled_from(" \n\t\r\x0b\x1c\x1f\x85\xa0\u2003\u3000ab.A")))
def test_long_paragraphs_get_the_same_blanks_in_less_memory(text):
    with pytest.MonkeyPatch.context() as patch:
        short = sentences._single_blanks(text)
        patch.setattr(sentences, "LONG_PARAGRAPH", 0)
        assert sentences._single_blanks(text) == short
