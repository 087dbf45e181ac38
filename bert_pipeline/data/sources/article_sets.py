"""Articles of an XML file: one article, or a set of them.

A set is any document whose root is not <article> but that holds articles: <pmc-articleset> (efetch), responses of an
OAI-PMH service. It is cut into articles before XML is parsed, so memory holds one article, and a broken article costs
only itself. Whatever surrounds the articles is skipped.
"""

import re
from collections.abc import Iterator

from bert_pipeline.data.sources.jats import MAX_BYTES, NOT_WELL_FORMED, Article, read_article
from bert_pipeline.data.sources.records import Fault, SourceError, excerpt
from bert_pipeline.data.sources.wanted import Stream

BEGINNING, BLOCK = 2**16, 2**20
LONGEST_TAG = 2**12
"""Bytes: overlap of two blocks, so that a tag split between them is found."""

PROLOG = re.compile(
    rb"(?:\xef\xbb\xbf)?(?P<declaration><\?xml\s[^>]*\?>)?"
    rb"(?:\s++|<\?.*?\?>|<!--.*?-->|(?P<doctype><!DOCTYPE(?:[^][>\"']|\"[^\"]*\"|'[^']*')*+(?:\[[^]]*\]\s*)?>))*+"
    rb"<(?P<root>(?:[\w.-]+:)?(?P<local>[\w.-]+))",
    re.DOTALL,
)
ARTICLE = re.compile(rb"<((?:[\w.-]+:)?article)(?=[\s/>])")
NAMESPACE = re.compile(rb"\s(xmlns:[\w.-]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
CITATIONS = "PubmedArticleSet"


def root_element(beginning: bytes) -> str:
    """The name of an XML document's root element without its prefix; empty if the beginning does not show it."""
    found = PROLOG.match(beginning)
    return found["local"].decode() if found else ""


def read_articles(stream: Stream, section_titles: bool) -> Iterator[Article | Fault]:
    """Yield the articles. Raises EOFError if the document is cut short."""
    beginning = stream.read(BEGINNING)
    if (root := root_element(beginning)) == CITATIONS:
        raise SourceError(f"a <{CITATIONS}> inside of an archive; remedy: unpack it")
    if root not in ("", "article"):
        yield from _read_set(stream, beginning, section_titles)
        return
    data = beginning + stream.read(MAX_BYTES + 1 - len(beginning))
    if not data.strip():
        return
    article = read_article(data, section_titles)
    is_cut = b"<article" in data and b"</article>" not in data and len(data) <= MAX_BYTES
    if isinstance(article, Fault) and article.reason == NOT_WELL_FORMED and is_cut:
        raise EOFError(article.excerpt)
    yield article


def _read_set(stream: Stream, beginning: bytes, section_titles: bool) -> Iterator[Article | Fault]:
    prolog = PROLOG.match(beginning)
    assert prolog, "the root element is known"
    head = (prolog["declaration"] or b"") + (b'<!DOCTYPE article SYSTEM "article.dtd">' if prolog["doctype"] else b"")
    cutter, number = _Cutter(stream, beginning, prolog.end()), 0
    for number, data in enumerate(cutter.articles(), 1):  # noqa: B007
        yield data if isinstance(data, Fault) else read_article(head + data, section_titles)
    if not re.search(rb"</" + re.escape(prolog["root"]) + rb"\s*>", cutter.data) and not cutter.is_empty_root:
        raise EOFError(f"no </{prolog['root'].decode()}>")
    if not number:
        yield Fault("root element is not <article>, and no <article> is in it", excerpt(f"<{prolog['root'].decode()}>"))


class _Cutter:
    """The part of a set that is in memory (`data`), and the current position in it (`at`)."""

    def __init__(self, stream: Stream, data: bytes, at: int) -> None:
        self.stream, self.data, self.at = stream, data, at
        self.namespaces: dict[bytes, bytes] = {}
        self.is_empty_root = re.match(rb"[^<>]*/>\s*$", data[at:]) is not None

    def articles(self) -> Iterator[bytes | Fault]:
        """Yield the bytes of each article, which end at its end tag or at the next start tag of an article."""
        while begun := self._search(ARTICLE):
            self._note_namespaces(self.data[self.at : begun.start()])
            self.at = begun.start()
            name = begun[1]
            tag = self._search(re.compile(rb"<[^>]*>"), hold=True)
            if tag is None:
                raise EOFError("the last article has no end")
            if tag[0].endswith(b"/>"):
                self.at = tag.end()
                yield tag[0]
                continue
            after = re.compile(rb"</" + re.escape(name) + rb"\s*>|(?P<next>" + ARTICLE.pattern + rb")")
            start, self.at = self.at, tag.end()
            size = tag.end() - start
            kept = [self.data[start : tag.end()]]
            while not (end := after.search(self.data, self.at)):
                part = self.data[self.at : max(self.at, len(self.data) - LONGEST_TAG)]
                size += len(part)
                kept = [*kept, part] if size <= MAX_BYTES else kept[:1]
                self.at += len(part)
                if not self._more():
                    raise EOFError("the last article has no end")
            stop = end.start() if end["next"] else end.end()
            size += stop - self.at
            data = b"".join([*kept, self.data[self.at : stop]])
            self.at = stop
            if size > MAX_BYTES:
                shown = excerpt(data[:1000].decode("utf-8", "replace"))
                yield Fault(f"article is larger than {MAX_BYTES >> 20} MiB", shown)
            else:
                yield self._declared(data, name, tag[0])

    def _declared(self, data: bytes, name: bytes, tag: bytes) -> bytes:
        """The article with the namespace prefixes that are declared around it."""
        own = {each[1] for each in NAMESPACE.finditer(tag)}
        outer = b"".join(each for key, each in self.namespaces.items() if key not in own)
        return b"<" + name + outer + data[1 + len(name) :]

    def _note_namespaces(self, gap: bytes) -> None:
        self.namespaces |= {each[1]: each[0] for each in NAMESPACE.finditer(gap)}

    def _search(self, pattern: re.Pattern[bytes], hold: bool = False) -> re.Match[bytes] | None:
        """The next match; without `hold`, the data before it may be dropped. None at the end of the document."""
        while not (found := pattern.search(self.data, self.at)):
            if not hold:
                keep = max(self.at, len(self.data) - LONGEST_TAG)
                self._note_namespaces(self.data[self.at : keep])
                self.at = keep
            elif len(self.data) - self.at > MAX_BYTES:
                return None
            if not self._more():
                return None
        return found

    def _more(self) -> bool:
        block = self.stream.read(BLOCK)
        self.data, self.at = self.data[self.at :] + block, 0
        return bool(block)
