"""PubMed files: every field against an oracle, records across window boundaries, and the choice of files."""

import gzip
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pubmed_files import write_pubmed_files
from bert_pipeline.data.sources.pubmed import records as pubmed_records
from bert_pipeline.data.sources.pubmed.reader import Citation, Deletion, pubmed_files, read_citations, read_pubmed
from bert_pipeline.data.sources.records import Rejection, SourceError

HEAD = b"""<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2019//EN" \
"https://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_190101.dtd">
<PubmedArticleSet>
"""
TAIL = b"</PubmedArticleSet>\n"
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def article(
    pmid: object = 1, *, article: str = "<ArticleTitle>T.</ArticleTitle>", more: str = "", data: str = ""
) -> str:
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="1">{pmid}</PMID><Article>{article}</Article>'
        f"{more}</MedlineCitation><PubmedData>{data}</PubmedData></PubmedArticle>"
    )


def read_bytes(path: Path, xml: bytes | str) -> list:
    path = path / "some.xml.gz"
    path.write_bytes(gzip.compress(xml if isinstance(xml, bytes) else HEAD + xml.encode() + TAIL))
    return list(read_citations(path))


def read_one(path: Path, record: str) -> Citation:
    [citation] = read_bytes(path, record)
    assert isinstance(citation, Citation), citation
    return citation


# The oracle: NLM's description with the standard library's tree, one path per field.


def words(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def literal_date(element: ET.Element | None) -> str:
    if element is None:
        return ""
    year, month, day = (words(element.find(part)) for part in ("Year", "Month", "Day"))
    if not year:
        found = re.search(r"\d{4}", words(element.find("MedlineDate")))
        return found[0] if found else ""  # spans of months only, in the generated files
    if not month:
        return year
    month = f"{MONTHS.index(month) + 1:02d}" if month in MONTHS else month
    return f"{year}-{month}-{day}" if day else f"{year}-{month}"


def literal_citation(number: int, element: ET.Element) -> dict:
    found = element.find
    doi = [words(e) for e in element.findall("MedlineCitation/Article/ELocationID") if e.get("EIdType") == "doi"]
    ids = {e.get("IdType"): words(e) for e in element.findall("PubmedData/ArticleIdList/ArticleId")}
    types = [
        (e.get("UI"), words(e)) for e in element.findall("MedlineCitation/Article/PublicationTypeList/PublicationType")
    ]
    links = [
        (e.get("RefType"), words(e.find("PMID")), int(e.find("PMID").get("Version")))
        for e in element.findall("MedlineCitation/CommentsCorrectionsList/CommentsCorrections")
    ]
    return {
        "number": number,
        "pmid": words(found("MedlineCitation/PMID")),
        "version": int(found("MedlineCitation/PMID").get("Version")),
        "title": words(found("MedlineCitation/Article/ArticleTitle")),
        "abstract": tuple(
            (e.get("Label", ""), e.get("NlmCategory", ""), words(e))
            for e in element.findall("MedlineCitation/Article/Abstract/AbstractText")
        ),
        "languages": tuple(words(e) for e in element.findall("MedlineCitation/Article/Language")),
        "journal": words(found("MedlineCitation/Article/Journal/Title")),
        "iso_abbreviation": words(found("MedlineCitation/Article/Journal/ISOAbbreviation")),
        "issn": words(found("MedlineCitation/Article/Journal/ISSN")),
        "nlm_unique_id": words(found("MedlineCitation/MedlineJournalInfo/NlmUniqueID")),
        "date": literal_date(found("MedlineCitation/Article/Journal/JournalIssue/PubDate")),
        "revised": literal_date(found("MedlineCitation/DateRevised")),
        "publication_types": tuple(types),
        "mesh": tuple(
            (
                (e.find("DescriptorName").get("UI"), words(e.find("DescriptorName"))),
                tuple((q.get("UI"), words(q)) for q in e.findall("QualifierName")),
            )
            for e in element.findall("MedlineCitation/MeshHeadingList/MeshHeading")
        ),
        "keywords": tuple(words(e) for e in element.findall("MedlineCitation/KeywordList/Keyword")),
        "links": tuple(links),
        "retracted": "D016441" in dict(types) or "RetractionIn" in [kind for kind, *_ in links],
        "doi": doi[0] if doi else ids.get("doi", ""),
        "pmc": ids.get("pmc", ""),
    }


def literal(path: Path) -> list[dict]:
    """All records as dictionaries, read by the oracle."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        found: list[dict] = []
        for element in ET.parse(file).getroot():
            if element.tag == "PubmedArticle":
                found.append(literal_citation(len(found) + 1, element))
            else:
                assert element.tag == "DeleteCitation"
                for pmid in element:
                    entry = {"number": len(found) + 1, "pmid": words(pmid), "version": int(pmid.get("Version"))}
                    found.append(entry)
    return found


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> list[Path]:
    return write_pubmed_files(tmp_path_factory.mktemp("pubmed"), 2, 700, seed=5, num_updates=2, deleted_fraction=0.02)


def test_every_field_of_generated_files_equals_the_oracle(generated):
    kinds = {Citation: 0, Deletion: 0}
    seen: dict[str, set] = {}
    for path in generated:
        ours, expected = list(read_citations(path)), literal(path)
        assert len(ours) == len(expected)
        for mine, theirs in zip(ours, expected, strict=True):
            assert mine._asdict() == theirs
            kinds[type(mine)] += 1
            for field, value in theirs.items():
                seen.setdefault(field, set()).add(value)
    assert kinds[Citation] > 2500 and kinds[Deletion] == 28
    assert all(len(values) > 1 for values in seen.values()), "a field that never varies tests nothing"
    assert {len(date) for date in seen["date"]} == {4, 7, 10}
    assert {"RetractionIn", "RetractionOf"} <= {kind for links in seen["links"] for kind, *_ in links}


def test_the_real_record_equals_the_oracle():
    path = Path(os.environ.get("BERT_PIPELINE_DATA", "."), "pubmed-xml", "pubmed-29768149.xml")
    if not path.exists():
        pytest.skip("no pubmed-xml/ in BERT_PIPELINE_DATA")
    [citation] = read_citations(path)
    assert [citation._asdict()] == literal(path)
    assert len(citation.abstract) == 4 and len(citation.mesh) == 23 and citation.date == "2018-05-17"


def test_markup_is_flattened_and_other_languages_are_skipped(tmp_path):
    citation = read_one(
        tmp_path,
        article(
            7,
            article="<Journal><Title>J.</Title></Journal><ArticleTitle>\n  Ca<sup>2+</sup> and <i>H<sub>2</sub>S</i>"
            "&#x2009;&amp;\u00a0&lt;more&gt; &amp;lt; </ArticleTitle><Abstract>"
            "<AbstractText Label='A &amp; &quot;B&quot;' NlmCategory='METHODS'>One <!-- no --><![CDATA[<two> & ]]>"
            '<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mi>x</mml:mi></mml:math></AbstractText>'
            "<AbstractText/><CopyrightInformation>Us.</CopyrightInformation></Abstract>",
            more='<OtherAbstract Language="fre"><AbstractText Label="NON">Non.</AbstractText></OtherAbstract>',
        ),
    )
    assert citation.title == "Ca2+ and H2S & <more> &lt;"
    assert citation.abstract == (('A & "B"', "METHODS", "One <two> & x"), ("", "", ""))


def test_a_book_is_read_as_a_citation(tmp_path):
    book = read_one(
        tmp_path,
        "<PubmedBookArticle><BookDocument><PMID Version='2'>20301295</PMID><ArticleIdList>"
        "<ArticleId IdType='doi'>10.1/x</ArticleId></ArticleIdList><Book><BookTitle>Reviews</BookTitle>"
        "<PubDate><Year>1993</Year></PubDate><BeginningDate><Year>1990</Year></BeginningDate></Book>"
        "<ArticleTitle>A chapter</ArticleTitle>"
        "<Language>eng</Language><AuthorList><Author/></AuthorList><Abstract><AbstractText Label='CARE'>It helps."
        "</AbstractText></Abstract><ContributionDate><Year>2001</Year></ContributionDate></BookDocument>"
        "<PubmedBookData/></PubmedBookArticle>",
    )
    assert (book.pmid, book.version, book.title, book.journal) == ("20301295", 2, "A chapter", "Reviews")
    assert (book.date, book.doi, book.abstract) == ("1993", "10.1/x", (("CARE", "", "It helps."),))


@pytest.mark.parametrize(
    ("parts", "date"),
    [
        ("<Year>2018</Year><Month>May</Month><Day>17</Day>", "2018-05-17"),
        ("<Year>2018</Year><Month>05</Month><Day>7</Day>", "2018-05-07"),
        ("<Year>2018</Year><Month>Sept.</Month>", "2018-09"),
        ("<Year>2018</Year><Season>Winter</Season>", "2018"),
        ("<Year>2018</Year><Month>Feb</Month><Day>31</Day>", "2018-02"),
        ("<Year>2019</Year><Month>Feb</Month><Day>29</Day>", "2019-02"),
        ("<Year>2020</Year><Month>Feb</Month><Day>29</Day>", "2020-02-29"),
        ("<Year>2018</Year><Month>13</Month><Day>1</Day>", "2018"),
        ("<Year>2018</Year><Month>0</Month>", "2018"),
        ("<Year>2018</Year><Day>3</Day>", "2018"),
        ("<Year>18</Year><Month>May</Month>", ""),
        ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", "1998"),
        ("<MedlineDate>1975 Jul-Aug</MedlineDate>", "1975"),
        ("<MedlineDate>1999 Jul 15-31</MedlineDate>", "1999-07"),
        ("<MedlineDate>1992 Feb 29-Mar 6</MedlineDate>", "1992"),
        ("<MedlineDate>2000 Spring</MedlineDate>", "2000"),
        ("<MedlineDate>Fall 2016</MedlineDate>", "2016"),
        ("<MedlineDate>2009 Jun 12</MedlineDate>", "2009-06-12"),
        ("<MedlineDate>unknown</MedlineDate>", ""),
        ("", ""),
    ],
)
def test_dates_are_as_precise_as_known(tmp_path, parts, date):
    issue = f"<Journal><JournalIssue><PubDate>{parts}</PubDate></JournalIssue></Journal>"
    assert read_one(tmp_path, article(article=issue)).date == date


def test_an_invalid_doi_is_ignored(tmp_path):
    record = article(
        article='<ELocationID EIdType="pii">S1</ELocationID>'
        '<ELocationID EIdType="doi" ValidYN="N">10.1/bad</ELocationID>',
        data='<ReferenceList><Reference><ArticleIdList><ArticleId IdType="doi">10.1/cited</ArticleId></ArticleIdList>'
        '</Reference></ReferenceList><ArticleIdList><ArticleId IdType="doi">10.1/good</ArticleId></ArticleIdList>',
    )
    assert read_one(tmp_path, record).doi == "10.1/good"


@pytest.mark.parametrize(
    ("kind", "types", "retracted"),
    [
        ("RetractionIn", "", True),
        ("ErratumIn", "", False),
        ("RetractionOf", '<PublicationType UI="D016440">Retraction of Publication</PublicationType>', False),
        ("CommentIn", '<PublicationType UI="D016441">Retracted Publication</PublicationType>', True),
        ("CommentIn", "<PublicationType>Retracted Publication</PublicationType>", True),
    ],
)
def test_retractions(tmp_path, kind, types, retracted):
    links = f'<CommentsCorrections RefType="{kind}"><RefSource>J.</RefSource></CommentsCorrections>'
    record = article(
        article=f"<PublicationTypeList>{types}</PublicationTypeList>",
        more=f"<CommentsCorrectionsList>{links}</CommentsCorrectionsList>",
    )
    citation = read_one(tmp_path, record)
    assert citation.retracted is retracted
    assert citation.links == ((kind, "", 1),)


def test_documents_have_the_title_first_and_labels_before_their_sections(tmp_path):
    retraction = (
        '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionOf"><PMID Version="1">55</PMID>'
        "</CommentsCorrections></CommentsCorrectionsList>"
    )
    sections = (
        '<Abstract><AbstractText Label="AIM">To see.</AbstractText><AbstractText Label="EMPTY"/>'
        '<AbstractText Label="UNLABELLED" NlmCategory="UNASSIGNED">Seen.</AbstractText></Abstract>'
    )
    records = [
        article(11, article=f"<ArticleTitle>[A [3H] title].</ArticleTitle>{sections}", more=retraction),
        article(12, article=f"<ArticleTitle>[Not Available].</ArticleTitle>{sections}"),
        article(13, article="<ArticleTitle>[3H]-thymidine in [mice].</ArticleTitle>"),
        article("none"),
        '<DeleteCitation><PMID Version="1">21</PMID><PMID Version="3">22</PMID></DeleteCitation>',
    ]
    path = tmp_path / "pubmed26n0001.xml"
    path.write_bytes(HEAD + "\n".join(records).encode() + TAIL)
    reported = 0

    def on_bytes(count: int) -> None:
        nonlocal reported
        reported += count

    first, second, third, broken, gone, gone_too = read_pubmed("name", path, on_bytes)
    assert reported == path.stat().st_size
    assert first.texts == ("A [3H] title.", "AIM: To see.", "Seen.")
    assert (first.document_id, first.source, first.number, first.retracts) == ("11", "name", 1, ("55",))
    assert second.texts == ("", "AIM: To see.", "Seen.")
    assert third.texts == ("[3H]-thymidine in [mice].",)
    assert isinstance(broken, Rejection) and broken.file == "name" and "PMID is not a number" in str(broken)
    assert (gone.document_id, gone.version, gone.deleted, gone.texts, gone.number) == ("21", 1, True, (), 5)
    assert (gone_too.document_id, gone_too.version, gone_too.number) == ("22", 3, 6)


# Cutting


TEXT = st.text(st.sampled_from("ab <>&]-\n\u00e9\u2009'\""), max_size=12)
ESCAPED = TEXT.map(lambda text: text.replace("&", "&amp;").replace("<", "&lt;").replace("]]>", "]]&gt;"))
TRICKY = st.sampled_from(
    ["</PubmedArticle>", "<PubmedArticle>", "</PubmedArticleSet>", "<DeleteCitation>", "<PMID>9</PMID>"]
)
ASIDES = st.tuples(
    st.sampled_from(["<!--{}-->", "<?note {}?>"]), TEXT.map(lambda t: re.sub("-+|>|<", " ", t)), TRICKY
).map(lambda parts: parts[0].format(parts[1] + parts[2].replace("?", "")))
CDATA = st.tuples(TEXT, TRICKY).map(lambda parts: f"<![CDATA[{parts[0].replace(']]>', '')}{parts[1]}]]>")
CONTENT = st.lists(st.one_of(ESCAPED, ASIDES, CDATA, st.sampled_from(["<i>x</i>", "<b a='>'/>", "&#956;"])), max_size=4)
LABEL = ESCAPED.map(lambda text: text.replace('"', "&quot;"))


@given(
    records=st.lists(st.tuples(CONTENT, LABEL, st.sampled_from(["", "\n", "<!-- </PubmedArticle> -->\n"])), max_size=5),
    window=st.integers(1, 400),
)
@settings(max_examples=300)
def test_the_records_do_not_depend_on_where_windows_begin(tmp_path_factory, records, window):
    texts = [
        article(n, article=f'<Abstract><AbstractText Label="{label}">{"".join(content)}</AbstractText></Abstract>')
        + after
        for n, (content, label, after) in enumerate(records, 1)
    ]
    xml = HEAD + "".join(texts).encode() + TAIL
    expected = [
        (
            words(e.find(".//PMID")),
            " ".join(e.find(".//AbstractText").get("Label").split()),
            words(e.find(".//AbstractText")),
        )
        for e in ET.fromstring(xml)
    ]
    folder = tmp_path_factory.mktemp("windows")
    with pytest.MonkeyPatch.context() as patch:
        whole = read_bytes(folder, xml)
        patch.setattr(pubmed_records, "WINDOW", window)
        patch.setattr(pubmed_records, "PACKED", max(1, window // 8))
        patch.setattr(pubmed_records, "MAX_PROLOG", len(HEAD))
        assert read_bytes(folder, xml) == whole
    assert [(c.pmid, c.abstract[0].label, c.abstract[0].text) for c in whole] == expected


@given(
    pieces=st.lists(
        st.sampled_from([*"<>/!?-[]'\"&;= a", "</i>", "<i>", "]]>", "<!--", "-->", "&lt;", "\u00e9", "\x0c", "\0"])
    )
)
@settings(max_examples=500)
def test_what_the_scanner_accepts_is_well_formed(tmp_path_factory, pieces):
    """For any text: the same citation as from a parser if the parser accepts it, a rejection if it does not."""
    record = article(1, article=f"<ArticleTitle>{''.join(pieces)}</ArticleTitle>")
    found = read_bytes(tmp_path_factory.mktemp("any"), record + article(2))
    try:
        title = words(ET.fromstring(record).find("MedlineCitation/Article/ArticleTitle"))
    except (ET.ParseError, AttributeError):
        assert any(isinstance(each, Rejection) for each in found)
    else:
        assert [each.title for each in found] == [title, "T."]
    assert found[-1].pmid == "2"


# Which files


def empty_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_files_are_ordered_by_number(tmp_path, caplog):
    empty_files(tmp_path, "updatefiles/pubmed26n10000.xml.gz", "baseline/pubmed26n9999.xml.gz", "pubmed26n9998.xml.gz")
    empty_files(tmp_path, "files.jsonl", "baseline/pubmed26n9999.xml.gz.md5")
    assert list(pubmed_files(tmp_path)) == ["pubmed26n9998.xml.gz", "pubmed26n9999.xml.gz", "pubmed26n10000.xml.gz"]
    assert not caplog.records
    (tmp_path / "baseline/pubmed26n9999.xml.gz").unlink()
    empty_files(tmp_path, "updatefiles/pubmed26n10004.xml.gz")
    assert len(pubmed_files(tmp_path)) == 3
    assert "the files with the numbers 9999, 10001-10003 are missing" in caplog.text


def test_two_years_or_two_files_of_a_number_are_refused(tmp_path):
    with pytest.raises(SourceError, match="contains no PubMed file; remedy: "):
        pubmed_files(tmp_path)
    empty_files(tmp_path / "years", "baseline/pubmed26n0001.xml.gz", "updatefiles/pubmed25n1500.xml.gz")
    with pytest.raises(SourceError, match="files of the years 25 and 26; remedy: keep the files of one year"):
        pubmed_files(tmp_path / "years")
    for twin in ("updatefiles/pubmed26n0001.xml.gz", "baseline/pubmed26n00001.xml.gz"):
        empty_files(tmp_path / twin[-12:], "baseline/pubmed26n0001.xml.gz", twin)
        with pytest.raises(SourceError, match=r"has the same number as .*; remedy: delete one"):
            pubmed_files(tmp_path / twin[-12:])


HOSTILE = [
    *(
        "PUBMED26N0002.XML.GZ",
        "Pubmed26n0002.xml.gz",
        "pubmed26n0002.xml.gz\n",
        "-pubmed26n0002.xml.gz",
        "pubmed26n002.xml.gz",
    ),
    *("pubmed26n0002.xml", "pubmed26n0002.xml.gz.part", "pubmed\u0662\u0666n0002.xml.gz", "\u202epubmed26n0002.xml.gz"),
    *("pubmed26n000002.xml.gz", " pubmed26n0002.xml.gz", "pubmed26n%2e%2e.xml.gz", "pubmed26n0002.xml.gz" + "x" * 200),
]


def test_hostile_names_and_links_out_of_the_folder_are_skipped(tmp_path, caplog):
    folder = tmp_path / "mirror"
    empty_files(folder, "pubmed26n0001.xml.gz", *HOSTILE)
    empty_files(tmp_path, "secret.xml.gz")
    (folder / "pubmed26n0003.xml.gz").symlink_to(tmp_path / "secret.xml.gz")
    (folder / "pubmed26n0004.xml.gz").mkdir()
    os.mkfifo(folder / "pubmed26n0005.xml.gz")
    assert list(pubmed_files(folder)) == ["pubmed26n0001.xml.gz"]
    assert caplog.text.count("skipping") == len(HOSTILE) + 2  # plus the link and the pipe; folders are not reported
