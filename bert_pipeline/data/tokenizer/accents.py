"""How much of a text is changed when a tokenizer strips accents.

BERT's uncased vocabularies decompose each character (Unicode NFD) and remove its marks. In English this costs nothing.
Elsewhere it can cost the text: Hangul syllables become jamo, kana lose their dakuten, Thai and the scripts of India
lose vowels, and in German or Vietnamese words become other words.
"""

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers.normalizers import BertNormalizer

MAX_STRIPPED_FRACTION = 0.01
"""Share of the letters above which stripping accents is reported. English: below 0.0001; German, French, Russian and
Japanese: 0.02 to 0.1; Hindi, Thai, Tamil and Vietnamese: 0.1 to 0.3; Korean: 1."""

REMEDY = "tokenizer.strip_accents = false keeps them; true removes them without this warning"

NUM_CODE_POINTS = 0x110000


class Stripped(NamedTuple):
    share: float
    """Share of the letters and marks that change."""
    examples: list[list[str]]
    """The most frequent ones, each with what it becomes, part by part."""


def stripped_letters(batches: Iterable[pa.StringArray]) -> Stripped:
    """Measure what stripping accents changes in sentences."""
    counts = np.zeros(NUM_CODE_POINTS, np.int64)
    for sentences in batches:
        codes = np.frombuffer("".join(sentences.to_pylist()).encode("utf-32-le"), np.uint32)
        counts += np.bincount(codes, minlength=NUM_CODE_POINTS)
    strip = BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    letters = {
        chr(code): int(counts[code]) for code in np.flatnonzero(counts) if unicodedata.category(chr(code))[0] in "LM"
    }
    changed = {letter: parts for letter in letters if (parts := strip.normalize_str(letter)) != letter}
    frequent = sorted(changed, key=lambda letter: (-letters[letter], letter))[:5]
    return Stripped(
        sum(letters[letter] for letter in changed) / max(sum(letters.values()), 1),
        [[letter, " + ".join(changed[letter])] for letter in frequent],
    )


def describe_stripped(share: float, examples: list[list[str]]) -> str:
    """The finding as the start of a sentence."""
    shown = ", ".join(
        f"{'◌' if unicodedata.category(letter) == 'Mn' else ''}{letter} becomes {parts or 'nothing'}"
        for letter, parts in examples
    )
    return f"stripping accents changes {share:.2%} of the letters of the held-out text ({shown})"
