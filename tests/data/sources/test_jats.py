"""JATS articles: extracted text, ids, dates and retractions."""

import gzip
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from bert_pipeline.data.corpus.sentences import split_sentences
from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.folders import find_files
from bert_pipeline.data.sources.jats import MAX_BYTES, Article, read_article
from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError

DOCTYPE = (
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.0 20120330//EN"'
    ' "JATS-archivearticle1.dtd">'
)
FIELDS = ("title", "abstract", "body")
META = """
<article-id pub-id-type="pmid">11</article-id><article-id pub-id-type="pmc">22</article-id>
<article-id pub-id-type="doi">10.1/ABC</article-id>
<title-group><article-title>On <italic>mice</italic><xref ref-type="fn" rid="f">*</xref></article-title></title-group>
<pub-date pub-type="ppub"><month>3</month><year>2013</year></pub-date>
<pub-date pub-type="epub"><day>12</day><month>11</month><year>2012</year></pub-date>
<abstract><sec><title>Aim</title><p>To know.</p></sec><sec><title>Result</title><p>Known.</p></sec></abstract>
"""


def article(body: str = "<p>Text.</p>", meta: str = META, attributes: str = "", doctype: str = DOCTYPE) -> bytes:
    return (
        f'{doctype}<article xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML"'
        f" {attributes}><front><journal-meta><journal-title-group><journal-title>J. Mice</journal-title>"
        f"</journal-title-group></journal-meta><article-meta>{meta}</article-meta></front><body>{body}</body>"
        "<back><ack><p>Thanks.</p></ack><ref-list><ref><mixed-citation>Old.</mixed-citation></ref></ref-list></back>"
        "<floats-group><fig><caption><p>Floating.</p></caption></fig></floats-group>"
        "<sub-article><front-stub/><body><p>Reviewed.</p></body></sub-article></article>"
    ).encode()


def body_of(body: str, section_titles: bool = False) -> tuple[str, ...]:
    found = read_article(article(body), section_titles)
    assert isinstance(found, Article), found
    return found.body


def cite(*texts: str) -> list[str]:
    return [f'<xref ref-type="bibr" rid="r">{text}</xref>' for text in texts]


def read(path: Path, **options) -> list[Document | Rejection]:
    return list(read_documents(find_files(str(path)), FIELDS, **options))


def test_an_article_is_a_document_with_a_text_for_each_paragraph(tmp_path):
    (tmp_path / "a.nxml").write_bytes(article("<sec><title>Methods</title><p>One.</p><p>Two.</p></sec>"))
    expected = Document(
        "PMC22",
        ("On mice", "To know.", "Known.", "One.", "Two."),
        "a.nxml",
        1,
        date="2012-11-12",
        journal="J. Mice",
    )
    assert read(tmp_path) == [expected]
    [titled] = read(tmp_path, section_titles=True)
    assert titled.texts == ("On mice", "Aim", "To know.", "Result", "Known.", "Methods", "One.", "Two.")
    [body_alone] = read_documents(find_files(str(tmp_path)), ("body",), "id")
    assert (body_alone.document_id, body_alone.texts) == ("PMC22", ("One.", "Two."))


def test_an_article_keeps_its_own_id(tmp_path):
    for name in ("a.nxml", "b.xml", "c.nxml.gz"):
        data = article()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = [(each.document_id, each.source) for each in read(tmp_path)]
    assert found == [("PMC22", "a.nxml"), ("PMC22", "b.xml"), ("PMC22", "c.nxml.gz")]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"pmc": "22", "pmid": "11"}, "PMC22"),
        ({"pmc": "PMC22"}, "PMC22"),
        ({"pmcid": "PMC22", "pmcaid": "9"}, "PMC22"),
        ({"pmid": "11", "doi": "10.1/A"}, "11"),
        ({"doi": "10.1/A", "publisher-id": "x"}, "10.1/a"),
        ({}, "a.nxml:1"),
    ],
)
def test_the_id_is_the_pmcid_or_pmid_or_doi_or_file_and_number(tmp_path, ids, expected):
    meta = "".join(f'<article-id pub-id-type="{kind}">{each}</article-id>' for kind, each in ids.items())
    (tmp_path / "a.nxml").write_bytes(article(meta=meta))
    assert read(tmp_path)[0].document_id == expected


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        ("<pub-date><year>2012</year></pub-date>", "2012"),
        ("<pub-date><month>03</month><year>2012</year></pub-date>", "2012-03"),
        ("<pub-date><day>7</day><month>March</month><year>2012</year></pub-date>", "2012-03-07"),
        ("<pub-date><season>Spring</season><year>2012</year></pub-date>", "2012"),
        ("<pub-date><day>31</day><month>2</month><year>2012</year></pub-date>", "2012-02"),
        ("<pub-date><day>1</day><month>13</month><year>2012</year></pub-date>", "2012"),
        ("<pub-date><day>1</day><year>2012</year></pub-date>", "2012"),
        ("<pub-date><year>12</year></pub-date>", ""),
        ("<pub-date><year>0000</year></pub-date>", ""),
        ('<pub-date iso-8601-date="2012-03-07"/>', "2012-03-07"),
        ('<pub-date iso-8601-date="soon"/>', ""),
        ("<pub-date><year>2012</year></pub-date><pub-date><month>2</month><year>2012</year></pub-date>", "2012-02"),
        ("<pub-date><year>2012</year></pub-date><pub-date><month>2</month><year>2013</year></pub-date>", "2012"),
        ("", ""),
    ],
)
def test_the_date_is_the_earliest_and_as_precise_as_known(dates, expected):
    assert read_article(article(meta=dates)).date == expected


def test_retractions_are_read_from_notices_and_retracted_articles():
    notice = """
      <related-article related-article-type="retracted-article" ext-link-type="pmc" xlink:href="PMC7"/>
      <related-article related-article-type="retracted-article" ext-link-type="pubmed" xlink:href="8"/>
      <related-article related-article-type="retracted-article" ext-link-type="doi" xlink:href="10.1/X"/>
      <related-article related-article-type="retracted-article" ext-link-type="uri" xlink:href="https://doi.org/10.1/y"/>
      <related-article related-article-type="corrected-article" ext-link-type="pmc" xlink:href="PMC9"/>"""
    found = read_article(article(meta=notice, attributes='article-type="retraction"'))
    assert (found.retracted, found.retracts) == (False, ("PMC7", "8", "10.1/x", "10.1/y"))
    gone = '<related-article related-article-type="retraction-forward" ext-link-type="pmc" xlink:href="PMC9"/>'
    found = read_article(article(meta=gone))
    assert (found.retracted, found.retracts) == (True, ())


def test_only_the_articles_own_title_and_abstract_are_read():
    meta = """<title-group><article-title>Head</article-title><subtitle>Tail</subtitle><trans-title-group>
        <trans-title>Kopf</trans-title></trans-title-group></title-group>
        <related-article><article-title>Another</article-title></related-article>
        <abstract abstract-type="graphical"><p>Picture.</p></abstract>
        <abstract><title>Abstract</title><p>Own.</p></abstract><abstract><p>Second.</p></abstract>
        <trans-abstract xml:lang="de"><p>Fremd.</p></trans-abstract>"""
    found = read_article(article(meta=meta), section_titles=True)
    assert (found.title, found.abstract) == (("Head: Tail",), ("Own.",))


def test_elements_without_running_text_are_removed_and_the_text_around_them_is_kept():
    left_out = """<table-wrap><caption><p>no</p></caption><table><tr><td>no</td></tr></table></table-wrap>
        <fig><label>no</label><caption><title>no</title><p>no</p></caption></fig>
        <disp-formula><mml:math><mml:mi>no</mml:mi></mml:math></disp-formula><fn><p>no</p></fn>
        <supplementary-material><caption><p>no</p></caption></supplementary-material>
        <preformat>no</preformat><graphic><alt-text>no</alt-text></graphic><!-- no --><?no no?>"""
    body = f"""<p>Before {left_out} after.</p>{left_out}
        <sec sec-type="supplementary-material"><title>More</title><p>no</p></sec>
        <sec><title>Authors’ contributions</title><p>no</p><sec><title>x</title><p>no</p></sec></sec>
        <sec><title>Sum</title><label>1</label><p>End.</p></sec>"""
    assert body_of(body, section_titles=True) == ("Before after.", "Sum", "End.")
    data = article()
    for element in (b"floats-group", b"back", b"sub-article"):
        assert b"<" + element in data, "the test of a complete article showed no text of these"


def test_lists_boxes_quotes_and_statements_are_text_and_paragraphs_stay_apart():
    body = """<p>Three: <list><list-item><label>a</label><p>one</p></list-item><list-item><p>two</p></list-item></list>
        and so on.</p><boxed-text><caption><title>no</title></caption><p>Boxed.</p></boxed-text>
        <disp-quote><p>Quoted.</p><attrib>no</attrib></disp-quote><statement><p>Stated.</p></statement>
        <def-list><def-item><term>IL</term><def><p>interleukin</p></def></def-item></def-list>
        <verse-group><verse-line>Rose is</verse-line><verse-line>a rose</verse-line></verse-group>"""
    found = body_of(body)
    assert found == (
        *("Three:", "one", "two", "and so on.", "Boxed.", "Quoted.", "Stated."),
        *("IL", "interleukin", "Rose is", "a rose"),
    )
    [document] = [Document("x", body_of("<p>It went on and</p><p>on and on.</p>"), "x")]
    assert [split_sentences(text) for text in document.texts] == [["It went on and"], ["on and on."]]


def test_inline_markup_is_removed_and_spaces_are_single():
    text = (
        "CO<sub>2</sub> at\n\t10<sup>-5</sup>\u00a0M,<break/><italic>E. coli</italic> <named-content>x</named-content>"
    )
    assert body_of(f"<p>{text}</p>") == ("CO2 at 10-5 M, E. coli x",)


ONE, TWO, FOUR = cite("1", "2", "4")
B1, B2, B4 = cite("[1]", "[2]", "[4]")
SMITH, JONES, YEAR, LATER = cite("Smith, 2010", "Jones <italic>et al</italic>, 2011", "2010", "2011b")
NAMED, POSSESSIVE = cite("Aureli et al. (2008)", "Uhl et al. 2014")

[ODD] = cite(f"Odd <p>paragraph</p> {ONE} <inline-formula/> {NAMED}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"It is so [{ONE}].", "It is so."),
        (f"It is so [{ONE}, {TWO}–{FOUR}], and so.", "It is so, and so."),
        (f"It is so [{ONE},{TWO}, 3, {FOUR}] here.", "It is so here."),
        (f"It is so {B1}, {B2}–{B4}. Next", "It is so. Next"),
        (f"It is so {B1} and {B2} here.", "It is so here."),
        (f"It is so ({ONE},{TWO}); so", "It is so; so"),
        (f"It is so.<sup>{ONE},{TWO}-{FOUR}</sup> Next", "It is so. Next"),
        (f"It is so<sup>{ONE},2,{FOUR}</sup>, so", "It is so, so"),
        (f"It is so{cite('<sup>1</sup>')[0]}<sup>,</sup>{cite('<sup>2</sup>')[0]} here", "It is so here"),
        (f"so <sup>[{ONE}]</sup>.", "so."),
        (f"It is so.{B1}. Next", "It is so. Next"),
        (f"a, {ONE}, b", "a, b"),
        (f"It is so ({SMITH}; {JONES}).", "It is so."),
        (f"It is so (see {SMITH}, and {JONES} for review).", "It is so."),
        (f"It is so (reviewed in ref. {FOUR}).", "It is so."),
        (f"It is so (e.g., {SMITH}; <italic>cf.</italic> {JONES}).", "It is so."),
        (f"It is so (Smith et al. {YEAR}; de Boer and Müller {LATER}, {YEAR}).", "It is so."),
        (f"Smith et al. ({YEAR}) said", "Smith et al. said"),
        (f"Smith [{ONE}] said", "Smith said"),
        (f"mice (n = 5; {SMITH}) ran", "mice (n = 5) ran"),
        (f"mice ({SMITH}; n = 5) ran", "mice (n = 5) ran"),
        (f"mice (n = 5 {B1}, six rats) ran", "mice (n = 5, six rats) ran"),
        (f"geese (greylag, {SMITH}; barnacle, {JONES})", "geese (greylag; barnacle)"),
        (f"line 9 (as made in {JONES}) grew", "line 9 (as made in Jones et al) grew"),
        (f"is common, ({SMITH}). Next", "is common. Next"),
        ("take x, <inline-formula>no</inline-formula>, y", "take x, y"),
        (f"IL-6 (IL {ONE}) rose", "IL-6 (IL) rose"),
        (f"the frame of {NAMED} is", "the frame of Aureli et al. is"),
        (f"the data of {POSSESSIVE}.", "the data of Uhl et al."),
        (f"(see the review by {NAMED} (and others))", "(see the review by Aureli et al. (and others))"),
        (f"{ONE} Begins and ends {TWO}", "Begins and ends"),
        (f"before {ONE}after", "before after"),
        ('as in (<xref ref-type="fig" rid="f">Fig. 1</xref>)', "as in (Fig. 1)"),
        ('so<xref ref-type="table-fn" rid="f">a</xref>.', "so."),
        (f'see <xref ref-type="table" rid="t">Table 2</xref> {B1}', "see Table 2"),
        ("value (<inline-formula><tex-math>no</tex-math></inline-formula>), x", "value, x"),
        ("with <inline-formula>no</inline-formula>, or <mml:math><mml:mi>no</mml:mi></mml:math> here", "with, or here"),
        ("f() of [ ] is x<sup>2</sup> (2010) [3]", "f() of [ ] is x2 (2010) [3]"),
    ],
)
def test_citations_are_removed_with_the_brackets_and_words_around_them(text, expected):
    assert body_of(f"<p>{text}</p>") == (expected,)


@given(
    st.lists(st.sampled_from([*"ab ,;.()[]–12", "and ", "see ", ONE, B1, SMITH, YEAR, NAMED, ODD, "<sup>", "</sup>"]))
)
def test_no_mark_is_left_in_any_text(pieces):
    depth, text = 0, ""
    for piece in pieces:
        depth += {"<sup>": 1, "</sup>": -1}.get(piece, 0)
        if depth < 0:
            depth, piece = 0, ""
        text += piece
    for found in body_of(f"<p>{text}{'</sup>' * depth}</p>"):
        assert found.isprintable() and found == " ".join(found.split())


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=60))
def test_text_without_markup_is_unchanged(text):
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert body_of(f"<p>{escaped}</p>") == ((" ".join(text.split()),) if text.split() else ())


def test_named_characters_follow_html():
    found = body_of("<p>&alpha;&nbsp;&plusmn; &le;&mdash;&eacute;</p>")
    assert found == ("α ± ≤—é",)


@pytest.mark.parametrize(
    ("data", "reason", "excerpt"),
    [
        (article("<p>&nosuch;</p>"), "entity that HTML does not know", "&nosuch;"),
        (article("<p>&x;</p>", doctype='<!DOCTYPE article [<!ENTITY x "own">]>'), "entity that HTML", "&x;"),
        (article("<p>&beta;</p>", doctype='<!DOCTYPE article [<!ENTITY beta "own">]>'), "entity that HTML", "&beta;"),
        (article("<p>&x;</p>", doctype='<!DOCTYPE article [<!ENTITY x SYSTEM "file:///etc/hostname">]>'), "HTML", "x"),
        (article("<p>&alpha;</p>", doctype=""), "not well-formed", "alpha"),
        (article("<p>one<p></p>"), "not well-formed", "mismatch"),
        (article("<p>a\0b</p>"), "not well-formed", "range , line 8"),
        (article("<p>a&#1;b</p>"), "not well-formed", "xmlChar value 1"),
        (article("<p>&#xD83D;</p>"), "not well-formed", "55357"),
        (article("<p>café</p>").replace("é".encode(), b"\xe9"), "not well-formed", "encoding"),
        (article("<i>" * 10_000 + "</i>" * 10_000), "not well-formed", "depth"),
        (b"<pmc-articleset><article/></pmc-articleset>", "root element is not <article>", "<pmc-articleset>"),
        (b"<article><body><p>x</p></body></article>", "without front/article-meta", "<article>"),
        (b"<article>" + b" " * MAX_BYTES, "larger than 16 MiB", "<article>"),
    ],
)
def test_a_broken_article_gives_a_fault_with_its_reason(data, reason, excerpt):
    fault = read_article(data)
    assert isinstance(fault, Fault)
    assert reason in fault.reason and excerpt in fault.excerpt


def test_expanding_entities_are_refused():
    laughs = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE article [<!ENTITY e0 "ha">{laughs}]>'
    assert isinstance(read_article(article("<p>&e9;</p>", doctype=bomb)), Fault)
    assert isinstance(read_article(article("<p x='&e9;'/>", doctype=bomb)), Fault)


def test_no_file_beside_the_article_is_read(tmp_path, monkeypatch):
    """The DTD would define &own; if it were read."""
    (tmp_path / "own.dtd").write_text('<!ENTITY own "fetched">')
    monkeypatch.chdir(tmp_path)
    external = f'<!DOCTYPE article SYSTEM "{tmp_path}/own.dtd">'
    assert read_article(article("<p>&own;</p>", doctype=external)).excerpt == "&own;"
    parameter = f'<!DOCTYPE article [<!ENTITY % more SYSTEM "{tmp_path}/own.dtd"> %more;]>'
    assert read_article(article("<p>&own;</p>", doctype=parameter)).excerpt == "&own;"


def test_other_encodings_and_a_namespace_make_no_difference():
    expected = read_article(article("<p>é β</p>"))
    assert expected.body == ("é β",)
    text = article("<p>é β</p>").decode()
    assert read_article(('<?xml version="1.0" encoding="UTF-16"?>' + text).encode("utf-16")) == expected
    assert read_article(b"\xef\xbb\xbf" + text.encode()) == expected
    assert read_article(text.replace("<article ", '<article xmlns="https://jats.nlm.nih.gov/ns" ').encode()) == expected


@pytest.mark.parametrize("suffix", [".nxml", ".xml.gz"])
def test_a_malformed_article_is_rejected_and_a_cut_one_stops_the_reading(tmp_path, suffix):
    path, pack = tmp_path / f"a{suffix}", gzip.compress if suffix.endswith("gz") else bytes
    path.write_bytes(pack(article("<p>one<p></p>")))
    [rejection] = read(path)
    assert (rejection.record, rejection.reason) == ("article 1", "article is not well-formed XML")
    whole = article("<p>Many words.</p>" * 100)
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(pack(whole[: int(len(whole) * share)]))
        with pytest.raises(SourceError, match=r"cut short or corrupt after article 0: .*remedy: copy"):
            read(path)


def test_unknown_fields_of_an_article_are_refused(tmp_path):
    (tmp_path / "a.nxml").write_bytes(article())
    with pytest.raises(SourceError, match=r"a\.nxml: no field text; the fields are title, abstract, body; remedy"):
        list(read_documents(find_files(str(tmp_path)), ("text",)))


def test_an_article_without_text_is_rejected_and_one_without_a_body_is_not(tmp_path):
    (tmp_path / "a.nxml").write_bytes(article("", meta='<article-id pub-id-type="pmc">5</article-id>'))
    (tmp_path / "b.nxml").write_bytes(article(""))
    rejection, document = read(tmp_path)
    assert (rejection.reason, rejection.excerpt) == ("document without text", "PMC5")
    assert document.texts == ("On mice", "To know.", "Known.")


REAL = sorted(Path(os.environ.get("BERT_PIPELINE_DATA", "nowhere"), "jats-xml").glob("*.nxml"))


@pytest.mark.skipif(not REAL, reason="BERT_PIPELINE_DATA holds no jats-xml")
def test_real_articles_keep_all_words_except_citations_and_floats():
    """Compared with an oracle: all paragraphs outside of tables, figures and supplements, without citations."""
    floats = "|".join(f"ancestor::{each}" for each in ("table-wrap", "fig", "supplementary-material", "caption"))
    for path in REAL:
        found = read_article(path.read_bytes())
        assert re.fullmatch(r"PMC\d+", found.article_id) and re.fullmatch(r"\d{4}-\d\d-\d\d", found.date)
        root = etree.parse(path, etree.XMLParser(load_dtd=False, no_network=True)).getroot()
        for element in root.xpath(f"//xref[@ref-type='bibr']|//p//*[{floats}]"):
            element.text, _ = "", [element.remove(child) for child in element]
        kept = root.xpath(f"body//p[not({floats}|ancestor::sec[title = 'funding' or title = 'disclosure'])]")
        words = [word for each in kept for word in re.findall(r"\w+", "".join(each.itertext()))]
        assert re.findall(r"\w+", " ".join(found.body)) == words
        assert not re.search(r"[(\[]\s*[,;)\]]|\s[,;)\]]|\[[\d,–\- ]+\]|et al\.?,? \d{4}\b", " ".join(found.body))
