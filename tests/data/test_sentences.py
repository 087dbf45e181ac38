"""Sentence splitting: nothing is lost, and biomedical text is split where people would."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.data.sentences import split_sentences

SENTENCES = st.lists(
    st.sampled_from(
        ["Aspirin", "E. coli", "et al. ", "5 mg/kg i.p.", "(Fig. 2)", ". ", "? ", "\n", "\n \n", "\u2028", "é"]
    )
    | st.text(max_size=20)
)


@given(SENTENCES.map("".join))
def test_nothing_is_lost_but_white_space(text):
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


def test_nothing_gives_no_sentence():
    assert split_sentences("") == split_sentences(" \n\u3000\n ") == []


def test_a_long_paragraph_is_cut_between_sentences():
    sentences = [f"Patient {n} of the study did well." for n in range(5_000)]
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize("unit", ["(X et al. ", 'foo." and ', "x", "x. ", "((("])
def test_time_grows_with_the_length_and_not_with_its_square(unit):
    started = time.monotonic()
    split_sentences(unit * (40_000 // len(unit)))
    assert time.monotonic() - started < 20


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_boundaries_of_real_abstracts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from benchmarks.sentences import bc5cdr, measure

    texts = list(bc5cdr(Path(os.environ["BERT_PIPELINE_DATA"], "blurb")))
    assert len(texts) == 2 * 1500, "a title and an abstract for each document of BC5CDR"
    assert measure(split_sentences, texts)["f1"] > 0.995
