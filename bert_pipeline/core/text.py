"""UTF-8 for compiled functions, and a quick test for texts without unusual characters."""

from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
from numba import njit

NUM_CODE_POINTS = 0x110000

UNUSUAL, PRINTABLE, PLAIN = range(3)
"""UNUSUAL: with control or format characters, or white space other than blanks and line ends. PRINTABLE: without them.
PLAIN: also without two white-space characters in a row."""

_SPACE, _LINE_END, _DELETE = 0x20, 0x0A, 0x7F
_NUM_PRINTABLE = 0x20000
"""Planes 0 and 1. Characters of the others, rare ideographs, count as unusual."""


def utf8(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """(text, ends): text n is text[ends[n]:ends[n + 1]]."""
    _, offsets, data = texts.buffers()
    ends = np.zeros(1, np.int32)
    if len(texts):
        ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]], ends - ends[0]


@njit(cache=True)
def decode(text, at):
    """(code point, end) of the character at text[at:]."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, at + 1
    second = np.int64(text[at + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, at + 2
    third = np.int64(text[at + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, at + 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(text[at + 3]) & 0x3F, at + 4


@lru_cache(maxsize=1)  # cleaning and splitting ask for the same text
def kind_of_text(text: str) -> int:
    """UNUSUAL, PRINTABLE or PLAIN. `str.isprintable` and a search for two blanks take more than twice as long."""
    return _kind(np.frombuffer(text.encode(errors="surrogatepass"), np.uint8), _printable())


@cache
def _printable() -> np.ndarray:
    return np.array([chr(code).isprintable() for code in range(_NUM_PRINTABLE)])


@njit(cache=True)
def _kind(text, printable):
    """The first loop has no branch, so the compiler makes it check many bytes at a time."""
    control, pair, high = False, False, np.uint8(0)
    blank_before = False
    for byte in text:
        blank = (byte == _SPACE) | (byte == _LINE_END)
        pair |= blank & blank_before
        control |= (byte == _DELETE) | ((byte < _SPACE) & (byte != _LINE_END))
        high |= byte
        blank_before = blank
    if control:
        return UNUSUAL
    if high >= 0x80:
        for n in range(len(text)):
            if text[n] >= 0xC0:
                code, _ = decode(text, n)
                if code >= len(printable) or not printable[code]:
                    return UNUSUAL
    return PRINTABLE if pair else PLAIN
