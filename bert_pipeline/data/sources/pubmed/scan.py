"""A compiled scanner of XML as NLM writes it: where in a stretch of bytes the fields of each record stand.

Most of a PubMed file is of one plain kind of XML: elements and attributes in double quotes, the five entities that
XML defines and references to characters, no comments, no CDATA. The scanner proves that a record is well-formed and of
this kind while it looks for fields, at one or two nanoseconds a byte. Of what is unusual or broken it
says no more than that: the caller has an XML parser rewrite it in plain XML (pubmed_records.py), or sets it aside.

What it lets through is well-formed by XML 1.0, 5th edition: characters [2], names [5] (of ASCII), attributes [10, 41]
(none twice in a tag), text without "]]>" [14], references [66, 68], tags that match [39]; and UTF-8 without overlong
forms (RFC 3629).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

RECORDS = ("PubmedArticle", "PubmedBookArticle", "DeleteCitation")
CONTAINERS = ("PubDate", "DateRevised", "CommentsCorrections")
REPEATED = (
    *("PMID", "AbstractText", "Language", "PublicationType", "DescriptorName", "QualifierName", "Keyword"),
    *("ELocationID", "ArticleId"),
)
DATE_PARTS = ("Year", "Month", "Day", "MedlineDate")
SINGLE = ("ArticleTitle", "Title", "BookTitle", "ISOAbbreviation", "ISSN", "NlmUniqueID")
FIELDS = RECORDS + CONTAINERS + REPEATED + DATE_PARTS + SINGLE
"""Elements that have a row; the number of a field is its place here."""
PASSED_OVER = (
    *("AuthorList", "InvestigatorList", "PersonalNameSubjectList", "OtherAbstract", "ReferenceList", "History"),
    *("DateCompleted", "ArticleDate", "ContributionDate", "BeginningDate", "EndingDate", "Sections"),
)
"""Elements in which no field is looked for: names, other languages, and the ids and dates of something else."""
KEYS = ("Version", "UI", "Label", "RefType", "IdType", "EIdType")
"""Attributes of fields; none has two of them."""

FIELD, START, END, KEY_START, KEY_END, NUM_COLUMNS = range(6)
"""Columns of a row: START and END of the content, of a record those of the element; KEY_ those of the attribute."""
FLAG = 64
MARKUP, REFERENCES, UNICODE, UNTIDY, ODD_KEY = (FLAG << n for n in range(5))
"""Flags above the number of the field: in its content are tags, references, other characters than ASCII, other white
space than single spaces inside; an attribute has references or other characters than ASCII."""
CUT, OTHER, FULL = range(3)
"""Why the scanner stopped: the bytes end in a record; it is not plain XML or no record; the table of rows is full."""

MAX_DEPTH, MAX_ATTRIBUTES = 64, 16

_ORDINARY, _SPACE, _BLANK, _MORE, _TAG, _AMPERSAND, _GREATER, _FORBIDDEN = range(8)
_IN_TEXT = np.zeros(256, np.uint8)  # the kind of a byte
_IN_TEXT[:32] = _FORBIDDEN
_IN_TEXT[[ord("<"), ord("&"), ord(">")]] = _TAG, _AMPERSAND, _GREATER
_IN_TEXT[128:] = _MORE
_ELSEWHERE, _IN_ATTRIBUTE = _IN_TEXT.copy(), _IN_TEXT.copy()
_IN_TEXT[[9, 10, 13, 32]] = _BLANK, _BLANK, _BLANK, _SPACE
_ELSEWHERE[[9, 10, 13]] = _ORDINARY
_IN_ATTRIBUTE[[ord('"'), ord("<"), ord(">")]] = _TAG, _FORBIDDEN, _FORBIDDEN
_BLANKS = np.zeros(256, np.bool_)
_BLANKS[[9, 10, 13, 32]] = True
_NAME = np.zeros(256, np.uint8)  # 2: may begin a name
_NAME[[ord(c) for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"]] = 2
_NAME[[ord(c) for c in "0123456789-.:"]] = 1


class _Names(NamedTuple):
    """A hash table of the names that mean something: open addressing; hashed by length, first and last letter."""

    letters: np.ndarray  # (bytes,) uint8
    ends: np.ndarray  # (names + 1,) int64
    slots: np.ndarray  # (256,) int16: the name, or -1


_ALL = FIELDS + PASSED_OVER + KEYS
_FIRST_PASSED_OVER, _FIRST_KEY = len(FIELDS), len(FIELDS) + len(PASSED_OVER)
_NUM_RECORDS, _FIRST_TEXT, _NUM_FIELDS = len(RECORDS), len(RECORDS + CONTAINERS), len(FIELDS)


def _names() -> _Names:
    slots = np.full(256, -1, np.int16)
    for number, name in enumerate(_ALL):
        slot = (len(name) * 37 + ord(name[0]) * 5 + ord(name[-1])) & 255
        while slots[slot] >= 0:
            slot = (slot + 1) & 255
        slots[slot] = number
    ends = np.cumsum([0, *map(len, _ALL)], dtype=np.int64)
    return _Names(np.frombuffer("".join(_ALL).encode(), np.uint8), ends, slots)


NAMES = _names()


@njit(cache=True)
def scan_records(data, position, rows, record_ends, names):
    """Scan record after record, white space before each.

    data: (n,) uint8. rows: (m, NUM_COLUMNS) int32, filled. record_ends: (k,) int32, filled: the rows up to the end of
    each record. Returns (why it stopped, where the record begins that it stopped in, how many whole ones came before).
    """
    open_start = np.empty(MAX_DEPTH, np.int64)
    open_length = np.empty(MAX_DEPTH, np.int64)
    open_row = np.empty(MAX_DEPTH, np.int64)  # the innermost row that is open outside of the element
    attribute_start = np.empty(MAX_ATTRIBUTES, np.int64)
    attribute_length = np.empty(MAX_ATTRIBUTES, np.int64)
    end, num_rows, num_records = len(data), 0, 0
    while True:
        while position < end and _BLANKS[data[position]]:
            position += 1
        if num_records == len(record_ends):
            return FULL, position, num_records
        begin = at = position
        depth, muted, row = 0, MAX_DEPTH + 1, -1
        in_text = False  # whether the row is that of a text
        while True:  # a tag, and the text that follows it
            if at + 1 >= end:
                return CUT, begin, num_records
            if data[at] != 60:
                return OTHER, begin, num_records
            tag = at
            at += 1
            if data[at] == 47:  # "</"
                if depth == 0:
                    return OTHER, begin, num_records
                at += 1
                depth -= 1
                length = open_length[depth]
                if at + length >= end:
                    return CUT, begin, num_records
                if not _same(data, at, data, open_start[depth], length) or data[at + length] != 62:
                    return OTHER, begin, num_records
                at += length + 1
                closed = True
            else:
                start = at
                if _NAME[data[at]] != 2:
                    return OTHER, begin, num_records
                while at < end and _NAME[data[at]]:
                    at += 1
                if depth == MAX_DEPTH:
                    return OTHER, begin, num_records
                name = -1
                if depth < muted:
                    name = _find(data, start, at - start, names)
                if (depth == 0) != (0 <= name < _NUM_RECORDS):
                    return (CUT if at == end else OTHER), begin, num_records
                open_start[depth], open_length[depth], open_row[depth] = start, at - start, row
                if in_text:
                    rows[row, FIELD] |= MARKUP
                own = -1
                if 0 <= name < _NUM_FIELDS:
                    if num_rows == len(rows):
                        return FULL, begin, num_records
                    own = num_rows
                    num_rows += 1
                    rows[own, :] = 0
                    rows[own, FIELD] = name
                elif _FIRST_PASSED_OVER <= name < _FIRST_KEY:
                    muted = depth + 1
                num_attributes = 0
                while at < end and _BLANKS[data[at]]:
                    while at < end and _BLANKS[data[at]]:
                        at += 1
                    if at == end:
                        return CUT, begin, num_records
                    if data[at] == 62 or data[at] == 47:
                        break
                    start = at
                    if _NAME[data[at]] != 2:
                        return OTHER, begin, num_records
                    while at < end and _NAME[data[at]]:
                        at += 1
                    length = at - start
                    if at + 1 >= end:
                        return CUT, begin, num_records
                    if data[at] != 61 or data[at + 1] != 34 or num_attributes == MAX_ATTRIBUTES:
                        return OTHER, begin, num_records
                    for n in range(num_attributes):
                        if attribute_length[n] == length and _same(data, attribute_start[n], data, start, length):
                            return OTHER, begin, num_records
                    attribute_start[num_attributes], attribute_length[num_attributes] = start, length
                    num_attributes += 1
                    value = at + 2
                    at, flags = _skip_text(data, value, _IN_ATTRIBUTE)
                    if at < 0:
                        return OTHER, begin, num_records
                    if at == end:
                        return CUT, begin, num_records
                    if own >= 0:
                        key = _find(data, start, length, names)
                        if key >= _FIRST_KEY:
                            rows[own, KEY_START], rows[own, KEY_END] = value, at
                        if flags:
                            rows[own, FIELD] |= ODD_KEY
                    at += 1
                if at + 1 >= end:
                    return CUT, begin, num_records
                closed = data[at] == 47
                if closed:
                    at += 1
                if data[at] != 62:
                    return OTHER, begin, num_records
                at += 1
                if own >= 0:
                    row, in_text = own, name >= _FIRST_TEXT
                    rows[own, START] = at
                if closed:
                    tag = at
                else:
                    depth += 1
            if closed:
                if row > open_row[depth]:
                    rows[row, END] = tag
                    if in_text and data[tag - 1] == 32:
                        rows[row, FIELD] |= UNTIDY
                    row = open_row[depth]
                    in_text = row >= 0 and rows[row, FIELD] & (FLAG - 1) >= _FIRST_TEXT
                if muted == depth + 1:
                    muted = MAX_DEPTH + 1
                if depth == 0:
                    break
            at, flags = _skip_text(data, at, _IN_TEXT) if in_text else _skip_text(data, at, _ELSEWHERE)
            if at < 0:
                return OTHER, begin, num_records
            if at == end:
                return CUT, begin, num_records
            if in_text:
                rows[row, FIELD] |= flags
        first = record_ends[num_records - 1] if num_records else 0
        rows[first, START], rows[first, END] = begin, at
        record_ends[num_records] = num_rows
        num_records += 1
        position = at


@njit(cache=True)
def _skip_text(data, at, kinds):
    """(where the text ends, its flags): at a "<", at the quote of an attribute, or at the end of the bytes, where a
    reference or a character may be cut; (-1, 0) where something stands that is not plain.
    """
    flags, end = 0, len(data)
    while at < end:
        kind = kinds[data[at]]
        if kind == _ORDINARY:
            at += 1
            while at < end and kinds[data[at]] == _ORDINARY:
                at += 1
        elif kind == _SPACE:
            if data[at - 1] == 32 or data[at - 1] == 62:
                flags |= UNTIDY
            at += 1
        elif kind == _TAG:
            break
        elif kind == _BLANK:
            flags |= UNTIDY
            at += 1
        elif kind == _MORE:
            length, code = _character(data, at)
            if length == 0:
                return -1, 0
            if length < 0:
                return end, flags
            flags |= UNICODE | (UNTIDY if _white(code) else 0)
            at += length
        elif kind == _AMPERSAND:
            length, code = _reference(data, at)
            if length == 0:
                return -1, 0
            if length < 0:
                return end, flags
            flags |= REFERENCES | (UNTIDY if _white(code) else 0)
            at += length
        elif kind == _GREATER:
            if data[at - 1] == 93 and data[at - 2] == 93:  # "]]>"
                return -1, 0
            at += 1
        else:
            return -1, 0
    return at, flags


@njit(cache=True)
def _character(data, at):
    """(bytes, code) of a character that has two or more; 0 bytes: not UTF-8, or none that XML allows; -1: cut."""
    lead = data[at]
    if 0xC2 <= lead <= 0xDF:
        length, code = 2, lead & 0x1F
    elif 0xE0 <= lead <= 0xEF:
        length, code = 3, lead & 0x0F
    elif 0xF0 <= lead <= 0xF4:
        length, code = 4, lead & 0x07
    else:
        return 0, 0
    for n in range(at + 1, at + length):
        if n == len(data):
            return -1, 0
        if data[n] & 0xC0 != 0x80:
            return 0, 0
        code = (code << 6) | (data[n] & 0x3F)
    if (length == 3 and code < 0x800) or (length == 4 and code < 0x10000) or not _allowed(code):
        return 0, 0
    return length, code


@njit(cache=True)
def _reference(data, at):
    """(bytes, code) of &amp; &lt; &gt; &quot; &apos; (code 0), &#8722; or &#x2212;; 0 bytes: none of these; -1: cut."""
    semicolon = at + 1
    while semicolon < len(data) and semicolon < at + 12 and data[semicolon] != 59:
        semicolon += 1
    if semicolon == len(data):
        return (-1 if semicolon < at + 12 else 0), 0
    length = semicolon - at - 1
    if data[semicolon] != 59 or length < 2:
        return 0, 0
    first, second, third = data[at + 1], data[at + 2], data[at + 3]
    if first == 35:
        base, place = (16, at + 3) if second == 120 else (10, at + 2)
        code = 0
        for n in range(place, semicolon):
            digit = data[n] | 0x20
            if 48 <= data[n] <= 57:
                code = code * base + data[n] - 48
            elif base == 16 and 97 <= digit <= 102:
                code = code * base + digit - 87
            else:
                return 0, 0
        return (length + 2 if place < semicolon and _allowed(code) else 0), code
    known = (
        (length == 2 and (first == 108 or first == 103) and second == 116)  # lt, gt
        or (length == 3 and first == 97 and second == 109 and third == 112)  # amp
        or (length == 4 and first == 113 and second == 117 and third == 111 and data[at + 4] == 116)  # quot
        or (length == 4 and first == 97 and second == 112 and third == 111 and data[at + 4] == 115)  # apos
    )
    return (length + 2 if known else 0), 0


@njit(cache=True)
def _white(code):
    """Unicode's white space (what str.split() takes for it), but for the single space."""
    return (
        9 <= code <= 13
        or code in (0x20, 0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
        or 0x2000 <= code <= 0x200A
    )


@njit(cache=True)
def _allowed(code):
    if code < 32:
        return code == 9 or code == 10 or code == 13
    return code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or 0x10000 <= code <= 0x10FFFF


@njit(cache=True)
def _find(data, start, length, names):
    slot = (length * 37 + data[start] * 5 + data[start + length - 1]) & 255
    while names.slots[slot] >= 0:
        name = names.slots[slot]
        begin = names.ends[name]
        if names.ends[name + 1] - begin == length and _same(data, start, names.letters, begin, length):
            return name
        slot = (slot + 1) & 255
    return -1


@njit(cache=True)
def _same(one, at, other, at_other, length):
    for n in range(length):  # noqa: SIM110 (compiled)
        if one[at + n] != other[at_other + n]:
            return False
    return True
