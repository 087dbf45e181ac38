"""Extract the running text of a JATS element as paragraphs.

    element -> one string, with marks at the ends of paragraphs and at the places of removed elements
            -> paragraphs, without the brackets, commas and spaces around removed elements

Marks are control characters, which XML 1.0 documents cannot contain.

Citations are removed together with their brackets and connecting words: "[1]–[3]", "(Smith, 2010; Jones, 2011)",
"(reviewed in ref. 4)", superscripts. A citation that is part of the sentence loses only its year: "as Smith et al.
(2010) showed" becomes "as Smith et al. showed". If only the year is tagged as a citation, as in "(Smith et al. 2010)",
the names are removed with it.

Also removed: tables, figures and their captions, formulas, notes, reference lists, labels, code, and sections outside
of the scientific text (acknowledgements, interests, funding, contributions, supplements). Superscripts and subscripts
are written as plain characters, as in PubMed abstracts: "10-5", "CO2".
"""

import re
from html.entities import html5
from typing import Any

from lxml import etree

BREAK, CITATION, YEAR, FORMULA = "\x01", "\x02", "\x03", "\x04"
NAMED, NAMED_END, RAISED, RAISED_END = "\x05", "\x06", "\x0e", "\x0f"

BLOCKS = frozenset(
    {
        "abstract", "body", "boxed-text", "def", "def-item", "def-list", "disp-quote", "list", "list-item", "p",
        "question", "answer", "sec", "speech", "speaker", "statement", "term", "verse-group", "verse-line",
    }
)  # fmt: skip
FORMULAS = frozenset(
    {
        "chem-struct", "disp-formula", "inline-formula", "inline-graphic", "private-char", "tex-math",
        "{http://www.w3.org/1998/Math/MathML}math",
    }
)  # fmt: skip
LEFT_OUT = frozenset(
    {
        "ack", "alternatives", "array", "attrib", "author-notes", "bio", "caption", "chem-struct-wrap",
        "chem-struct-wrapper", "citation", "citation-alternatives", "code", "disp-formula-group", "element-citation",
        "fig", "fig-group", "fn", "fn-group", "graphic", "index-term", "inline-media", "inline-supplementary-material",
        "kwd-group", "label", "media", "mixed-citation", "nlm-citation", "notes", "object-id", "permissions",
        "preformat", "ref-list", "related-article", "related-object", "response", "sec-meta", "sig-block",
        "sub-article", "supplementary-material", "table", "table-wrap", "table-wrap-foot", "table-wrap-group",
    }
)  # fmt: skip
NOTE_REFERENCES = frozenset({"aff", "author-notes", "contrib", "corresp", "fn", "table-fn"})
SECTION_TYPES_LEFT_OUT = frozenset({"ack", "coi-statement", "display-objects", "supplementary-material"})
SECTIONS_LEFT_OUT = frozenset(
    {
        "acknowledgement", "acknowledgements", "acknowledgment", "acknowledgments", "author contribution",
        "author contributions", "authors contribution", "authors contributions", "competing interest",
        "competing interests", "conflict of interest", "conflict of interest statement", "conflicts of interest",
        "declaration of competing interest", "declaration of interest", "declaration of interests",
        "declarations of interest", "disclosure", "disclosures", "financial support", "funding",
        "pre publication history", "references", "supplementary data", "supplementary material",
        "supplementary materials", "supporting information",
    }
)  # fmt: skip
"""Section titles in lower case, reduced to their words."""

WITHOUT_MARKS = dict.fromkeys(map(ord, (RAISED, RAISED_END)), "")
WITHOUT_MARKS |= dict.fromkeys(map(ord, (BREAK, CITATION, YEAR, FORMULA, NAMED, NAMED_END)), " ")
NO_APOSTROPHE = {ord(each): None for each in "'’"}

WORD = re.compile(r"[^\W\d_]+")
CITING_WORDS = frozenset(
    {
        "a", "also", "an", "and", "as", "but", "by", "cf", "described", "details", "discussed", "e", "earlier", "eg",
        "example", "for", "from", "g", "i", "ie", "in", "previously", "recent", "recently", "ref", "reference",
        "references", "refs", "reported", "review", "reviewed", "reviews", "see", "shown", "similar", "summarised",
        "summarized", "the", "therein",
    }
)  # fmt: skip
NAME_WORDS = frozenset({"al", "da", "de", "del", "den", "der", "di", "du", "et", "la", "le", "van", "von"})
YEAR_ALONE = re.compile(r"\W*(?:1[6-9]|20)\d\d[a-z]?\W*")
YEAR_AT_END = re.compile(r"[ ,]{0,2}(?:[(\[][\d ,;–-]+[a-z]?[)\]]|\b(?:1[6-9]|20)\d\d[a-z]?) ?$")

CITED = rf"(?:{CITATION}|{YEAR}|{NAMED}[^{NAMED_END}]*{NAMED_END})"
ANY_CITATION = re.compile(CITED)
CITED_IN_ROW = re.compile(rf"{CITED}(?:(?:[ ,;&–-]|\band\b)*{CITED})+")
RAISED_NUMBERS = re.compile(
    rf" ?{RAISED}(?:\d|{CITED}|[^\w{CITATION}{YEAR}{NAMED}{NAMED_END}{RAISED}{RAISED_END}])*{RAISED_END}"
)
INNERMOST_BRACKET = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
NAMED_IN_SENTENCE = re.compile(f"{NAMED}([^{NAMED_END}]*){NAMED_END}")
NAMED_ASIDE = re.compile(rf"(?<!\bin )(?<!\bby )(?<!\bof )(?<!\bsee )(?<!\bfrom ){NAMED}[^{NAMED_END}]*{NAMED_END}")
AFTER_BRACKET = re.compile(rf"(?<=[(\[]){CITATION}[ ,;:]*")
IS_BEFORE_BRACKET = re.compile(rf"{CITATION} ?[;)\]]")
BEFORE_BRACKET = re.compile(rf"(?:[ ,;:]|\band\b){{0,9}}{CITATION} ?(?=[;)\]])")
BETWEEN_STOPS = re.compile(rf"[,;:] ?[{CITATION}{FORMULA}] ?(?=[.,;:])|(?<=\.) ?{CITATION} ?\.")
BETWEEN_WORDS = re.compile(rf" {CITATION}(?=\w)")
EMPTY_BRACKET = re.compile(rf" ?[(\[][ ,;{FORMULA}]*[)\]]")
BEFORE_STOP = re.compile(rf" ?{FORMULA} ?(?=[.,;:)\]])")


def paragraphs(element: Any, section_titles: bool) -> tuple[str, ...]:
    """Return the non-empty paragraphs of an element, with single spaces; with `section_titles`, a title is a paragraph.

    Entities must be in `html.entities`; the parser must have removed comments and processing instructions.
    """
    marked: list[str] = []
    _mark(element, section_titles, marked)
    pieces = (" ".join(piece.split()) for piece in "".join(marked).split(BREAK))
    return tuple(text for piece in pieces if (text := " ".join(_without_residue(piece).split())))


def _mark(element: Any, section_titles: bool, marked: list[str]) -> None:
    marked.append(element.text or "")
    for child in element:
        name = child.tag
        if name is etree.Entity:
            marked.append(html5[child.name + ";"])
        elif name in BLOCKS:
            if name != "sec" or not _is_left_out(child):
                marked.append(BREAK)
                _mark(child, section_titles, marked)
            marked.append(BREAK)
        elif name == "title":
            if section_titles and element.tag != "abstract":
                _mark(child, section_titles, marked)
            marked.append(BREAK)
        elif name in FORMULAS:
            marked.append(FORMULA)
        elif name == "xref":
            _mark_reference(child, marked)
        elif name == "sup":
            marked.append(RAISED)
            _mark(child, section_titles, marked)
            marked.append(RAISED_END)
        elif name == "break":
            marked.append(" ")
        elif name not in LEFT_OUT:
            _mark(child, section_titles, marked)
        marked.append(child.tail or "")


def _is_left_out(section: Any) -> bool:
    title = section.find("title")
    words = [] if title is None else WORD.findall("".join(title.itertext()).lower().translate(NO_APOSTROPHE))
    return section.get("sec-type") in SECTION_TYPES_LEFT_OUT or " ".join(words) in SECTIONS_LEFT_OUT


def _mark_reference(reference: Any, marked: list[str]) -> None:
    kind = reference.get("ref-type")
    if kind in NOTE_REFERENCES:
        return
    inside: list[str] = []
    _mark(reference, False, inside)
    if kind != "bibr":
        marked += inside
        return
    text = "".join(inside).translate(WITHOUT_MARKS)
    if YEAR_ALONE.fullmatch(text):
        marked.append(YEAR)
    elif _words(text) <= CITING_WORDS or re.fullmatch(r"\W*\d+[a-z]\W*", text):
        marked.append(CITATION)
    else:
        marked += (NAMED, text, NAMED_END)


def _words(text: str) -> set[str]:
    return {word.lower() for word in WORD.findall(text)}


def _without_residue(text: str) -> str:
    if text.isprintable():  # no mark
        return text
    text = RAISED_NUMBERS.sub(lambda raised: CITATION if ANY_CITATION.search(raised[0]) else raised[0], text)
    text = text.replace(RAISED, "").replace(RAISED_END, "")
    if ANY_CITATION.search(text):
        text = INNERMOST_BRACKET.sub(_bracket, INNERMOST_BRACKET.sub(_bracket, text))  # (see Smith (2010) and ...)
        text = NAMED_IN_SENTENCE.sub(
            lambda named: YEAR_AT_END.sub("", named[1]) + CITATION, text.replace(YEAR, CITATION)
        )
        text = CITED_IN_ROW.sub(CITATION, text)
        text = AFTER_BRACKET.sub("", text)
        if IS_BEFORE_BRACKET.search(text):  # rare, and the pattern below is slow
            text = BEFORE_BRACKET.sub("", text)
        text = BETWEEN_WORDS.sub(" ", BETWEEN_STOPS.sub("", text))
        text = text.replace(f" {CITATION}", "").replace(CITATION, "")
    if FORMULA in text:
        text = BETWEEN_STOPS.sub("", text)
        text = EMPTY_BRACKET.sub(lambda bracket: "" if FORMULA in bracket[0] else bracket[0], text)
        text = BEFORE_STOP.sub("", text).replace(FORMULA, " ")
    return text


def _bracket(bracket: re.Match[str]) -> str:
    """Replace a bracket that holds only citations by one citation mark; otherwise keep its other parts."""
    kept, cited = [], False
    for part in bracket[1].split(";"):
        if not ANY_CITATION.search(part):
            kept.append(part)
            continue
        cited = True
        rest = ANY_CITATION.sub("", part)
        words = WORD.findall(rest)
        citing = CITING_WORDS | (NAME_WORDS if YEAR in part else set())
        if not all(word.lower() in citing or (YEAR in part and word[0].isupper()) for word in words):
            kept.append(NAMED_ASIDE.sub(CITATION, part).replace(YEAR, CITATION))
    if not cited:
        return bracket[0]
    if not any(map(str.strip, kept)):
        return CITATION
    return bracket[0][0] + ";".join(kept).lstrip() + bracket[0][-1]
