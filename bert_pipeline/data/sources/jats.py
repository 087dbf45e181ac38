"""Parse full-text articles in JATS (ANSI/NISO Z39.96, and the earlier NLM DTD), as PubMed Central distributes them.

The parser is strict and reads only the bytes it receives: no DTD, no entity that the file declares, no network.
Character names from the DTD (&alpha;) are resolved by the HTML standard's table, which includes the ISO sets.
`jats_text` extracts the running text.

Parts that are not the article's own text are skipped: sub-articles (reviews, replies), abstracts in other languages,
graphical or short abstracts, and everything after the body.
"""

import calendar
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from html.entities import html5
from typing import Any

from lxml import etree

from bert_pipeline.data.sources.jats_text import paragraphs
from bert_pipeline.data.sources.records import Fault, excerpt

MAX_BYTES = 2**24
"""Size limit for an article; the largest in PubMed Central are far smaller."""

NOT_WELL_FORMED = "article is not well-formed XML"
ARTICLE_FIELDS = ("title", "abstract", "body")
OTHER_ABSTRACTS = frozenset({"graphical", "key-points", "precis", "short", "summary", "teaser", "toc", "web-summary"})
"""Values of abstract-type in PubMed Central's tagging guidelines that do not mark the article's main abstract."""

HREF = "{http://www.w3.org/1999/xlink}href"
DOI_ADDRESS = re.compile(r"https?://(dx\.)?doi\.org/", re.IGNORECASE)
MONTHS = {
    name.lower(): number
    for names in (calendar.month_name, calendar.month_abbr)  # in the C locale, unless the program sets another
    for number, name in enumerate(names)
}


@dataclass(frozen=True)
class Article:
    article_id: str
    """PMC3462743; without one, the PMID; without that, the DOI in lower case; otherwise empty."""
    title: tuple[str, ...]
    abstract: tuple[str, ...]
    body: tuple[str, ...]
    """One text per paragraph."""
    date: str
    """Earliest publication date, as precise as known: 2012-09-26, 2012-09, 2012 or empty."""
    journal: str
    retracted: bool
    retracts: tuple[str, ...]
    """Ids, in the forms of `article_id`, of the articles that this article retracts."""


def read_article(data: bytes, section_titles: bool = False) -> Article | Fault:
    """Parse one file into an article or a Fault; with `section_titles`, section titles become texts, too."""
    if len(data) > MAX_BYTES:
        return Fault(f"article is larger than {MAX_BYTES >> 20} MiB", excerpt(data[:1000].decode("utf-8", "replace")))
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        return Fault(NOT_WELL_FORMED, excerpt(" ".join(str(error).split())))
    _drop_namespace(root)
    if root.tag != "article":
        return Fault("root element is not <article>", excerpt(f"<{root.tag}>"))
    if unknown := _unknown_entity(root):
        return Fault("entity that HTML does not know", excerpt(unknown))
    meta = root.find("front/article-meta")
    if meta is None:
        return Fault("article without front/article-meta", excerpt(data[:1000].decode("utf-8", "replace")))
    related = {kind: _related(meta, kind) for kind in ("retraction-forward", "retracted-article")}
    return Article(
        article_id=_id({each.get("pub-id-type"): _line(each) for each in meta.iterfind("article-id")}),
        title=_title(meta),
        abstract=_abstract(meta, section_titles),
        body=() if (body := root.find("body")) is None else paragraphs(body, section_titles),
        date=min(_dates(meta), key=lambda each: f"{each}-99-99"[:10], default=""),
        journal=_line(root.find("front/journal-meta//journal-title")),
        retracted=bool(related["retraction-forward"]) or root.get("article-type") == "retracted-article",
        retracts=tuple(filter(None, (_related_id(each) for each in related["retracted-article"]))),
    )


def _drop_namespace(root: Any) -> None:
    """PMC's OAI service puts articles into a namespace; JATS itself has none."""
    namespace, closing, _ = root.tag.rpartition("}")
    for element in root.iter(f"{namespace}{closing}*") if namespace else ():
        element.tag = etree.QName(element).localname


def _unknown_entity(root: Any) -> str:
    dtd = root.getroottree().docinfo.internalDTD
    declared = set() if dtd is None else {each.name for each in dtd.iterentities()}
    for entity in root.iter(etree.Entity):
        if entity.name in declared or f"{entity.name};" not in html5:
            return str(entity.text)
    return ""


def _line(element: Any) -> str:
    """The text of an element on one line; "" for None."""
    return "" if element is None else " ".join(paragraphs(element, False))


def _id(ids: dict[str, str]) -> str:
    if pmc := (ids.get("pmc") or ids.get("pmcid", "")).upper().removeprefix("PMC"):
        return f"PMC{pmc}"
    return ids.get("pmid") or ids.get("doi", "").lower()


def _title(meta: Any) -> tuple[str, ...]:
    parts = [_line(meta.find(f"title-group/{name}")) for name in ("article-title", "subtitle")]
    title = ": ".join(filter(None, parts))
    return (title,) if title else ()


def _abstract(meta: Any, section_titles: bool) -> tuple[str, ...]:
    for abstract in meta.iterfind("abstract"):
        if abstract.get("abstract-type") not in OTHER_ABSTRACTS:
            return paragraphs(abstract, section_titles)
    return ()


def _dates(meta: Any) -> Iterator[str]:
    for published in meta.iterfind("pub-date"):
        by_parts = _date(*(_line(published.find(name)) for name in ("year", "month", "day")))
        if found := by_parts or _date(*f"{published.get('iso-8601-date', '')}--".split("-")[:3]):
            yield found


def _date(year: str, month: str, day: str) -> str:
    """The most precise existing date: 31 February 2012 gives 2012-02."""
    month = month if month.isdecimal() else str(MONTHS.get(month.lower().rstrip("."), ""))
    for parts in ((year, month, day), (year, month), (year,)):
        if len(year) == 4 and all(map(str.isdecimal, parts)):
            with suppress(ValueError):  # no such day or month
                return date(*[*map(int, parts), 1, 1][:3]).isoformat()[: 3 * len(parts) + 1]
    return ""


def _related(meta: Any, kind: str) -> list[Any]:
    return [each for each in meta.iter("related-article") if each.get("related-article-type") == kind]


def _related_id(related: Any) -> str:
    target = DOI_ADDRESS.sub("", related.get(HREF, "").strip())
    kind = "doi" if target.startswith("10.") else related.get("ext-link-type", "").replace("pubmed", "pmid")
    return _id({kind: target})
