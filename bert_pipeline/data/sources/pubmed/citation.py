"""Turn a PubMed record into a citation with its fields, or into a list of deleted PMIDs.

NLM describes the fields at https://www.nlm.nih.gov/bsd/licensee/elements_descriptions.html. Inline markup and formulas
are flattened to their text, and each run of white space (including Unicode's) becomes a single space. Abstracts in
other languages (OtherAbstract) are skipped. A book or chapter (PubmedBookArticle) becomes a citation whose journal is
the book.
"""

import re
from calendar import monthrange
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from xml.sax.saxutils import unescape

from bert_pipeline.data.sources.pubmed.records import Record
from bert_pipeline.data.sources.pubmed.scan import (
    DATE_PARTS,
    END,
    FIELD,
    FIELDS,
    FLAG,
    MARKUP,
    NUM_COLUMNS,
    ODD_KEY,
    REFERENCES,
    SINGLE,
    START,
    UNTIDY,
)
from bert_pipeline.data.sources.records import EXCERPT_LENGTH, Fault, excerpt

CATEGORY = re.compile(rb'\sNlmCategory="([A-Z]*)"')
VALID = re.compile(rb'\sValidYN="([YN])"')
TAG = re.compile(rb'<[^<>"]*(?:"[^"]*"[^<>"]*)*>')
REFERENCE = re.compile(r"&#(\d+);|&#x([0-9A-Fa-f]+);|(&\w+;)")
QUOTES = {"&quot;": '"', "&apos;": "'"}
YEAR = re.compile(r"\b[12][0-9]{3}\b")
MEDLINE_DATE = re.compile(r"([12][0-9]{3}) ([A-Za-z]+)(?: ([0-9]{1,2})(-[0-9]{1,2})?)?")
MONTHS = {"JanFebMarAprMayJunJulAugSepOctNovDec"[3 * n : 3 * n + 3].lower(): n + 1 for n in range(12)}

_PLACE = {name: number for number, name in enumerate(FIELDS)}
_DELETE_CITATION = _PLACE["DeleteCitation"]
_PUB_DATE, _DATE_REVISED, _LINK = _PLACE["PubDate"], _PLACE["DateRevised"], _PLACE["CommentsCorrections"]
_PMID, _ABSTRACT_TEXT, _TYPE = _PLACE["PMID"], _PLACE["AbstractText"], _PLACE["PublicationType"]
_DESCRIPTOR, _QUALIFIER, _KEYWORD = _PLACE["DescriptorName"], _PLACE["QualifierName"], _PLACE["Keyword"]
_ELOCATION, _ARTICLE_ID, _LANGUAGE = _PLACE["ELocationID"], _PLACE["ArticleId"], _PLACE["Language"]
_BOOK_TITLE = _PLACE["BookTitle"]
_DATE_PARTS = [_PLACE[part] for part in DATE_PARTS]
_FIRST_DATE_PART, _FIRST_SINGLE = _PLACE[DATE_PARTS[0]], _PLACE[SINGLE[0]]


class AbstractSection(NamedTuple):
    """Abstract section. Label and category (BACKGROUND, OBJECTIVE, METHODS, RESULTS, CONCLUSIONS) may be empty."""

    label: str
    category: str
    text: str


class Term(NamedTuple):
    """A MeSH term: unique id and name."""

    ui: str
    name: str


RETRACTED = Term("D016441", "Retracted Publication")


class Heading(NamedTuple):
    descriptor: Term
    qualifiers: tuple[Term, ...]


class Link(NamedTuple):
    """CommentsCorrections: RetractionIn, RetractionOf, ErratumIn, ErratumFor, CommentIn, UpdateOf, ..."""

    kind: str
    pmid: str  # of the other citation; empty if it has none
    version: int


class Citation(NamedTuple):
    number: int  # of the record in the file, from 1; each deleted PMID counts as a record
    pmid: str
    version: int
    title: str
    abstract: tuple[AbstractSection, ...]
    languages: tuple[str, ...]  # MARC codes: eng, fre
    journal: str
    iso_abbreviation: str
    issn: str
    nlm_unique_id: str
    date: str  # of publication, as precise as known: 2018-05-17, 2018-05, 2018 or empty
    revised: str
    publication_types: tuple[Term, ...]
    mesh: tuple[Heading, ...]
    keywords: tuple[str, ...]
    links: tuple[Link, ...]
    retracted: bool
    doi: str
    pmc: str


class Deletion(NamedTuple):
    number: int
    pmid: str
    version: int


def parse_record(record: Record, number: int) -> list[Citation | Deletion | Fault]:
    """Return the citation or the deletions of a record, or their faults; deletions are numbered from `number` on."""
    if record.rows[FIELD] % FLAG == _DELETE_CITATION:
        return _deletions(record, number)
    return [_citation(record, number)]


def _deletions(record: Record, number: int) -> list[Citation | Deletion | Fault]:
    found: list[Citation | Deletion | Fault] = []
    for place, (field, start, end, key_start, key_end) in enumerate(_fields(record), number):
        pmid, version = _text(record.data, field, start, end), _version(_key(record.data, key_start, key_end))
        found.append(_fault_of(pmid, version, record) or Deletion(place, pmid, version))
    return found


def _citation(record: Record, number: int) -> Citation | Fault:
    latin = record.latin
    single: dict[int, str] = {}
    published: dict[int, str] = {}
    revised: dict[int, str] = {}
    date = published
    sections: list[AbstractSection] = []
    headings: list[Heading] = []
    types: list[Term] = []
    links: list[Link] = []
    keywords: list[str] = []
    languages: list[str] = []
    ids: dict[str, str] = {}
    pmid, version, link_end, doi = "", 1, 0, ""
    for field, start, end, key_start, key_end in _fields(record):
        text, key = latin[start:end], latin[key_start:key_end]
        if field >= FLAG:
            if field & ODD_KEY:
                key = _key(record.data, key_start, key_end)
            text = _text(record.data, field, start, end)
            field %= FLAG
        if field >= _FIRST_SINGLE:
            single.setdefault(field, text)
        elif field >= _FIRST_DATE_PART:
            date.setdefault(field, text)
        elif field == _DESCRIPTOR:
            headings.append(_heading(key, text))
        elif field == _QUALIFIER and headings:
            descriptor, qualifiers = headings[-1]
            headings[-1] = Heading(descriptor, (*qualifiers, _term(key, text)))
        elif field == _ARTICLE_ID:
            ids.setdefault(key, text)
        elif field == _TYPE:
            types.append(_term(key, text))
        elif field == _KEYWORD:
            keywords.append(text)
        elif field == _ABSTRACT_TEXT:
            sections.append(AbstractSection(" ".join(key.split()), _attribute(record.data, start, CATEGORY), text))
        elif field == _PMID:
            if start < link_end:
                links[-1] = Link(links[-1].kind, text, _version(key))
            elif not pmid:
                pmid, version = text, _version(key)
        elif field == _LANGUAGE:
            languages.append(text)
        elif field == _ELOCATION:
            if key == "doi" and _attribute(record.data, start, VALID) != "N":
                doi = doi or text
        elif field == _PUB_DATE:
            date = published
        elif field == _DATE_REVISED:
            date = revised
        elif field == _LINK:
            links.append(Link(key, "", 1))
            link_end = end
    if fault := _fault_of(pmid, version, record):
        return fault
    get = single.get
    return Citation(
        number,
        pmid,
        version,
        get(_PLACE["ArticleTitle"]) or get(_BOOK_TITLE, ""),
        tuple(sections),
        tuple(languages),
        get(_PLACE["Title"]) or get(_BOOK_TITLE, ""),
        get(_PLACE["ISOAbbreviation"], ""),
        get(_PLACE["ISSN"], ""),
        get(_PLACE["NlmUniqueID"], ""),
        _iso_date(*map(published.get, _DATE_PARTS)),
        _iso_date(*map(revised.get, _DATE_PARTS)),
        tuple(types),
        tuple(headings),
        tuple(keywords),
        tuple(links),
        any(each.ui == RETRACTED.ui or each.name == RETRACTED.name for each in types)
        or any(link.kind == "RetractionIn" for link in links),
        doi or ids.get("doi", ""),
        ids.get("pmc", ""),
    )


def _fields(record: Record) -> Iterator[tuple[int, int, int, int, int]]:
    """All rows except the first, which describes the record itself."""
    numbers = iter(record.rows[NUM_COLUMNS:])
    return zip(numbers, numbers, numbers, numbers, numbers, strict=True)


def _fault_of(pmid: str, version: int, record: Record) -> Fault | None:
    if not pmid:
        return Fault("no PMID", excerpt(_shown(record)))
    if not (pmid.isascii() and pmid.isdigit() and pmid[0] != "0"):
        return Fault("PMID is not a number", excerpt(pmid))
    if not version:
        return Fault("version of the PMID is not a number", excerpt(_shown(record)))
    return None


def _shown(record: Record) -> str:
    return record.data[record.rows[START] : record.rows[END]][: 4 * EXCERPT_LENGTH].decode(errors="replace")


# The same terms occur in millions of citations: caching builds each one once.
@lru_cache(maxsize=1 << 16)
def _term(ui: str, name: str) -> Term:
    return Term(ui, name)


@lru_cache(maxsize=1 << 16)
def _heading(ui: str, name: str) -> Heading:
    return Heading(Term(ui, name), ())


def _text(data: bytes, field: int, start: int, end: int) -> str:
    """The text of an element's content, cleaned as the flags in `field` require."""
    content = data[start:end]
    if field & MARKUP:
        content = TAG.sub(b"", content)
    text = content.decode()
    if field & REFERENCES:
        text = REFERENCE.sub(_character, text) if "&#" in text else unescape(text, QUOTES)
    return " ".join(text.split()) if field & (UNTIDY | MARKUP) else text


def _key(data: bytes, start: int, end: int) -> str:
    return _text(data, REFERENCES | UNTIDY, start, end)


def _attribute(data: bytes, start: int, pattern: re.Pattern[bytes]) -> str:
    """The value of an attribute of the element whose content begins at `start`, or "" without one."""
    found = pattern.search(data, data.rindex(b"<", 0, start), start)
    return found[1].decode() if found else ""


def _character(reference: re.Match[str]) -> str:
    decimal, hexadecimal, name = reference.groups()
    return unescape(name, QUOTES) if name else chr(int(decimal) if decimal else int(hexadecimal, 16))


def _version(key: str) -> int:
    """The version as a number; 1 if the key is empty, 0 if it is not a number."""
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else int(not key)


@lru_cache(maxsize=1 << 16)
def _iso_date(year: str | None, month: str | None, day: str | None, medline_date: str | None) -> str:
    """The most precise existing date that the parts give; for a span, its common part or else its first year."""
    if not year and medline_date:
        if parts := MEDLINE_DATE.fullmatch(medline_date):
            year, month, day, until = parts.groups()
            day = None if until else day
        elif any_year := YEAR.search(medline_date):
            year = any_year[0]
    if not year or not YEAR.fullmatch(year):
        return ""
    number = MONTHS.get(month[:3].lower(), 0) if month and month.rstrip(".").isalpha() else _number(month)
    if not 1 <= number <= 12:
        return year
    if not 1 <= _number(day) <= monthrange(int(year), number)[1]:
        return f"{year}-{number:02d}"
    return f"{year}-{number:02d}-{_number(day):02d}"


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 5 else 0
