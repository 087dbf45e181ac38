"""Read records from text files: .txt, .jsonl, .json, .csv and .tsv.

Text is UTF-8. A byte order mark is skipped; LF and CRLF end a line; U+2028, NUL and other control characters are
ordinary characters, which the corpus removes (where JSON forbids them, the record is broken). An undecodable byte
becomes a lone surrogate, which `files` detects. UTF-16 and UTF-32 raise SourceError.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, groupby
from typing import Any, TextIO

from bert_pipeline.data.sources.records import Fault, SourceError, excerpt
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted, require

UTF_16 = re.compile("\udcff\udcfe|\udcfe\udcff|\0\0\udcfe\udcff|(?:[^\0]\0){4}|(?:\0[^\0]){4}")
"""Beginning of a text in UTF-16 or UTF-32, with undecodable bytes as lone surrogates."""

JSON_BLOCK = 2**18  # characters
MAX_JSON_RECORD = 2**28
"""Limit, in characters, for a record of a JSON array: it bounds the memory for a broken file."""
JSON_BLANKS = re.compile(r"[ \t\n\r]*")
DECODER, END_OF_ARRAY = json.JSONDecoder(), object()


def _text(stream: Stream, newline: str | None) -> TextIO:
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(stream: Stream, newline: str | None) -> Iterator[str]:
    lines = _text(stream, newline)
    for first in lines:
        _refuse_utf_16(first)
        yield first
        yield from lines


def _refuse_utf_16(beginning: str) -> None:
    if UTF_16.match(beginning):
        raise SourceError("text in UTF-16 or UTF-32; remedy: convert it to UTF-8, for example with iconv -f UTF-16")


def read_txt(stream: Stream, wanted: Wanted) -> Records:
    """Read documents separated by blank lines."""
    number = 0
    for blank, group in groupby(_lines(stream, newline=None), str.isspace):
        lines = list(group)
        if not blank:
            yield number + 1, {"text": "".join(lines)}
        number += len(lines)


def read_jsonl(stream: Stream, wanted: Wanted) -> Records:
    return _json_lines(_lines(stream, newline="\n"))


def _json_lines(lines: Iterable[str]) -> Records:
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Fault("line is not JSON", excerpt(line, getattr(error, "pos", 0)))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, Fault("line is not a JSON object", excerpt(line))


def read_json(stream: Stream, wanted: Wanted) -> Records:
    """Read an array of objects, or JSON lines."""
    text = _text(stream, newline="\n")
    beginning = text.read(JSON_BLOCK)
    _refuse_utf_16(beginning)
    if beginning.lstrip().startswith("["):
        return _json_array(beginning, beginning.index("[") + 1, text)
    return _json_lines(chain(io.StringIO(beginning + text.readline(), newline="\n"), text))


def _json_array(buffer: str, position: int, text: TextIO) -> Records:
    """Parse each element as soon as it is complete; a broken one raises SourceError, as the next cannot be found."""
    number = 0
    while True:
        try:
            element, position = _element(buffer, position, number == 0)
        except (ValueError, RecursionError) as error:
            more = ""
            if _may_be_incomplete(error, buffer) and len(buffer) - position <= MAX_JSON_RECORD:
                more = text.read(max(JSON_BLOCK, len(buffer) - position))
            if not more:
                shown = excerpt(buffer, getattr(error, "pos", position))
                raise SourceError(
                    f"cut short or not JSON after record {number}: {error}: {shown!r}; remedy: repair the array"
                ) from None
            buffer, position = buffer[position:] + more, 0
            continue
        if element is END_OF_ARRAY:
            break
        number += 1
        if isinstance(element, dict):
            yield number, element
        else:
            yield number, Fault("array element is not a JSON object", excerpt(json.dumps(element)))
    for rest in chain([buffer[position:]], iter(partial(text.read, JSON_BLOCK), "")):
        if rest.strip():
            raise SourceError(f"text after the end of the JSON array: {excerpt(rest)!r}; remedy: remove it")


def _element(buffer: str, position: int, first: bool) -> tuple[Any, int]:
    """Return an element or END_OF_ARRAY, and its end. Raises JSONDecodeError, also if the element is incomplete."""
    position = _after_blanks(buffer, position)
    if buffer[position : position + 1] == "]":
        return END_OF_ARRAY, position + 1
    if not first:
        if buffer[position : position + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", buffer, position)
        position = _after_blanks(buffer, position + 1)
    element, end = DECODER.raw_decode(buffer, position)
    if end == len(buffer) and not isinstance(element, dict):  # a number may continue in the next block
        raise json.JSONDecodeError("Expecting ',' or ']'", buffer, end)
    return element, end


def _after_blanks(buffer: str, position: int) -> int:
    found = JSON_BLANKS.match(buffer, position)
    return found.end() if found else position


def _may_be_incomplete(error: Exception, buffer: str) -> bool:
    """Whether the error may be caused by the end of the buffer."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(buffer) - 16  # "-Infinity", "\\ud83d\\ude00"


def read_csv(stream: Stream, wanted: Wanted, delimiter: str = ",") -> Records:
    """Read rows whose fields are quoted by `"`; the first row names the columns (RFC 4180)."""
    csv.field_size_limit(2**31 - 1)  # Python's default is 131,072 characters, less than a long article
    last_line = ""

    def lines() -> Iterator[str]:
        nonlocal last_line
        for line in _lines(stream, newline=""):
            last_line = line
            yield line

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in rows if row), [])
    except csv.Error as error:
        raise SourceError(f"line {rows.line_num}: the header is not CSV: {error}: {excerpt(last_line)!r}") from None
    if header:
        require(wanted.fields, header)
    begins = rows.line_num + 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise SourceError(
                    f'line {begins}: a quoted field never ends; remedy: write a " inside a field as ""'
                ) from None
            yield begins, Fault("row is not CSV", excerpt(last_line))
        else:
            if row is None:
                return
            if len(row) == len(header):
                yield begins, dict(zip(header, row, strict=True))
            elif row:
                found = f"{len(row)} for {len(header)} columns: {delimiter.join(row)}"
                yield begins, Fault("row with a wrong number of fields", excerpt(found))
        begins = rows.line_num + 1
