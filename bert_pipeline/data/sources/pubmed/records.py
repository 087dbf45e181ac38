"""Read the records of a PubMed file one by one; a broken record is reported, and all others are read.

    .xml.gz -> windows of its bytes -> scanner (scan.py) -> records in plain XML
                                           not plain: expat -> rewritten in plain XML, or broken

Memory holds one window and the current record; a record larger than MAX_RECORD is skipped without loading it. The XML
of a broken record cannot show where it ends, so it ends at the next end tag or before the next start tag of a record,
whichever comes first. Anything but white space between records is reported as broken, too.

Only the file itself is read. The document type is skipped unread, and a file whose document type declares anything is
refused. So a file cannot define entities, and an entity that XML does not define breaks its record.
"""

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape

import numpy as np
from isal import isal_zlib  # three times as fast as zlib

from bert_pipeline.data.sources.pubmed import scan
from bert_pipeline.data.sources.pubmed.scan import CUT, END, FULL, START, scan_records
from bert_pipeline.data.sources.records import EXCERPT_LENGTH, Fault, SourceError, excerpt

WINDOW, PACKED = 1 << 19, 1 << 17
"""Bytes of XML, and of compressed data, read at a time."""
MAX_RECORD = 16 << 20
"""Bytes. The largest PubMed records, papers with thousands of authors, have a few million."""
MAX_PROLOG = 1 << 16
MAX_TOKEN, FEED = 1 << 20, 1 << 16
"""Bytes: the limit for a tag or comment, which the XML parser holds in memory; and the size of a piece fed to it."""
MAX_ROWS, RECORDS_PER_SCAN = 1 << 16, 64
LONGEST_TAG = 64
"""Bytes: overlap of two windows, so that `BOUNDARY` finds a tag that is split between them."""

BLANK = rb"[ \t\r\n]"
RECORD = rb"(?:PubmedArticle|PubmedBookArticle|DeleteCitation)"
RECORD_START = re.compile(rb"<" + RECORD + rb"(?=[ \t\r\n/>])")
SET_END = re.compile(rb"</PubmedArticleSet" + BLANK + rb"{0,9}>")
STOP_BEFORE = rb"(?P<before>" + RECORD + rb"[ \t\r\n/>]|/PubmedArticleSet" + BLANK + rb"{0,9}>)"
NEXT_RECORD = re.compile(rb"<" + STOP_BEFORE)
BOUNDARY = re.compile(rb"<(?:/" + RECORD + BLANK + rb"{0,9}>|" + STOP_BEFORE + rb")")
COMMENT = rb"<!--(?:[^-]|-(?!-))*+-->|<\?(?!xml" + BLANK + rb").*?\?>"  # or a processing instruction
SKIPPABLE = re.compile(BLANK + rb"++|" + COMMENT, re.DOTALL)
SKIPPABLES = rb"(?:" + SKIPPABLE.pattern + rb")*+"
DOCTYPE = rb"<!DOCTYPE" + BLANK + rb"++PubmedArticleSet(?:[^][<>" + rb"\"']|\"[^\"]*\"|'[^']*')*+>"
DECLARATION = rb"(?:\xef\xbb\xbf)?(?:<\?xml" + BLANK + rb"(?P<declared>[^?>]*)\?>)?"
SET_START = rb"<PubmedArticleSet(?:" + BLANK + rb"[^<>]*?)?(?P<empty>/)?>"
PROLOG = re.compile(DECLARATION + SKIPPABLES + rb"(?:" + DOCTYPE + rb")?" + SKIPPABLES + SET_START, re.DOTALL)
DECLARES = re.compile(rb"<!DOCTYPE[^>]*\[")
ENCODING = re.compile(rb"encoding\s*=\s*[\"'](?!utf-?8[\"']|us-ascii[\"'])([^\"']*)", re.IGNORECASE)
IN_QUOTES = {'"': "&quot;", "\t": " ", "\n": " ", "\r": " "}
TOO_LARGE = "larger than 16 MiB"
UNLIKE = "unlike any record of PubMed: a record in it, elements nested too deep, too many attributes or fields"


class Record(NamedTuple):
    offset: int
    """Of the record's first byte in the uncompressed XML, from 0."""
    data: bytes
    """Plain XML; the rows hold positions in it."""
    latin: str
    """The same data with one character per byte: ASCII text can be sliced from it without decoding."""
    rows: list[int]
    """scan.NUM_COLUMNS numbers per row."""


class Broken(NamedTuple):
    offset: int
    """Of the offending byte in the uncompressed XML, from 0."""
    fault: Fault


def read_records(path: Path, on_bytes: Callable[[int], None]) -> Iterator[Record | Broken]:
    """Yield record after record; `on_bytes` receives the number of file bytes read.

    Raises SourceError, without the file's name, if the file cannot be read to its end.
    """
    text = _Text(_windows(path, on_bytes))
    try:
        if _read_prolog(text):
            yield from _records(text)
        _read_epilog(text)
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub says otherwise
        raise SourceError(f"corrupt after byte {text.base + len(text.data)} of its XML: {error}") from error
    except EOFError as error:
        raise SourceError(f"cut short after byte {text.base + len(text.data)} of its XML: {error}") from None


class _Text:
    """The part of the file's XML that is in memory (`data`), and the current position in it (`at`)."""

    def __init__(self, windows: Iterator[bytes]) -> None:
        self.windows = windows
        self.data, self.at, self.base = b"", 0, 0

    @property
    def offset(self) -> int:
        return self.base + self.at

    def more(self) -> bool:
        """Drop the data already read and append at least as much as is left; return False at the end of the file."""
        self.base, self.data, self.at = self.offset, self.data[self.at :], 0
        parts, wanted = [self.data], min(len(self.data), MAX_RECORD // 2) + 1
        while wanted > 0 and (window := next(self.windows, b"")):
            parts.append(window)
            wanted -= len(window)
        self.data = b"".join(parts)
        return len(parts) > 1

    def hold(self, size: int) -> None:
        """Load at least `size` bytes from the current position on, if the file has them."""
        while len(self.data) - self.at < size and self.more():
            pass

    def skip_to(self, pattern: re.Pattern[bytes]) -> bool:
        """Move to the next match, holding at most a window in memory; return False at the end of the file."""
        while not (found := pattern.search(self.data, self.at)):
            self.at = max(self.at, len(self.data) - LONGEST_TAG)
            if not self.more():
                return False
        self.at = found.start() if found["before"] else found.end()
        return True


def _windows(path: Path, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the uncompressed bytes in windows of at most WINDOW; isal checks length and CRC of each gzip member."""
    with path.open("rb") as raw:
        gzipped = path.name.lower().endswith(".gz")
        inflate = None
        while packed := raw.read(PACKED):
            on_bytes(len(packed))
            if not gzipped:
                yield packed
            while gzipped and (packed or inflate):
                inflate = inflate or isal_zlib.decompressobj(wbits=31)
                window = inflate.decompress(packed, WINDOW)
                packed = inflate.unconsumed_tail or inflate.unused_data
                if window:
                    yield window
                if inflate.eof:
                    inflate = None
                elif len(window) < WINDOW:  # all input is decompressed
                    break
        if inflate:
            raise EOFError("the gzip stream has no end")


def _read_prolog(text: _Text) -> bool:
    """Move past the start tag of the set; return False if the set is empty."""
    text.hold(MAX_PROLOG)
    prolog = PROLOG.match(text.data)
    if not prolog:
        if not text.data:
            raise SourceError("empty")
        if DECLARES.search(text.data, 0, MAX_PROLOG):
            raise SourceError("the document type declares entities, which PubMed files never do")
        raise SourceError(f"does not begin with a PubmedArticleSet: {_shown(text)!r}")
    if encoding := ENCODING.search(prolog["declared"] or b""):
        raise SourceError(f"declares the encoding {encoding[1].decode(errors='replace')}, but PubMed files are UTF-8")
    text.at = prolog.end()
    return not prolog["empty"]


def _read_epilog(text: _Text) -> None:
    """Read to the end of the file; raise SourceError if the set is followed by more than white space and comments."""
    while True:
        text.hold(LONGEST_TAG)
        if skipped := SKIPPABLE.match(text.data, text.at):
            text.at = skipped.end()
        elif text.at < len(text.data):
            raise SourceError(f"data after </PubmedArticleSet>, at byte {text.offset}: {_shown(text)!r}")
        else:
            return


def _records(text: _Text) -> Iterator[Record | Broken]:
    scanner = _Scanner()
    while True:
        why, stop = scanner.scan(text.data, text.at)
        for record in scanner.records(text.base):
            start, end = record.rows[START], record.rows[END]
            yield record if end - start <= MAX_RECORD else Broken(record.offset, Fault(TOO_LARGE, _shown(text, start)))
        text.at = stop
        if why == FULL and scanner.count:
            continue
        if why == CUT:
            if len(text.data) - stop > MAX_RECORD:
                yield _skip_broken(text, Fault(TOO_LARGE, _shown(text)))
                continue
            if text.more():
                continue
        text.hold(LONGEST_TAG)
        if RECORD_START.match(text.data, text.at):
            yield _parse_with_expat(text, scanner)
        elif ended := SET_END.match(text.data, text.at):
            text.at = ended.end()
            return
        elif not _skip_comment(text):
            broken = Broken(text.offset, Fault("text or tags between records", _shown(text)))
            if text.at == len(text.data) or not text.skip_to(NEXT_RECORD):
                raise EOFError("no </PubmedArticleSet>")
            yield broken


class _Scanner:
    """The compiled scanner and its output arrays."""

    def __init__(self) -> None:
        self.rows = np.empty((MAX_ROWS, scan.NUM_COLUMNS), np.int32)
        self.record_ends = np.empty(RECORDS_PER_SCAN, np.int32)
        self.data, self.count = b"", 0

    def scan(self, data: bytes, position: int) -> tuple[int, int]:
        """Return (why the scanner stopped, where); see scan.py."""
        array = np.frombuffer(data, np.uint8)
        why, stop, self.count = scan_records(array, position, self.rows, self.record_ends, scan.NAMES)
        self.data = data
        return why, stop

    def records(self, base: int) -> Iterator[Record]:
        """Yield the records found; `base` is the offset of the data in the XML."""
        if not self.count:
            return
        latin = self.data.decode("latin-1")
        ends = (self.record_ends[: self.count] * scan.NUM_COLUMNS).tolist()
        rows = self.rows.ravel()[: ends[-1]].tolist()
        for first, end in pairwise([0, *ends]):
            yield Record(base + rows[first + START], self.data, latin, rows[first:end])


def _skip_comment(text: _Text) -> bool:
    """Move past a comment or processing instruction; return False if there is none here."""
    while not (skipped := SKIPPABLE.match(text.data, text.at)):
        begun = text.data.startswith((b"<!--", b"<?"), text.at) and len(text.data) - text.at < MAX_TOKEN
        if not begun or not text.more():
            return False
    text.at = skipped.end()
    return True


def _parse_with_expat(text: _Text, scanner: _Scanner) -> Record | Broken:
    """Read the record that begins here, which is not plain XML, with an XML parser."""
    rewriter, fed, fault, index = _Rewriter(), 0, "", 0
    parser = rewriter.parser
    try:
        while not fault:
            text.hold(fed + FEED)  # full pieces, so that the outcome does not depend on where windows begin
            piece = text.data[text.at + fed : text.at + fed + FEED]
            parser.Parse(piece, len(piece) < FEED)
            fed += len(piece)
            if fed > MAX_RECORD:
                fault = TOO_LARGE
            elif fed - parser.CurrentByteIndex > MAX_TOKEN:
                fault, index = "a tag or a comment over 1 MiB", parser.CurrentByteIndex
    except _ClosedError:
        begin, offset = text.at, text.offset
        text.at = text.data.index(b">", begin + rewriter.end) + 1
        scanner.scan(bytes(rewriter.plain), 0)
        for record in scanner.records(0):
            return record._replace(offset=offset)
        return Broken(offset, Fault(UNLIKE, _shown(text, begin)))
    except _UnlikeError:
        fault, index = UNLIKE, rewriter.end
    except expat.ExpatError as error:
        fault, index = f"broken XML: {expat.ErrorString(error.code)}", parser.ErrorByteIndex
        byte = text.data[text.at + index : text.at + index + 1]
        if byte and not b" " <= byte <= b"~":
            fault += f", byte 0x{byte.hex()}"
    finally:
        del rewriter.parser  # breaks the reference cycle, which would keep the record in memory
    return _skip_broken(text, Fault(fault, _shown(text, text.at + index)), index)


def _skip_broken(text: _Text, fault: Fault, index: int = 0) -> Broken:
    """Move past the broken record that begins here; `index` is the position of the fault in the record."""
    broken = Broken(text.offset + index, fault)
    text.at += 1
    if not text.skip_to(BOUNDARY):
        raise EOFError("the last record has no end")
    return broken


class _ClosedError(Exception):
    """The end of the record is reached; not an error."""


class _UnlikeError(Exception):
    """The record has something that PubMed records do not have."""


class _Rewriter:
    """Rewrites a record as plain XML: without comments, CDATA and processing instructions."""

    def __init__(self) -> None:
        self.plain, self.depth = bytearray(), 0
        self.end = 0  # position of the tag that ended the reading
        self.parser = expat.ParserCreate("utf-8")
        self.parser.ordered_attributes = self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _start(self, name: str, attributes: list[str]) -> None:
        self.depth += 1
        if (
            self.depth > scan.MAX_DEPTH
            or len(attributes) > 2 * scan.MAX_ATTRIBUTES
            or (self.depth > 1 and name in scan.RECORDS)
        ):
            self.end = self.parser.CurrentByteIndex
            raise _UnlikeError
        pairs = zip(attributes[::2], attributes[1::2], strict=True)
        plain = "".join(f' {key}="{escape(value, IN_QUOTES)}"' for key, value in pairs)
        self.plain += f"<{name}{plain}>".encode()

    def _end(self, name: str) -> None:
        self.depth -= 1
        self.plain += f"</{name}>".encode()
        if not self.depth:
            self.end = self.parser.CurrentByteIndex
            raise _ClosedError

    def _text(self, text: str) -> None:
        self.plain += escape(text).encode()


def _shown(text: _Text, at: int = -1) -> str:
    """An excerpt of the data around a position; by default, around the current one."""
    at = text.at if at < 0 else at
    begin = max(0, at - EXCERPT_LENGTH // 3)
    return excerpt(text.data[begin : begin + 2 * EXCERPT_LENGTH].decode("utf-8", "surrogateescape"), at - begin)
