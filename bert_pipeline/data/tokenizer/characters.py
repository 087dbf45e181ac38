"""What BERT's normalizer and pre-tokenizer make of each character.

Both work on single characters: the normalizer replaces each by zero or more others (it removes controls and, if asked,
accents; it writes lower case, and blanks around Chinese characters), and the pre-tokenizer cuts at blanks and around
punctuation. So two tables replace them:

    kind      how a character of a text delimits *items* (items.py)
    symbols   what the character becomes: normalized characters, each marked as a gap, as a word by itself, or neither

The entries come from the `tokenizers` library itself, because it has its own version of Unicode and its own definitions
of white space, punctuation and control characters. An entry is made when a text first holds the character: a text uses
a few thousand of the million code points.

One thing depends on neighbours: where accents are stripped, Unicode's canonical decomposition sorts adjacent marks. The
few marks that remain after stripping and that may change places are marked as such.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from tokenizers.normalizers import NFD

from bert_pipeline.core.text import NUM_CODE_POINTS, decode, utf8

UNSEEN, BLANK, MARK, LETTER, FOUND = range(5)
"""Kinds. BLANK: becomes white space. MARK: separated from its neighbours, as punctuation and Chinese characters are.
LETTER: everything else, also what the normalizer removes. FOUND: unseen until this text."""

CODE_POINT = 0x1FFFFF
GAP, ALONE, MOVES = 1 << 21, 1 << 22, 1 << 23
"""A symbol is a code point with at most one of these bits. GAP: white space. ALONE: a word by itself. MOVES: an accent
or the like that changes places with others."""

_BLOCK = 64
_SPACE, _LINE_END = 0x20, 0x0A


class Table(NamedTuple):
    """The characters seen so far; character c becomes symbols[starts[c]:starts[c] + counts[c]]."""

    kinds: np.ndarray  # (NUM_CODE_POINTS,) uint8
    starts: np.ndarray  # (NUM_CODE_POINTS,) int32
    counts: np.ndarray  # (NUM_CODE_POINTS,) uint8
    symbols: np.ndarray  # (symbols,) int32


class Characters:
    """The table of one tokenizer, which must have a BertNormalizer and a BertPreTokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        strips = self._normalizer.strip_accents
        self._strips = self._normalizer.lowercase if strips is None else strips
        self._symbol_of: dict[str, int] = {}
        self._table = Table(
            np.zeros(NUM_CODE_POINTS, np.uint8),
            np.zeros(NUM_CODE_POINTS, np.int32),
            np.zeros(NUM_CODE_POINTS, np.uint8),
            np.empty(0, np.int32),
        )
        self._learn(range(128))

    def table(self, texts: pa.StringArray) -> Table:
        """The table with all characters of these texts. Raises pa.ArrowInvalid if one is not valid UTF-8."""
        texts.validate(full=True)
        if _find_unseen(utf8(texts)[0], self._table.kinds):
            self._learn(np.flatnonzero(self._table.kinds == FOUND).tolist())
        return self._table

    def symbols(self, text: str) -> list[int]:
        """The symbols of each character of a text, without sorting marks."""
        return [self._symbol(letter) for character in text for letter in self._normalizer.normalize_str(character)]

    def words(self, texts: pa.StringArray) -> list[list[str]]:
        """The normalized words of each text."""
        table = self.table(texts)
        text, ends = utf8(texts)
        codes = np.empty(2 * len(text) + len(texts), np.int32)  # no character becomes more symbols than it has bytes
        unsorted = np.zeros(len(texts), np.bool_)
        used = _write_words(text, ends, table, codes, unsorted)
        lines = str(codes[:used].data, "utf-32-le").split("\n")[:-1]
        words = [[word for word in line.split(" ") if word] for line in lines]
        for n in np.flatnonzero(unsorted).tolist():
            normal = self._normalizer.normalize_str(texts[n].as_py())
            words[n] = [word for word, _ in self._pre_tokenizer.pre_tokenize_str(normal)]
        return words

    def _learn(self, codes: range | list[int]) -> None:
        kinds, starts, counts, symbols = self._table
        learnt: list[int] = []
        for code in codes:
            found = self.symbols(chr(code))
            kinds[code] = _kind(found)
            starts[code], counts[code] = len(symbols) + len(learnt), len(found)
            learnt += found
        self._table = Table(kinds, starts, counts, np.concatenate([symbols, np.array(learnt, np.int32)]))

    def _symbol(self, letter: str) -> int:
        """The symbol of a normalized character."""
        if letter not in self._symbol_of:
            parts = [part for part, _ in self._pre_tokenizer.pre_tokenize_str(f"a{letter}a")]
            marks = {2: GAP, 3: ALONE}.get(len(parts), 0)
            between = f"\u0301{letter}\u0334"  # an accent above and one through the letter: sorted the other way round
            moves = self._strips and NFD().normalize_str(between) != between
            self._symbol_of[letter] = ord(letter) | marks | (MOVES if moves else 0)
        return self._symbol_of[letter]


def _kind(symbols: list[int]) -> int:
    if symbols and all(symbol & GAP for symbol in symbols):
        return BLANK
    separate = GAP | ALONE
    return MARK if symbols and symbols[0] & separate and symbols[-1] & separate else LETTER


@njit(cache=True)
def _find_unseen(text, kinds):
    """Change the kind of every unseen character of a text to FOUND; return whether there is one."""
    found = False
    at = 0
    while at < len(text):
        block = text[at : at + _BLOCK]
        end = at + len(block)
        bits = np.uint8(0)
        for byte in block:
            bits |= byte
        if bits < 0x80:
            at = end
        while at < end:
            code, at = decode(text, at)
            if kinds[code] == UNSEEN:
                kinds[code] = FOUND
                found = True
    return found


@njit(cache=True)
def _write_words(text, ends, table, codes, unsorted):
    """Write the words of all texts to `codes`, separated by blanks, each text on a line; return their length.
    Set unsorted[n] if marks of text n must be sorted.
    """
    size = 0
    for n in range(len(unsorted)):
        before = 0  # the symbol before
        at, end = np.int64(ends[n]), np.int64(ends[n + 1])
        while at < end:
            code, at = decode(text, at)
            begin = table.starts[code]
            for k in range(begin, begin + table.counts[code]):
                symbol = table.symbols[k]
                if k == begin and symbol & before & MOVES:
                    unsorted[n] = True
                if (symbol | before) & ALONE and not symbol & GAP:
                    codes[size] = _SPACE
                    size += 1
                codes[size] = _SPACE if symbol & GAP else symbol & CODE_POINT
                size += 1
                before = symbol
        codes[size] = _LINE_END
        size += 1
    return size
