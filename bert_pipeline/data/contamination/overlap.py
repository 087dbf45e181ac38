"""When a document holds an example of an evaluation set: the rule, and the index of all examples that it asks.

By text: the document holds at least nine tenths of the example's words, and no fewer than 13, or 20 of them in a row.
Less than that, down to 13 words of a longer sentence or a whole one of 8, is what everybody writes ("there were no
significant differences between the two groups", the definition of a drug). But of an abstract that is copied the
short and the altered sentences are copied, too: where a document holds one example of a split, half of another's
words are enough. By name: the document's id is the PMID that the example is from.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bert_pipeline.data.contamination.ngrams import NGRAM_WORDS, NgramIndex
from bert_pipeline.store import artifact

LONG_RUN = 20
"""Words. Runs of 13 to 19 that abstracts share with longer examples of BLURB are mostly phrases and definitions;
those of 20 and more are copies, but for a few."""
WHOLE, HALF = 0.9, 0.5
"""Shares of an example's words. Not all of them, because one may have been mended or tokenised in another way."""
PMID = re.compile(r"(?:pmid[:\s]*|pubmed[:\s]*)?0*(\d{1,8})", re.IGNORECASE)

Rule = Literal["full", "partial", "pmid", "phrase"]
"""full, partial: held by text. pmid: held by name, whatever of the text was found. phrase: not held."""


class EvaluationText(NamedTuple):
    """One example of an evaluation set."""

    task: str
    split: str
    example: str
    parts: tuple[str, ...]
    """Texts that do not run into one another: a question and its context."""
    pmid: str = ""
    """Of the article that the example is from, where the set tells."""


@dataclass(frozen=True)
class Holding:
    """What a document has of an example."""

    number: int
    """Of the example in the index."""
    task: str
    split: str
    example: str
    rule: Rule
    coverage: float
    """Share of the example's words that stand in n-grams which the document holds. Of an example cut by dummies, the
    words of its pieces of fewer than 8 words are not counted."""
    longest_run: int
    """Words in a row."""
    same_pmid: bool

    @property
    def row(self) -> dict[str, Any]:
        """What is written of it: the number says nothing without the index."""
        return {name: value for name, value in asdict(self).items() if name != "number"}


class EvaluationIndex:
    """The examples of evaluation sets, to be looked for in documents. Its memory is that of the sets."""

    def __init__(self, examples: Sequence[EvaluationText], ngrams: NgramIndex | None = None) -> None:
        self.examples = list(examples)
        self.ngrams = ngrams or NgramIndex.build([each.parts for each in self.examples])
        groups: dict[tuple[str, str], int] = {}
        self._group = np.array([groups.setdefault(each[:2], len(groups)) for each in self.examples], np.int32)
        self._by_pmid: dict[str, list[int]] = {}
        for number, each in enumerate(self.examples):
            if each.pmid:
                self._by_pmid.setdefault(each.pmid, []).append(number)

    @cached_property
    def fingerprint(self) -> str:
        return artifact.fingerprint({"examples": self.examples})

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "examples.json").write_text(json.dumps([each._replace(parts=()) for each in self.examples]))
        self.ngrams.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "EvaluationIndex":
        """Without the texts."""
        rows = json.loads((folder / "examples.json").read_bytes())
        return cls([EvaluationText(*row) for row in rows], NgramIndex.load(folder))

    def search(self, ids: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[int, list[Holding]]]:
        """(number of a document, what it has of each example), for the documents that have anything."""
        found = self.ngrams.find(texts)
        for number, document_id in enumerate(ids):
            matches, named = found.get(number), self._named(document_id)
            if matches or named:
                words = dict.fromkeys(named, (0, 0))
                if matches:
                    words |= {int(text): (int(count), int(run)) for text, count, run in zip(*matches, strict=True)}
                yield number, self._judged(words, set(named))

    def _named(self, document_id: str) -> list[int]:
        pmid = PMID.fullmatch(document_id) if self._by_pmid else None
        return self._by_pmid.get(pmid[1], []) if pmid else []

    def _judged(self, found: dict[int, tuple[int, int]], named: set[int]) -> list[Holding]:
        """The rule at the head of this file; `found`: words and longest run of each example."""
        share = {number: words / max(1, int(self.ngrams.num_words[number])) for number, (words, _) in found.items()}
        evident = {
            number
            for number, (words, run) in found.items()
            if run >= LONG_RUN or (words >= NGRAM_WORDS and share[number] >= WHOLE)
        }
        copied = {int(self._group[number]) for number in evident}
        holdings = []
        for number, (_, run) in sorted(found.items()):
            rule: Rule = "pmid" if number in named else "phrase"
            if number in evident or (share[number] >= HALF and int(self._group[number]) in copied):
                rule = "full" if share[number] >= WHOLE else "partial"
            example = self.examples[number]
            holdings.append(Holding(number, *example[:3], rule, round(share[number], 4), run, number in named))
        return holdings
