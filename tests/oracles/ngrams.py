"""What documents hold of known texts, by the letter of the rule: tuples of words in Python sets."""

import re
import unicodedata


def words_of(text: str) -> list[str]:
    """Character by character."""
    words, inside = [], False
    for character in unicodedata.normalize("NFKD", text).lower():
        category = unicodedata.category(character)
        if category[0] in "LN":
            words += [] if inside else [""]
            words[-1] += character
            inside = True
        elif not (category[0] == "M" or (category in ("Cc", "Cf") and not character.isspace())):
            inside = False
    return words


def matches(parts: tuple[str, ...], document: str, size: int = 13, least: int = 8) -> tuple[int, int]:
    """Words of the text that stand in n-grams of the document, and the longest run of them."""
    held = words_of(document)
    covered, longest = 0, 0
    for piece in [piece for part in parts for piece in re.split(r"@[^\s@$]+\$", part)]:
        words = words_of(piece)
        length = min(size, len(words))
        if length < least:
            continue
        ngrams = {tuple(held[n : n + length]) for n in range(len(held) - length + 1)}
        marks = [False] * len(words)
        for n in range(len(words) - length + 1):
            if tuple(words[n : n + length]) in ngrams:
                marks[n : n + length] = [True] * length
        covered += sum(marks)
        longest = max(longest, *(len(run) for run in "".join(" x"[mark] for mark in marks).split(" ")))
    return covered, longest
