"""Recognize the texts without unusual characters, which most texts are: cleaning and splitting them is quick.

`str.isprintable` and a search for two blanks take four times as long.
"""

from functools import cache

import numpy as np
from numba import njit

from bert_pipeline.data.tokenizer.characters import decode

UNUSUAL, PRINTABLE, PLAIN = range(3)
"""UNUSUAL: with control or format characters, or white space other than blanks and line ends. PRINTABLE: without them.
PLAIN: also without two white-space characters in a row."""

_SPACE, _LINE_END, _DELETE = 0x20, 0x0A, 0x7F
_NUM_CODE_POINTS = 0x20000
"""Planes 0 and 1. Characters of the others, rare ideographs, count as unusual."""


def kind_of_text(text: str) -> int:
    """UNUSUAL, PRINTABLE or PLAIN."""
    return _kind(np.frombuffer(text.encode(), np.uint8), _printable())


@cache
def _printable() -> np.ndarray:
    return np.array([chr(code).isprintable() for code in range(_NUM_CODE_POINTS)])


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
