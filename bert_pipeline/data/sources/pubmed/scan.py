"""Compiled scanner for XML as NLM writes it: finds the fields of each record in a buffer of bytes.

Most of a PubMed file is plain XML: elements, attributes in double quotes, XML's five entities and character
references, without comments or CDATA. The scanner looks for fields and checks that a record is well-formed plain XML in
one pass, at one or two nanoseconds per byte. It stops at a record that is broken or not plain; the caller then lets an
XML parser rewrite the record as plain XML (records.py), or rejects it.

Every record it accepts is well-formed by XML 1.0, 5th edition: characters [2], names [5] (ASCII only), attributes
[10, 41] (none twice in a tag), text without "]]>" [14], references [66, 68], matching tags [39]; and UTF-8 without
overlong forms (RFC 3629).

Why not lxml.iterparse: a reader of 30 lines instead of 995 (this file, records.py, citation.py) gives the same 12,011
citations of a generated file, but takes 180 us of CPU time each instead of 44 (one core, busy machine): 120
core-minutes instead of 30 for PubMed's 40 million. And it ends the file at the first broken record; with recover=True
it changes the record silently ("a\\x01b" becomes "ab", a neighbour moves into a record without end tag).
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
"""Elements that get a row; the number of a field is its index here."""
PASSED_OVER = (
    *("AuthorList", "InvestigatorList", "PersonalNameSubjectList", "OtherAbstract", "ReferenceList", "History"),
    *("DateCompleted", "ArticleDate", "ContributionDate", "BeginningDate", "EndingDate", "Sections"),
)
"""Elements whose content is not searched for fields: names, other languages, and ids and dates of other things."""
KEYS = ("Version", "UI", "Label", "RefType", "IdType", "EIdType")
"""Attributes of fields; no field has two of them."""

FIELD, START, END, KEY_START, KEY_END, NUM_COLUMNS = range(6)
"""Columns of a row: START and END of the content (for a record, of the element); KEY_START and KEY_END of the
attribute's value."""
FLAG = 64
MARKUP, REFERENCES, UNICODE, UNTIDY, ODD_KEY = (FLAG << n for n in range(5))
"""Flags, added to the number of the field. The content has tags; references; non-ASCII characters; white space other
than single spaces between words. ODD_KEY: an attribute has references or non-ASCII characters."""
CUT, OTHER, FULL = range(3)
"""Why the scanner stopped: the data ends inside a record; not plain XML or not a record; the output arrays are full."""

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
    """Hash table of the known names, with open addressing; the hash uses the length, the first and the last letter."""

    letters: np.ndarray  # (bytes,) uint8
    ends: np.ndarray  # (names + 1,) int64
    slots: np.ndarray  # (256,) int16: index of the name, or -1


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
    """Scan record after record, each with the white space before it.

    data: (n,) uint8. Output arrays: rows, (m, NUM_COLUMNS) int32; record_ends, (k,) int32, the number of rows up to the
    end of each record. Returns (why it stopped, start of the record it stopped in, number of complete records).
    """
    open_start = np.empty(MAX_DEPTH, np.int64)
    open_length = np.empty(MAX_DEPTH, np.int64)
    open_row = np.empty(MAX_DEPTH, np.int64)  # the innermost open row around the element
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
        in_text = False  # whether the open row is a text field
        while True:  # one tag and the text after it
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
    """Return (end of the text, its flags). The text ends at "<", at the closing quote of an attribute, or at the end of
    the data, which may cut a reference or a character. Returns (-1, 0) if the text is not plain.
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
    """(bytes, code) of a multi-byte character; 0 bytes: not UTF-8, or not allowed in XML; -1: cut."""
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
    """Whether `str.split` treats the character as white space."""
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
