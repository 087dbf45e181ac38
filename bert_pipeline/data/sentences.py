"""Text to sentences, by segtok (Leitner): written on statistics of PubMed Central, and the most accurate on
biomedical text of the libraries that benchmarks/sentences.py measures.
"""

import re

from segtok.segmenter import split_multi

PARAGRAPH_END = re.compile(r"\n\s*\n|\r\s*\r|\u2029")

# Where segtok joins what it split ("et al. " in a bracket) it reads the joined text again each time, so time may
# grow with the square of the length: a longer paragraph is handed over in pieces of at most 5,000 characters,
# that end before a capital after a full stop; else at a blank; else anywhere.
PIECE = re.compile(r".{1,5000}(?:(?<=[.?!] )(?=[A-Z])|\Z)|.{1,5000}(?<= )|.{1,5000}", re.DOTALL)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order: not empty, stripped, one space where there was white space.

    Nothing but white space is lost. A line's end is a space; a blank line ends a sentence.
    """
    sentences: list[str] = []
    for paragraph in PARAGRAPH_END.split(text):
        for piece in PIECE.findall(" ".join(paragraph.split())):
            sentences += [sentence for sentence in split_multi(piece) if sentence]
    return sentences
