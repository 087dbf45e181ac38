"""Read records from .csv and .tsv files. The first row names the columns.

.tsv: columns are separated by tabs and a quotation mark is an ordinary character, as in the task files of `evaluation`.

.csv (RFC 4180): a field may be quoted by `"`. The header shows which delimiter separates the columns: it is the one
that gives every wanted column. In a file written without quoting, a text that begins with `"` would swallow the rows
up to the next `"`; such a file raises SourceError.
"""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import chain

from bert_pipeline.data.sources.records import Fault, SourceError, excerpt
from bert_pipeline.data.sources.text_readers import is_blank, text_lines
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted, require

log = logging.getLogger(__name__)

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
CHECK_EVERY = 1_000
"""Lines of one unfinished row between two checks for swallowed rows; it bounds the time to find an open quote."""
SHORT_WRONG = "row with a wrong number of fields"
UNQUOTED = '; in a .tsv, " is an ordinary character; remedy: name a file with quoted fields .csv'
LOOKS_QUOTED = re.compile(r'"(?:[^"]|"")*"')
"""A whole field as a CSV writer quotes it."""


def read_tsv(stream: Stream, wanted: Wanted) -> Records:
    header: list[str] = []
    looks_quoted, first = 0, 0
    for number, line in enumerate(text_lines(stream, newline=None), 1):
        if is_blank(line):
            continue
        row = line.removesuffix("\n").split("\t")
        if not header:
            header = row
            if all(map(LOOKS_QUOTED.fullmatch, row)):
                raise SourceError(f"line {number}: the column names are quoted{UNQUOTED}")
            require(wanted.fields, header)
            continue
        if '"' in line and any('"' in field[1:-1] and LOOKS_QUOTED.fullmatch(field) for field in row):
            looks_quoted, first = looks_quoted + 1, first or number
        if len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            reason = SHORT_WRONG + (UNQUOTED if any(field.startswith('"') for field in row) else "")
            yield number, Fault(reason, excerpt(f"{len(row)} for {len(header)} columns: {line.rstrip()}"))
    if looks_quoted:
        log.warning(
            '%s: %d rows, the first on line %d, hold a field like "say ""no""", as a CSV writer quotes it; the marks '
            "are kept as text%s",
            wanted.file, looks_quoted, first, UNQUOTED,
        )  # fmt: skip


def read_csv(stream: Stream, wanted: Wanted) -> Records:
    csv.field_size_limit(2**31 - 1)  # Python's default is 131,072 characters, less than a long article
    lines = text_lines(stream, newline="")
    for number, first in enumerate(lines):
        if not is_blank(first):
            yield from _CsvReader(chain([first], lines), number, _delimiter(first, wanted), wanted).records()
            return


def _delimiter(header: str, wanted: Wanted) -> str:
    """The delimiter that the recipe sets, or else the first one under which the header has all wanted columns."""
    if wanted.csv_delimiter:
        return wanted.csv_delimiter
    by_delimiter = {delimiter: _columns(header, delimiter) for delimiter in DELIMITERS}
    for delimiter, columns in by_delimiter.items():
        is_joined = len(columns) == 1 and any(len(others) > 1 for others in by_delimiter.values())
        if not is_joined and all(columns.count(name) == 1 for name in wanted.fields):
            if delimiter != ",":
                log.info("%s: the columns are separated by %s", wanted.file, DELIMITERS[delimiter])
            return delimiter
    return max(DELIMITERS, key=header.count)


def _columns(header: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


class _CsvReader:
    def __init__(self, lines: Iterator[str], blank: int, delimiter: str, wanted: Wanted) -> None:
        self.lines, self.blank, self.delimiter, self.wanted = lines, blank, delimiter, wanted
        self.rows = csv.reader(self._held_lines(), delimiter=delimiter, strict=True)
        self.held: list[str] = []  # the lines of the current row
        self.count = 0  # lines read
        self.header: list[str] = []
        self.shapes: list[set[str]] = []  # per column, of the values so far
        self.over_lines = self.mark_inside = 0  # the first line of a row with such a field

    def _held_lines(self) -> Iterator[str]:
        for line in self.lines:
            self.held.append(line)
            self.count += 1
            if len(self.held) % CHECK_EVERY == 0:
                self._refuse_swallowed_rows()
            yield line

    @property
    def line(self) -> int:
        """Number of the line on which the current row begins."""
        return self.blank + self.count - len(self.held) + 1

    def records(self) -> Records:
        self._read_header()
        while True:
            self.held.clear()
            try:
                row = next(self.rows, None)
            except csv.Error as error:
                if "unexpected end" in str(error):
                    self._refuse_swallowed_rows()
                    opened = self.line + _longest_quoted(self.held)[0]
                    raise SourceError(
                        f'line {opened}: a quoted field never ends; remedy: write a " inside a field as ""'
                    ) from None
                for number, line in enumerate(self.held, self.line):
                    yield number, Fault('row is not CSV; remedy: write a " inside a field as ""', excerpt(line))
                continue
            if row is None:
                return
            if len(self.held) > 1 or any('"' in line for line in self.held):
                self._check_quotes(row)
            if len(row) == len(self.header):
                self._learn_shapes(row)
                yield self.line, dict(zip(self.header, row, strict=True))
            elif not all(map(is_blank, row)):
                found = f"{len(row)} for {len(self.header)} columns: {self.delimiter.join(row)}"
                yield self.line, Fault(SHORT_WRONG, excerpt(found))

    def _read_header(self) -> None:
        try:
            self.header = next(self.rows, [])
        except csv.Error as error:
            shown = excerpt(self.held[-1])
            raise SourceError(f"line {self.line}: the header is not CSV: {error}: {shown!r}") from None
        self.shapes = [set() for _ in self.header]
        try:
            require(self.wanted.fields, self.header)
        except SourceError as error:
            separated = DELIMITERS.get(self.delimiter, repr(self.delimiter))
            raise SourceError(
                f"{error}; if the columns are not separated by {separated}, set corpus.csv_delimiter"
            ) from None

    def _learn_shapes(self, row: Sequence[str]) -> None:
        for name, known, value in zip(self.header, self.shapes, row, strict=True):
            if name not in self.wanted.text_fields and len(known) < 8 and len(value) < 64:
                known.add(_shape(value))

    def _check_quotes(self, row: Sequence[str]) -> None:
        """Refuse a file in which a quoted field spans lines, but quotation marks are also text."""
        if len(self.held) > 1:
            self._refuse_swallowed_rows(row)
            self.over_lines = self.over_lines or self.line + _longest_quoted(self.held)[0]
        raw = "".join(self.held)
        if any('"' in value and '"' + value.replace('"', '""') + '"' not in raw for value in row):
            self.mark_inside = self.mark_inside or self.line
        if self.over_lines and self.mark_inside:
            raise SourceError(
                f'line {self.over_lines}: a field that begins with " ends on a later line, but line {self.mark_inside} '
                'has a " inside a field without quotes, so the file was written without quoting, and rows would be '
                f"merged; {REMEDY}"
            )

    def _refuse_swallowed_rows(self, row: Sequence[str] = ()) -> None:
        """Raise SourceError if most lines of the longest quoted field of the current row look like rows: they have the
        right number of columns, and in the columns without text, values like those of other rows.
        """
        start, end = _longest_quoted(self.held)
        if len(self.header) < 2 or start == end:
            return
        inside = self.held[start : end + 1]
        if inside[0].startswith('"'):  # the last line, with the other columns, looks like a row in any case
            inside.pop()
        elif inside[-1].rstrip().endswith('"') or "".join(inside).count('"') % 2:  # the first line does
            inside.pop(0)
        is_first = self.held[0].startswith('"')  # the field, so its lines say nothing about the other columns
        own = row or ([] if is_first else self.held[0].rstrip("\r\n").split(self.delimiter))
        shapes = {
            number: known or {_shape(value) for value in own[number : number + 1] if value}
            for number, (name, known) in enumerate(zip(self.header, self.shapes, strict=True))
            if name not in self.wanted.text_fields
        }
        alike = [
            line
            for line in inside
            if len(values := line.rstrip("\r\n").split(self.delimiter)) == len(self.header)
            and all(_shape(values[number]) in known for number, known in shapes.items())
        ]
        has_numbers = any("9" in shape for known in shapes.values() for shape in known)
        needed = 1 if has_numbers else 3 if shapes else 5  # text itself may look like a row of words
        if len(alike) >= needed and len(alike) > len(inside) * (0.5 if shapes else 0.9):
            raise SourceError(
                f'line {self.line + start}: the field that begins with " swallows {len(inside)} lines that look like '
                f"rows, such as {excerpt(alike[0].strip())!r}; {REMEDY}"
            )


REMEDY = 'remedy: quote every field that contains a ", and write the " as ""; or save the file as .tsv or .jsonl'


def _longest_quoted(lines: Sequence[str]) -> tuple[int, int]:
    """First and last line of the longest part in which a quotation mark is open."""
    longest, start, is_open = (0, 0), 0, False
    for number, line in enumerate(lines):
        if line.count('"') % 2:
            if is_open:
                longest = max(longest, (start, number), key=lambda part: part[1] - part[0])
            is_open, start = not is_open, number
    return max(longest, (start, len(lines) - 1), key=lambda part: part[1] - part[0]) if is_open else longest


def _shape(value: str) -> str:
    """`d17` and `d2004` have the shape `a9`."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", value))
