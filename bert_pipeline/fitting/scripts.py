"""The recipe keys that depend on the script of a text, as in docs/languages.md."""

import unicodedata
from collections import Counter
from typing import Any

Settings = dict[str, tuple[Any, str]]
"""Recipe keys to set, as `section.key`: (value, reason)."""

MAIN = 0.2
"""A script matters if it has this share of the letters: English text may name a gene in Greek."""
KANA = 0.05
"""Japanese has kana beside Chinese characters."""
ACCENTS = 0.005
"""Accents are kept if stripping them takes away this many marks per letter. English loan words stay below it."""

UNSEPARATED = {"THAI", "LAO", "KHMER", "MYANMAR"}
"""Scripts without blanks between words and without sentence marks."""


def script_settings(text: str) -> Settings:
    """Empty for English."""
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return {}
    shares = {name: count / len(letters) for name, count in Counter(map(_script, letters)).items()}
    kana = shares.get("HIRAGANA", 0) + shares.get("KATAKANA", 0)
    found: Settings = {}
    if kana >= KANA:
        found["tokenizer.limit_alphabet"] = (6_000, "Japanese text has about 3,000 distinct characters")
    elif shares.get("CJK", 0) >= MAIN:
        found["tokenizer.limit_alphabet"] = (8_000, "Chinese text has 5,000 and more distinct characters")
    elif shares.get("HANGUL", 0) >= MAIN:
        found["tokenizer.limit_alphabet"] = (3_000, "Korean text has about 2,000 distinct syllables")
    decomposed = unicodedata.normalize("NFD", text)
    lost = len(decomposed) - len(text) + sum(unicodedata.category(character) == "Mn" for character in text)
    if lost / len(letters) >= ACCENTS:
        found["tokenizer.strip_accents"] = (False, "stripping would damage letters of this text")
    for script in sorted(UNSEPARATED):
        if shares.get(script, 0) >= MAIN:
            reason = f"{script.title()} has no sentence marks: write one clause per line, words separated by blanks"
            found["corpus.sentence_splitter"] = ("lines", reason)
            found["nsp.objective"] = ("none", "pairs need sentences")
    return found


def _script(letter: str) -> str:
    """The first word of its Unicode name: LATIN, CJK, HANGUL, ..."""
    return unicodedata.name(letter, "").partition(" ")[0]
