"""Sets of articles: efetch's <pmc-articleset>, OAI-PMH responses, and any other document that holds articles."""

import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.data.sources import article_sets
from bert_pipeline.data.sources.article_sets import read_articles, root_element
from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.folders import find_files
from bert_pipeline.data.sources.jats import MAX_BYTES, read_article
from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError

DOCTYPE = '<!DOCTYPE pmc-articleset PUBLIC "-//NLM//DTD ARTICLE SET 2.0//EN" "https://dtd.nlm.nih.gov/articleset.dtd">'


def article(number: int, text: str = "Text.", attributes: str = "", prefix: str = "") -> str:
    ids = f'<article-id pub-id-type="pmc">{number}</article-id>'
    plain = (
        f"<article {attributes}><front><article-meta>{ids}</article-meta></front><body><p>{text}</p></body>"
        "<sub-article><body><p>Reviewed.</p></body></sub-article></article>"
    )
    return plain.replace("<", f"<{prefix}:").replace(f"<{prefix}:/", f"</{prefix}:") if prefix else plain


def pmc_set(*articles: str, doctype: str = DOCTYPE) -> str:
    return f'<?xml version="1.0" ?>\n{doctype}\n<pmc-articleset>{"".join(articles)}</pmc-articleset>\n'


def oai(*articles: str, namespaces: str = "") -> str:
    records = "".join(
        f"<record><header><identifier>oai:{n}</identifier></header><metadata>{each}</metadata></record>"
        for n, each in enumerate(articles)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!-- <article> in a comment -->'
        f'<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/" {namespaces}><responseDate>2026</responseDate>'
        f"<ListRecords>{records}<resumptionToken>x</resumptionToken></ListRecords></OAI-PMH>"
    )


def read(path: Path, data: str | bytes) -> list[Document | Rejection]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_documents(find_files(str(path)), ("body",)))


def ids(documents: list) -> list[str]:
    return [each.document_id for each in documents]


NAMESPACE = 'xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" xmlns:xlink="http://www.w3.org/1999/xlink"'


@pytest.mark.parametrize("name", ["a.xml", "a.nxml", "a.xml.gz"])
def test_each_article_of_a_pmc_set_is_a_document(tmp_path, name):
    data = pmc_set(*(article(number, f"Text {number} &alpha;.") for number in range(50))).encode()
    documents = read(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert [(each.document_id, each.texts, each.number) for each in documents] == [
        (f"PMC{number}", (f"Text {number} α.",), number + 1) for number in range(50)
    ]


@pytest.mark.parametrize("prefix", ["", "jats"])
def test_each_article_of_an_oai_response_is_a_document(tmp_path, prefix):
    text = '<ext-link xlink:href="x">Linked</ext-link>.'
    if prefix:
        articles = [article(1, "Linked.", prefix=prefix), article(2, "Linked.", prefix=prefix)]
        data = oai(*articles, namespaces='xmlns:jats="https://jats.nlm.nih.gov/"')
    else:
        data = oai(article(1, text, NAMESPACE), article(2, text, NAMESPACE))
    documents = read(tmp_path / "a.xml", data)
    assert [(each.document_id, each.texts) for each in documents] == [("PMC1", ("Linked.",)), ("PMC2", ("Linked.",))]


def test_prefixes_that_the_set_declares_hold_in_its_articles(tmp_path):
    data = oai(article(1, '<ext-link xlink:href="x">Linked</ext-link>.'), namespaces='xmlns:xlink="http://x"')
    assert read(tmp_path / "a.xml", data)[0].texts == ("Linked.",)


def test_a_broken_article_costs_only_itself(tmp_path):
    broken = article(2, "one<p>two"), article(3, "x" * (MAX_BYTES + 1)), article(4)[: -len("</article>")]
    documents = read(tmp_path / "a.xml", pmc_set(article(1), *broken, "<article/>", article(5)))
    assert ids([each for each in documents if isinstance(each, Document)]) == ["PMC1", "PMC5"]
    assert [(each.record, each.reason) for each in documents if isinstance(each, Rejection)] == [
        ("article 2", "article is not well-formed XML"),
        ("article 3", "article is larger than 16 MiB"),
        ("article 4", "article is not well-formed XML"),
        ("article 5", "article without front/article-meta"),
    ]


def test_a_set_that_was_cut_anywhere_stops_the_reading(tmp_path):
    whole = pmc_set(article(1), article(2, "More &beta; text."))
    for cut in range(whole.index("<pmc-articleset") + 40, whole.rindex("</pmc-articleset>") + 16, 3):
        with pytest.raises(SourceError, match=r"a\.xml: cut short or corrupt after article [0-2]: .*; remedy: copy"):
            read(tmp_path / "a.xml", whole[:cut])


def test_a_document_without_articles_is_rejected_with_its_root(tmp_path):
    for data in ("<html><p>An <b>article</b></p></html>", "<html/>"):
        [rejection] = read(tmp_path / "a.xml", data)
        assert rejection.reason == "root element is not <article>, and no <article> is in it"
        assert rejection.excerpt == "<html>"


@given(
    st.lists(st.sampled_from(["Text.", "α β", "x" * 300, "&alpha;", "<bold>b</bold>", "&nosuch;"]), min_size=1),
    st.integers(1, 400),
)
def test_articles_are_the_same_in_blocks_of_any_size(texts, block):
    articles = [article(number, text) for number, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(article_sets, "BLOCK", block)
        patch.setattr(article_sets, "LONGEST_TAG", 64)
        found = list(read_articles(io.BytesIO(pmc_set(*articles).encode()), False))
    head = DOCTYPE.replace("pmc-articleset", "article")
    expected = [read_article((head + each).encode()) for each in articles]
    assert [each if not isinstance(each, Fault) else each.reason for each in found] == [
        each if not isinstance(each, Fault) else each.reason for each in expected
    ]


def test_memory_holds_one_article_at_a_time():
    data = pmc_set(*(article(number, "word " * 2_000) for number in range(600))).encode()
    tracemalloc.start()
    assert sum(1 for _ in read_articles(io.BytesIO(data), False)) == 600
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(data) * 0.9, "blocks of 1 MiB"


@pytest.mark.parametrize(
    ("beginning", "root"),
    [
        (b"\xef\xbb\xbf<?xml version='1.0'?><!-- <a> --><?x <b>?>\n<c:article x='1'>", "article"),
        (b"<!DOCTYPE set [<!ENTITY x '<y>'>] ><set>", "set"),
        (b'<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//>" "x"><PubmedArticleSet>', "PubmedArticleSet"),
        (b"plain text", ""),
        (b"<" * 50_000, ""),
        (b"<!--" * 10_000, ""),
    ],
)
def test_the_root_element_is_found(beginning, root):
    assert root_element(beginning) == root
