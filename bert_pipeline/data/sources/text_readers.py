"""Read records from text files: .txt and .md, .jsonl and .ndjson, .json.

Text is UTF-8. A byte order mark is skipped; LF and CRLF end a line; U+2028, NUL and other control characters are
ordinary characters, which the corpus removes (where JSON forbids them, the record is broken). A line without a visible
character is blank. An undecodable byte becomes a lone surrogate, which `files` detects. UTF-16 and UTF-32 raise
SourceError.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, groupby, islice
from typing import Any, TextIO
from unicodedata import category

from bert_pipeline.data.sources.records import Fault, SourceError, excerpt
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted

UTF_16 = re.compile("\udcff\udcfe|\udcfe\udcff|\0\0\udcfe\udcff|(?:[^\0]\0){4}|(?:\0[^\0]){4}")
"""Beginning of a text in UTF-16 or UTF-32, with undecodable bytes as lone surrogates."""

INVISIBLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Unicode's Default_Ignorable_Code_Point, apart from format characters: fillers and variation selectors."""
CONTROLS = re.escape("".join(char for char in map(chr, range(0x10000)) if category(char) in ("Cc", "Cf")))
BLANK = re.compile(rf"[\s{INVISIBLE}{CONTROLS}]*")

JSON_BLOCK = 2**18  # characters
MAX_JSON_RECORD = 2**28
"""Limit, in characters, for a record of a JSON array: it bounds the memory for a broken file."""
JSON_BLANKS = re.compile(r"[ \t\n\r]*")
DECODER, END_OF_ARRAY, END_OF_BUFFER = json.JSONDecoder(), object(), object()
Parse = Callable[[str, int, bool], tuple[Any, int]]


def _text(stream: Stream, newline: str | None) -> TextIO:
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=newline)


def text_lines(stream: Stream, newline: str | None) -> Iterator[str]:
    lines = _text(stream, newline)
    first = list(islice(lines, 1))
    if first:
        _refuse_utf_16(first[0])
    return chain(first, lines)


def _refuse_utf_16(beginning: str) -> None:
    if UTF_16.match(beginning):
        raise SourceError("text in UTF-16 or UTF-32; remedy: convert it to UTF-8, for example with iconv -f UTF-16")


def is_blank(line: str) -> bool:
    """Whether the line has no visible character: white space, byte order marks, zero-width spaces and the like."""
    return not "!" <= line[:1] <= "~" and BLANK.fullmatch(line) is not None  # most lines begin with visible ASCII


def read_txt(stream: Stream, wanted: Wanted) -> Records:
    """Read documents separated by blank lines."""
    number = 0
    for blank, group in groupby(text_lines(stream, newline=None), is_blank):
        lines = list(group)
        if not blank:
            yield number + 1, {"text": "".join(lines)}
        number += len(lines)


def read_jsonl(stream: Stream, wanted: Wanted) -> Records:
    lines = text_lines(stream, newline="\n")
    for number, first in enumerate(lines, 1):
        if _begins_pretty(first):
            raise SourceError(
                f"line {number}: {excerpt(first.strip())!r} is not a whole JSON object: the file is pretty-printed; "
                "remedy: name it .json, or write one object per line, for example with jq -c"
            )
        if not is_blank(first):
            return _json_lines(chain([first], lines), number)
    return iter(())


def _begins_pretty(line: str) -> bool:
    """Whether the line is the first one of a JSON value that is written over several lines."""
    line = line.strip()
    if line == "[":
        return True
    if not line.startswith("{") or not line.endswith(("{", "[", ",")):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _json_lines(lines: Iterable[str], first: int = 1) -> Records:
    for number, line in enumerate(lines, first):
        if is_blank(line):
            continue
        try:
            record = json.loads(line.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            yield number, Fault("line is not JSON", excerpt(line, getattr(error, "pos", 0)))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, Fault("line is not a JSON object", excerpt(line))


def read_json(stream: Stream, wanted: Wanted) -> Records:
    """Read an array of objects, JSON lines, or objects that are each written over several lines."""
    text = _text(stream, newline="\n")
    beginning = text.read(JSON_BLOCK)
    _refuse_utf_16(beginning)
    if beginning.lstrip().startswith("["):
        return _json_elements(beginning, beginning.index("[") + 1, text, _element, "array")
    if _begins_pretty(beginning.lstrip().partition("\n")[0]):
        return _json_elements(beginning, 0, text, _object, "file")
    return _json_lines(chain(io.StringIO(beginning + text.readline(), newline="\n"), text))


def _json_elements(buffer: str, position: int, text: TextIO, parse: Parse, what: str) -> Records:
    """Parse each element as soon as it is complete; a broken one raises SourceError, as the next cannot be found."""
    number = 0
    while True:
        try:
            element, position = parse(buffer, position, number == 0)
        except (ValueError, RecursionError) as error:
            more = ""
            if _may_be_incomplete(error, buffer) and len(buffer) - position <= MAX_JSON_RECORD:
                more = text.read(max(JSON_BLOCK, len(buffer) - position))
            if not more:
                shown = excerpt(buffer, getattr(error, "pos", position))
                raise SourceError(
                    f"cut short or not JSON after record {number}: {error}: {shown!r}; remedy: repair the {what}"
                ) from None
            buffer, position = buffer[position:] + more, 0
            continue
        if element is END_OF_ARRAY:
            break
        if element is END_OF_BUFFER:
            buffer, position = text.read(JSON_BLOCK), 0
            if not buffer:
                return
            continue
        number += 1
        if isinstance(element, dict):
            yield number, element
        else:
            yield number, Fault(f"{what} element is not a JSON object", excerpt(json.dumps(element)))
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


def _object(buffer: str, position: int, first: bool) -> tuple[Any, int]:
    """Return the next of a series of values, or END_OF_BUFFER, and its end."""
    position = _after_blanks(buffer, position)
    return (END_OF_BUFFER, position) if position == len(buffer) else DECODER.raw_decode(buffer, position)


def _after_blanks(buffer: str, position: int) -> int:
    found = JSON_BLANKS.match(buffer, position)
    return found.end() if found else position


def _may_be_incomplete(error: Exception, buffer: str) -> bool:
    """Whether the error may be caused by the end of the buffer."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(buffer) - 16  # "-Infinity", "\\ud83d\\ude00"
