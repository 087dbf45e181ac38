"""Cleaning rules: named functions that remove what publishers, databases and converters left in a text.

A rule takes a text (a title, an abstract or a part of one, an article) and returns it without one kind of residue.
When in doubt a rule keeps the text: residue costs a few odd tokens, but a removed sentence is lost. Each rule was
written for residue found in real citations, articles and trial records, and its effect was reviewed on them.

Rules are pure and idempotent, and run in time linear in the length of any text. A cheap test (`"<" in text`) precedes
each search, because most texts hold no residue. Rules run before Unicode normalization and the removal of control
characters, because an entity may encode such a character, and a soft hyphen at a line's end marks a split word.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from html import unescape
from html.entities import html5

Rule = Callable[[str], str]

PASSES = 4

GREEK_LETTERS = dict(
    re.findall(
        r"(\w+):(\w)",
        "a:α b:β g:γ d:δ e:ε z:ζ ee:η th:θ i:ι k:κ l:λ m:μ n:ν x:ξ o:ο p:π r:ρ sf:ς s:σ t:τ u:υ ph:φ kh:χ ps:ψ oh:ω",
    )
)
GREEK_ENTITIES = {f"{name}gr": letter for name, letter in GREEK_LETTERS.items()}
GREEK_ENTITIES |= {f"{name.upper()}gr": letter.upper() for name, letter in GREEK_LETTERS.items()}
"""Names from ISO 8879 (ISOgrk1), used by SGML of the 1990s and unknown to HTML: "&mgr;" is μ."""

ENTITY = re.compile(r"&(?:amp;)*+(?:(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)?")

INLINE = (
    "a abbr b bold big em ext-link font i inf inline-formula italic monospace named-content overline sc small span "
    "strike strong styled-content sub sup tt u underline xref"
)
BLOCK = (
    "abstract abstracttext blockquote body br center copyrightinformation div fig h1 h2 h3 h4 h5 h6 head hr html label "
    "li list list-item ol p sec table tbody td tfoot th thead title tr ul"
)
BLOCK_NAMES = frozenset(BLOCK.split())
TAG = re.compile(
    rf"<(?P<closing>/)?(?:[a-z]{{1,5}}:)?(?P<name>{'|'.join((INLINE + ' ' + BLOCK).split())}|mml:[a-z]{{1,20}})"
    r"""(?:\s++[\w:-]++\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'))*+\s*+/?>"""
    r"|<!--[^<>]*-->|<\?[a-z][^<>]*\?>|<!\[CDATA\[|\]\]>",
    re.IGNORECASE,
)
END_TAG = re.compile(r"</([a-z])\s*>", re.IGNORECASE)
ATTRIBUTES = re.compile(r'(?:(?:xmlns:\w{1,20}|xlink:\w{1,20}|id)="[^"<>]*+"\s*+){1,20}+/?>')

LATEX = re.compile(r"\\documentclass(?:(?!\\documentclass|\\end\{document\}).)*+\\end\{document\}", re.DOTALL)
MATHTYPE = re.compile(r"MathType@MTEF@\S*+")

LINE_END_HYPHEN = re.compile(r"(?<!\w)(\w++)([-\u2010\u00ad])[ \t]*+\r?\n[ \t]*+(?=(\w++))")
WORD = re.compile(r"[a-z]++(?:-[a-z]++)*+")
SUSPENDED = re.compile("and|or|to|versus|vs|but")
FIRST_OF_COMPOUND = re.compile(
    "double|non|long|high|low|self|short|well|cross|first|single|two|three|half|all|end|time|dose|age|large|small|real"
    "|follow|evidence|quasi|life|cost|four|five|six|ten|whole|steady|early|late|full|year"
)
SECOND_OF_COMPOUND = re.compile(
    "acting|activated|adjusted|adrenergic|aged|analys[ie]s|associated|based|binding|blind|blockers?|cell|containing"
    "|controlled|converting|deficit|dependent|derived|diabetic|dimensional|dose|effective|effectiveness|free|group"
    "|guided|hypertensive|independent|induced|inflammatory|invasive|label|lasting|life|like|line|linked|matched"
    "|mediated|negative|old|onset|operative|positive|randomi[sz]ed|receptor|regulated|related|reported|resistant"
    "|response|risk|sectional|selective|sensitive|sided|specific|stage|steroidal|stimulated|term|threatening|time"
    "|tolerated|traumatic|treated|type|year"
)
"""The most frequent first and second parts of words that citations write with a hyphen."""
BARE_PREFIX = re.compile("ad|con|de|dis|in|re|un")
WORD_ENDS = ("ing", "ment", "tion", "sion", "ness", "able", "ally")

MISREAD = re.compile(
    "[ÂÃÎÏ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â[\u0080-\u00bf€‚„†ˆ‰][\u0080-\u00bf€-™œžŸ]"
    r"|(?<=[\w.,;:)%])Â(?= )"
)

TRUNCATED = re.compile(r" ?[(\[]?ABSTRACT TRUNCATED(?: AT \d{2,4} WORDS)?[)\]]?\.?(?:\s+\Z)?")

NOTE = (
    r"\[(?:corrected(?:; erratum[^][]{0,40})?|References?: \d+|\d+ refs?|(?:Systematic )?Review|(?:see )?comments?"
    r"|(?:(?:published )?errat(?:um|a)|(?:corrected and )?republished|retraction|comment|update|summary|original)"
    r" (?:appears? (?:in|with)|of|in|on|for patients in|from|report in)\b(?:[^][]|\[[^][]{1,40}\]){3,200}+)\]"
)
EDITORIAL = re.compile(rf"(?<=[.?!])(?: ?{NOTE}\.?)++| ?{NOTE}| ?\(author's transl\)")
FIRST_NOTE = re.compile(NOTE)
PLACE = r"[(\[](?:formula|figure|table|symbol|equation|structure)[:,;]? see text[)\]]"
PLACEHOLDER = re.compile(rf" {PLACE}(?!\w)|{PLACE}", re.IGNORECASE)
TRANSLATED = re.compile(r"\s*+\[([^][]{2,}+(?:\[[^][]*+\][^][]*+)*+)\](\.?)\s*+(?:\[[A-Z][a-z]+\])?\s*+")

SUPPLEMENTS = re.compile(
    r" ?Click here for (?:additional data )?file\b\.?"
    r"| ?The pre-publication history for this paper can be accessed here:"
    r"(?: ?(?:xmlns:\S{1,80}>)?https?://www\.biomedcentral\.com/\S{1,60}prepub)?"
)

NOTICE_LENGTH = 500
"""Characters at the end of a text that are searched for a copyright notice."""
SIGNS: tuple[str, ...] = ("opyright", "©", "(c)", "(C)", "c19", "c20", "Author", "blished", "PsycINFO")
SIGNS += ("rights", "ccess art", "Thieme", "nment work")
"""Every notice contains one of these strings."""
NOTICE = re.compile(
    r"""
    \(?\b(?:Crown\s)?[Cc]opyright\s*
      (?:
        (?:©|@|\([cC]\)|\(copyright\))\s*(?:(?:19|20)\d\d\b|[A-Z]|by\s|the\s[Aa]uthor|\Z)
      | (?:by\s)?(?:19|20)\d\d\b
      | \Z
      )
    | \(copyright\)(?:\s(?:(?:19|20)\d\d\b|[A-Z])|\Z)
    | \(PsycINFO\sDatabase\sRecord
    | (?:\A|(?<=[.?!)\]"'”;:%])|(?<=[.?!)\]"'”;:%]\s))
      (?:
        ©\s?(?:[Cc]opyright\s)?(?:(?:19|20)\d\d\b|[A-Z])
      | \([cC]\)\s?(?:[Cc]opyright\s)?(?:19|20)\d\d\b(?:[,.]?\s(?:[A-Z]|by\s|the\s[Aa]uthor)|\.?\s*\Z)
      | \([cC]\)\s?(?:[Cc]opyright\s)?[Tt]he\s[Aa]uthor
      | c(?:19|20)\d\d\s[A-Z]
      | Copyright\s(?!Act|Law|Clearance|Office|Agency)[A-Z][^.]{1,60}?
        (?:,?\s(?:19|20)\d\d\b|Press\b|Inc\b|Ltd\b|Publish|Society|Association|Elsevier|Wiley)
      | (?:19|20)\d\d\s[Tt]he\sAuthors?\b
      | The\sAuthors?(?:\(s\))?[,]?\s(?:19|20)\d\d\b
      | Published\s(?:(?:19|20)\d\d\s)?by\s[A-Z]
      | All\srights(?:\sare)?\sreserved
      | This\sarticle\sis\sprotected\sby\scopyright
      | (?:Published\s(?:19|20)\d\d\.\s)?This\sarticle\sis\sa\sU\.?S\.?\sGovernment\swork
      | This\sis\san\s[Oo]pen[\s-][Aa]ccess\sarticle
      | (?:Georg\s)?Thieme\sVerlag
      )
    """,
    re.VERBOSE,
)
STANDING_PHRASE = re.compile(
    r"[Aa]ll rights(?: are)? reserved|This article is protected by copyright"
    r"|This (?:article )?is an? (?:[Oo]pen[ -][Aa]ccess|[^.]{0,12}?U\.?S\.? Government) (?:[^.]|\.(?=\S))*+\.?"
    r"|which permits (?:[^.]|\.(?=\S))*+\.?|and is in the public domain[^.]*+"
)
PROSE = re.compile(
    r"\b(?:was|were|is|are|been|has|have|had|we|our|can|may|will|should|must|show(?:ed|s)?|suggests?|after|during|between"
    r"|among|than)\b|\w:\s|[<=]"
)


def until_unchanged(rule: Rule) -> Rule:
    """Repeat a rule until it changes nothing. A text that still changes after PASSES passes is returned unchanged.

    The result of one pass may be residue for the next ("&amp;lt;" is an entity within an entity). The limit bounds the
    time for texts that nest residue deeper than real ones do.
    """

    @wraps(rule)
    def repeated(text: str) -> str:
        before = text
        for _ in range(PASSES + 1):
            after = rule(before)
            if after == before:
                return after
            before = after
        return text

    return repeated


@until_unchanged
def entities(text: str) -> str:
    """Replace entities that were escaped twice or never decoded: "p &amp;lt; 0.05" -> "p < 0.05", "&mgr;g" -> "μg".

    Without a semicolon ("W&A"), or with a name unknown to HTML and to ISO 8879's Greek, they are kept as text.
    """
    return ENTITY.sub(_character, text) if "&" in text and ";" in text else text


def _character(entity: re.Match[str]) -> str:
    name = entity[1]
    if not name:
        return "&"
    if name in GREEK_ENTITIES:
        return GREEK_ENTITIES[name]
    return unescape(f"&{name};") if name.startswith("#") or f"{name};" in html5 else f"&{name};"


@until_unchanged
def latex(text: str) -> str:
    """Remove the LaTeX document and the MathType code of formulas that PMC also gives as text:
    "was \\documentclass[12pt]{minimal} ... \\end{document}ηp2 = 0.2" -> "was ηp2 = 0.2".
    """
    if "\\documentclass" in text:
        text = LATEX.sub("", text)
    return MATHTYPE.sub("", text) if "MathType@" in text else text


@until_unchanged
def markup(text: str) -> str:
    """Remove tags of HTML, PubMed and JATS: "CD4<sup>+</sup> cells" -> "CD4+ cells". Block tags become a space.

    A tag has a name of these languages and well-formed attributes; a tag with a one-letter name also needs an end tag
    somewhere. So "p < 0.05 and n > 3", "</=70" and the mean "<z>" are kept.
    """
    if ">" not in text:
        return text
    if "<" in text:
        ended = {name.lower() for name in END_TAG.findall(text)}
        text = TAG.sub(lambda tag: _without(tag, ended), text)
    return ATTRIBUTES.sub("", text) if '="' in text else text


def _without(tag: re.Match[str], ended: set[str]) -> str:
    name = (tag["name"] or "").lower()
    if len(name) == 1 and name not in ended:
        return tag[0]
    return " " if name in BLOCK_NAMES else ""


@until_unchanged
def hyphenation(text: str) -> str:
    """Join words split at a line's end: "treat-\\nment" -> "treatment", "dose-\\ndependent" -> "dose-dependent".

    The hyphen is kept if the text elsewhere writes the word with it, if the word looks like a common biomedical
    compound, or if a side is not in lower case ("IL-\\n2"). "pre-\\nand" becomes "pre- and".
    """
    if "\n" not in text or not LINE_END_HYPHEN.search(text):
        return text
    words = set(WORD.findall(text.lower()))
    return LINE_END_HYPHEN.sub(lambda cut: _joined(cut[1], cut[2], cut[3], words), text)


def _joined(first: str, hyphen: str, second: str, words: set[str]) -> str:
    if hyphen == "\u00ad":
        return first
    if SUSPENDED.fullmatch(second):
        return f"{first}{hyphen} "
    if not (first.isalpha() and second.isalpha() and second.islower() and first[-1].islower()):
        return first + hyphen
    before = first.lower()
    if f"{before}{second}" in words:
        return first
    is_compound = (
        f"{before}-{second}" in words
        or (SECOND_OF_COMPOUND.fullmatch(second) and not BARE_PREFIX.fullmatch(before))
        or (FIRST_OF_COMPOUND.fullmatch(before) and len(second) > 3 and not second.endswith(WORD_ENDS))
    )
    return first + hyphen if is_compound else first


@until_unchanged
def misread(text: str) -> str:
    """Decode UTF-8 that was read as Windows-1252: "Â£84, 6 Ã— 10(-3)" -> "£84, 6 × 10(-3)"."""
    return MISREAD.sub(_reread, text) if any(first in text for first in "ÂÃÎÏâ") else text


def _reread(characters: re.Match[str]) -> str:
    if characters[0] == "Â":  # the rest of a no-break space whose second byte became a space
        return ""
    try:
        return b"".join(c.encode("latin-1" if c < "\u0100" else "cp1252") for c in characters[0]).decode("utf-8")
    except UnicodeDecodeError:
        return characters[0]


@until_unchanged
def truncation(text: str) -> str:
    """Remove NLM's mark from the years when it cut long abstracts: "and ended.(ABSTRACT TRUNCATED AT 250 WORDS)"."""
    return TRUNCATED.sub("", text) if "TRUNCATED" in text else text


@until_unchanged
def editorial_notes(text: str) -> str:
    """Remove cataloguers' notes in titles and abstracts: "20 ml [corrected]", "[References: 36]", "[published erratum
    appears in ...]", "(author's transl)".
    """
    return EDITORIAL.sub("", text) if FIRST_NOTE.search(text) or "(author's transl)" in text else text


@until_unchanged
def translated_titles(text: str) -> str:
    """Remove the brackets around a title that NLM translated, and the language: "[Fast electrons]. [German]"."""
    if not text[:8].lstrip().startswith("["):
        return text
    title = TRANSLATED.fullmatch(text)
    return title[1] + (title[2] or "") if title else text


@until_unchanged
def placeholders(text: str) -> str:
    """Remove marks for what could not be typed: "between groups ([Formula: see text])", "[symbol: see text]"."""
    return PLACEHOLDER.sub("", text) if "see text" in text else text


@until_unchanged
def supplements(text: str) -> str:
    """Remove links to supplementary files: "Click here for additional data file."."""
    return SUPPLEMENTS.sub("", text) if "Click here for" in text or "pre-publication history" in text else text


@until_unchanged
def copyright_notices(text: str) -> str:
    """Remove notices at the end: "... in mice. Copyright (c) 2020 Elsevier Inc. All rights reserved." -> "... in mice."

    Only names and years may follow the sign up to the end of the text. A sentence with a verb ("Copyright law is
    discussed.") and a sign in the middle ("JMP© 8.0.1") are kept.
    """
    end = text[-NOTICE_LENGTH:]
    if any(sign in end for sign in SIGNS):
        for notice in NOTICE.finditer(text, len(text) - len(end)):
            if not PROSE.search(STANDING_PHRASE.sub("", text[notice.start() :])):
                return text[: notice.start()].rstrip()
    return text


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        entities,
        latex,
        markup,
        hyphenation,
        misread,
        truncation,
        editorial_notes,
        translated_titles,
        placeholders,
        supplements,
        copyright_notices,
    )
}
"""In the order in which they must run: an entity may hide a tag, a note may follow a notice."""


def apply_rules(texts: Sequence[str], rules: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    """Apply the named rules in this order; return the texts and the names of the rules that changed any of them.

    A text may become empty. Raises KeyError for a name that is not in RULES.
    """
    cleaned, changed = tuple(texts), []
    for name in rules:
        before, rule = cleaned, RULES[name]
        cleaned = tuple(map(rule, before))
        if cleaned != before:
            changed.append(name)
    return cleaned, changed
