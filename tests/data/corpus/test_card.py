"""The data card: correct figures, safe HTML and Markdown, exact counts."""

import base64
import copy
import io
import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bert_pipeline.data.corpus.card import PAGE, TEXT, card_in_markdown, heaps_exponent, write_data_card
from bert_pipeline.data.corpus.facts import WORD, vocabulary_growth

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)> </details> & | [a](http://evil.example) ````"
FACTS = {
    "train_documents": 1_234_000,
    "heldout_documents": 567,
    "train_sentences": 12_340_000,
    "heldout_sentences": 5_670,
    "train_words": 250_000_000,
    "heldout_words": 120_000,
    "rejected_documents": 3,
    "rejected_by_reason": {"no text": 3},
    "sentences_per_document_histogram": {"edges": [1, 2, 3, 4], "counts": [5, 7, 9]},
    "words_per_document_histogram": {"edges": [64, 91, 128, 181, 256, 362], "counts": [1, 2, 5, 3, 1]},
    "example": "A sentence.",
    "files": 12,
    "source_bytes": 4_200_000_000,
    "records": 1_234_567 + 3 + 1_000,
    "dropped_documents": 1_000,
    "dropped_by_reason": {"duplicate text": 10, "shorter than corpus.min_words": 990},
    "cleaned_by_rule": {"copyright": 77},
    "documents_by_year": {"2018": 400_000, "1998": 2, "2020": 834_000},
    "documents_by_journal": {"Gut": 20, "Cell | <b>Press</b>": 30},
    "cut_off": "2026-01-05",
    "sources_fingerprint": "0123456789abcdef",
    "vocabulary_growth": {"words": [100, 200, 400, 800], "distinct": [50, 75, 110, 160]},
}
SAMPLES = [("first", ["One sentence.", "Another."]), (HOSTILE, [HOSTILE, "```", "x" * 5_000])]


class Page(HTMLParser):
    """The elements with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [] if tag in ("meta", "img") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("card")
    write_data_card(out, FACTS, SAMPLES)
    assert sorted(path.name for path in out.iterdir()) == sorted([PAGE, TEXT])
    return out


@pytest.fixture(scope="module")
def page(written):
    return Page((written / PAGE).read_text(encoding="utf-8"))


def test_both_cards_show_the_numbers_with_units(written, page):
    text = (written / TEXT).read_text(encoding="utf-8")
    for number in ("1,234,567", "250,120,000", "4.2 GB", "2026-01-05", "0123456789abcdef", "copyright", "0.56"):
        assert number in text and number in page.text, number
    for glance in ("1.23 million", "250 million", "99.9%", "in 12 files"):
        assert glance in page.text
    assert "1,235,570 records = 1,234,567 documents + 1,000 dropped + 3 rejected" in page.text
    assert "NOT accounted for" not in text
    assert "167 documents bear no date" not in text and "From 1998 to 2020; 565 documents bear no date" in text
    reasons = [text.index(reason) for reason in ("kept", "shorter than corpus", "duplicate text", "rejected: no text")]
    assert reasons == sorted(reasons), "the most frequent reason comes first"


def test_the_card_says_how_many_records_are_unaccounted_for(tmp_path):
    write_data_card(tmp_path, FACTS | {"records": FACTS["records"] + 5}, [])
    assert "5 records are NOT accounted for" in (tmp_path / TEXT).read_text()


def test_the_page_embeds_its_pictures_and_loads_nothing(page):
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 4
    for source in sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
        assert image.format == "PNG" and image.width > 300
    assert not {"script", "link", "iframe", "a", "object"} & {tag for tag, _ in page.elements}
    [policy] = [each for tag, each in page.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")


def test_html_in_a_document_is_shown_and_never_executed(page):
    assert page.open == [], "every element is closed in its place"
    assert page.text.count(HOSTILE) == 2, "as the id and as the text"
    assert "Cell | <b>Press</b>" in page.text
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert "x" * 1_000 in page.text and "x" * 2_000 not in page.text, "a long text is cut"


def test_markdown_in_a_document_is_escaped(written):
    text = (written / TEXT).read_text(encoding="utf-8")
    assert r"| Cell \| \<b\>Press\</b\> | 30 |" in text
    assert r"### \<script\>alert(1)\</script\>\<img src=x onerror=alert(1)\>" in text
    fences = re.findall(r"^`{3,}(?=text$)", text, re.MULTILINE)
    assert fences == ["```", "`````"], "longer than any that the text holds"
    assert text.endswith(f"\n{fences[-1]}\n")


def test_the_hub_can_parse_the_header(written):
    card = DatasetCard((written / TEXT).read_text(encoding="utf-8"))
    assert card.data.size_categories == ["1M<n<10M"] and card.data.task_categories == ["fill-mask"]
    assert card.text.lstrip().startswith("# A corpus of 1,234,567 documents")


@pytest.mark.parametrize(
    ("documents", "category"),
    [(4, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (38_000_000, "10M<n<100M")],
)
def test_the_size_category_is_one_of_the_hub(documents, category, tmp_path):
    write_data_card(tmp_path, FACTS | {"train_documents": documents, "heldout_documents": 0}, [])
    assert DatasetCard.load(tmp_path / TEXT).data.size_categories == [category]


def test_sections_without_facts_are_omitted(tmp_path):
    """For example for the generated sample, and for text files without dates."""
    nothing = {"files": 0, "source_bytes": 0, "cut_off": "", "sources_fingerprint": "", "dropped_documents": 0}
    nothing |= {name: {} for name in ("dropped_by_reason", "cleaned_by_rule", "documents_by_year")}
    nothing |= {"documents_by_journal": {}, "vocabulary_growth": {"words": [], "distinct": []}}
    write_data_card(tmp_path, FACTS | nothing, [])
    text, page = (tmp_path / TEXT).read_text(), (tmp_path / PAGE).read_text()
    assert "Generated text." in text
    for title in ("Dates", "Journals", "Cleaning", "Vocabulary", "Samples", "cut-off", "dropped.parquet"):
        assert title not in text and title not in page


def test_the_card_for_dagster_embeds_its_pictures_and_stays_small():
    facts = copy.deepcopy(FACTS)
    facts["documents_by_year"] = {str(year): year % 37 * 1000 for year in range(1780, 2027)}
    facts["documents_by_journal"] = {f"Journal of the {n}th Society of Something Long": n for n in range(20)}
    shown = card_in_markdown(facts)
    assert shown.count("](data:image/png;base64,") == 4 and "Samples" not in shown
    assert len(shown) < 100_000, "what Dagster's database should hold"


def test_the_page_is_reproducible(written, tmp_path):
    write_data_card(tmp_path, FACTS, SAMPLES)
    assert (tmp_path / PAGE).read_bytes() == (written / PAGE).read_bytes()


# Vocabulary growth


def words_in(texts: list[list[str]]) -> list[str]:
    return [word for sentences in texts for sentence in sentences for word in WORD.findall(sentence.lower())]


@given(
    st.lists(st.lists(st.text("abcdeéΣİσ_ .,'-\n\u2003", max_size=400), max_size=4), max_size=12),
    st.sampled_from([1, 99, 100, 141, 150, 400, 10_000]),
)
def test_growth_counts_the_distinct_words_of_each_prefix(texts, max_words):
    batches = [pa.array(sentences, pa.string()) for sentences in texts]
    growth, words = vocabulary_growth(batches, max_words), words_in(texts)
    assert growth["words"] == sorted(set(growth["words"]))
    assert [len(set(words[:count])) for count in growth["words"]] == growth["distinct"]
    assert growth["words"][-1:] == [min(len(words), max_words)][: len(words)]


def test_growth_is_counted_at_each_half_octave_and_stops_reading():
    def endless():
        number = 0
        while True:
            yield pa.array([" ".join(f"w{n % 5000}" for n in range(number, number + 333)), ""])
            number += 333

    growth = vocabulary_growth(endless())
    assert len(growth["words"]) == 26 and growth["words"][:4] == [100, 141, 200, 283]
    assert growth["words"][-1] == 500_000 and growth["distinct"] == [min(each, 5000) for each in growth["words"]]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Patients (n = 12), patients; PATIENTS.", ["patients", "n", "12", "patients", "patients"]),
        ("IL-2 and p<0.05, β-blockers: “5-HT”!", ["il-2", "and", "p<0.05", "β-blockers", "5-ht"]),
        ("... -- ()", []),
    ],
)
def test_punctuation_around_a_word_is_not_part_of_it(sentence, words):
    assert words_in([[sentence]]) == words


def test_the_exponent_of_heaps_law():
    words = [100 * 2**n for n in range(10)]
    assert heaps_exponent({"words": words, "distinct": [round(40 * each**0.5) for each in words]}) == pytest.approx(
        0.5, abs=1e-3
    )
    assert heaps_exponent({"words": words, "distinct": words}) == pytest.approx(1)
    assert heaps_exponent({"words": words[:2], "distinct": words[:2]}) is None
