"""Text to sentences, by the rules of segtok (Leitner): written on statistics of PubMed Central, and the most
accurate on biomedical text of the libraries that benchmarks/sentences.py measures.

Patterns and constants are segtok's own. Its control flow stands here a second time and gives the same sentences
in a tenth of the time, because

- segtok searches patterns that are anchored at the end of a text from its beginning, at every position. Compiled
  to read backwards and matched from the end, they know within a few characters. Whether there is a match does not
  depend on the direction in which it is looked for.
- where any one of several conditions is enough, or all are needed, the cheapest that decides is asked first.
- brackets are counted, not walked through one after the other.
"""

import re
import string
from collections.abc import Callable, Iterator

import regex
from segtok import segmenter

PARAGRAPH_END = re.compile(r"\n\s*\n|\r\s*\r|\u2029")

# Where parts are joined ("et al. " in a bracket) the joined text is read again each time, so time may grow with the
# square of the length: a longer paragraph is handed over in pieces of at most 5,000 characters, that end before a
# capital after a full stop; else at a blank; else anywhere.
PIECE_LENGTH = 5000
PIECE = re.compile(r".{1,5000}(?:(?<=[.?!] )(?=[A-Z])|\Z)|.{1,5000}(?<= )|.{1,5000}", re.DOTALL)

# A list of the words of a text takes ten times the memory of the text.
LONG_PARAGRAPH = 1_000_000
UNUSUAL_BLANKS = re.compile(r"[^\S ]\s*| \s+")

# segtok's MAY_CROSS_ONE_LINE, for text whose white space is single blanks.
MARKER = re.compile(rf"([{segmenter.SENTENCE_TERMINALS}]['\u2019\"\u201D]?[\])]* )")

# Most patterns ask for a kind of letter at one end; where an ASCII character stands there, that is known without them.
ASCII = frozenset(map(chr, range(128)))
NOT_LOWER, NOT_UPPER, DIGITS = ASCII - set(string.ascii_lowercase), ASCII - set(string.ascii_uppercase), string.digits


def _at_end(pattern: regex.Pattern) -> Callable[[str], object]:
    """What `pattern.search` says (truthy or not), for a pattern that ends in `$`."""
    return regex.compile(pattern.pattern, pattern.flags | regex.REVERSE).match  # a reverse match starts at the end


ends_in_abbreviation = _at_end(segmenter.ABBREVIATIONS)
ends_in_date_digits = _at_end(segmenter.ENDS_IN_DATE_DIGITS)
ends_in_middle_initial = _at_end(segmenter.MIDDLE_INITIAL_END)
ends_in_upper_case = _at_end(segmenter.UPPER_CASE_END)
ends_before_lower = _at_end(segmenter.BEFORE_LOWER)  # segtok matches it from the start, but it begins with `.*?`


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order: not empty, stripped, one space where there was white space.

    Nothing but white space is lost. A line's end is a space; a blank line ends a sentence.
    """
    sentences: list[str] = []
    # Of white space, only the blank is printable.
    for paragraph in [text] if text.isprintable() else PARAGRAPH_END.split(text):
        for piece in _pieces(_single_blanks(paragraph)):
            sentences += filter(None, _split(piece))
    return sentences


def split_lines(text: str) -> list[str]:
    """The lines of a text that is split already: not empty, stripped, one space where there was white space."""
    lines = text.split("\n")
    if "  " in text or not "".join(lines).isprintable():
        lines = list(map(_single_blanks, lines))
    return [line for each in lines if (line := each.strip())]


def _single_blanks(paragraph: str) -> str:
    """White space to single blanks, none at the ends."""
    if paragraph.isprintable() and "  " not in paragraph:
        return paragraph.strip()
    if len(paragraph) < LONG_PARAGRAPH:
        return " ".join(paragraph.split())
    return UNUSUAL_BLANKS.sub(" ", paragraph).strip()


def _pieces(paragraph: str) -> Iterator[str]:
    if len(paragraph) <= PIECE_LENGTH:
        yield paragraph
    else:
        yield from (piece[0] for piece in PIECE.finditer(paragraph))


def _split(piece: str) -> Iterator[str]:
    """segtok's `split_multi` (and `_sentences`); the first sentence and the last may be empty."""
    sentence = ""
    for part in _parts(MARKER.split(piece)):
        if _goes_on(sentence, part):
            sentence += part
        else:
            yield sentence.strip()
            sentence = part
    yield sentence.strip()


def _parts(spans: list[str]) -> Iterator[str]:
    """segtok's `_abbreviation_joiner`. `spans` are text, marker, text, ..., marker, text."""
    part = ""
    for before, marker, after in zip(spans[:-1:2], spans[1::2], spans[2::2], strict=True):
        part += before + marker
        if not _is_within_sentence(before, marker, after):
            yield part
            part = ""
    yield part + spans[-1]


def _is_within_sentence(before: str, marker: str, after: str) -> bool:
    """Whether the marker stands alone or belongs to an abbreviation, a date or an initial."""
    last, first = before[-1:], after[:1]
    if last == " ":
        return True
    return marker[0] == "." and bool(
        ends_in_abbreviation(before)
        or (first not in NOT_LOWER and segmenter.LONE_WORD.match(after))
        or (last in DIGITS and ends_in_date_digits(before) and segmenter.MONTH.match(after))
        or (last not in NOT_UPPER and segmenter.UPPER_WORD_START.match(after) and ends_in_middle_initial(before))
    )


def _goes_on(sentence: str, part: str) -> bool:
    """Whether the part after a marker still belongs to the sentence."""
    if (
        part[:1] not in NOT_LOWER
        and segmenter.LOWER_WORD.match(part)
        and (ends_before_lower(sentence) or segmenter.CONTINUATIONS.match(part))
    ):
        return True  # each of the CONTINUATIONS is a LOWER_WORD
    if min(len(sentence), len(part)) >= segmenter.SHORT_SENTENCE_LENGTH:
        return False
    return any(
        _is_open(sentence, *brackets)
        and (
            _is_not_opened(part, *brackets)
            or sentence.endswith(" et al. ")
            or (segmenter.UPPER_CASE_START.match(part) and ends_in_upper_case(sentence))
        )
        for brackets in ("()", "[]")
    )


def _is_open(text: str, opening: str, closing: str) -> bool:
    """Whether more brackets open than close, from the first that opens on."""
    start = text.find(opening)
    return start >= 0 and text.count(opening, start) > text.count(closing, start)


def _is_not_opened(text: str, opening: str, closing: str) -> bool:
    """Whether more brackets close than open, up to the last that closes."""
    end = text.rfind(closing) + 1
    return text.count(closing, 0, end) > text.count(opening, 0, end)
