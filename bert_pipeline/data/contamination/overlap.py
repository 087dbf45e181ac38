"""When a document holds an example of an evaluation set: the rule, and the index of examples.

By text: the document contains at least 90% of the example's words and at least 13 of them, or 20 of them in a row.
Smaller overlaps, such as 13 words of a longer sentence or a whole sentence of 8 words, are common phrases ("there were
no significant differences between the two groups", the definition of a drug). A copied abstract also contains short
and altered sentences, so if a document holds one example of a split by text, 50% of the words of another example of
this split are enough. By name: the document's id is the PMID of the example's article.
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
"""In words. Runs of 13 to 19 words shared by abstracts and longer BLURB examples are mostly phrases and definitions;
nearly all runs of 20 and more are copies."""
WHOLE, HALF = 0.9, 0.5
"""Shares of an example's words. WHOLE is below 1 because a word may have been corrected or tokenized differently."""
PMID = re.compile(r"(?:pmid[:\s]*|pubmed[:\s]*)?0*(\d{1,8})", re.IGNORECASE)

Rule = Literal["full", "partial", "pmid", "phrase"]
"""full, partial: held by text. pmid: held by name, with any overlap of text. phrase: not held."""


class EvaluationText(NamedTuple):
    """One example of an evaluation set."""

    task: str
    split: str
    example: str
    parts: tuple[str, ...]
    """Separate texts, such as a question and its context; no n-gram spans two parts."""
    pmid: str = ""
    """PMID of the example's article, if the set gives it."""


@dataclass(frozen=True)
class Holding:
    """The overlap of a document with an example."""

    number: int
    """Number of the example in the index."""
    task: str
    split: str
    example: str
    rule: Rule
    coverage: float
    """Share of the example's words that are covered by n-grams of the document. Pieces between placeholders with fewer
    than 8 words are not counted."""
    longest_run: int
    """Longest run of covered words."""
    same_pmid: bool

    @property
    def row(self) -> dict[str, Any]:
        """The fields to write: all but the number, which has no meaning without the index."""
        return {name: value for name, value in asdict(self).items() if name != "number"}


class EvaluationIndex:
    """A searchable index of evaluation examples. Its memory is proportional to the size of the evaluation sets."""

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
        """Load a saved index. The `parts` of its examples are empty."""
        rows = json.loads((folder / "examples.json").read_bytes())
        return cls([EvaluationText(*row) for row in rows], NgramIndex.load(folder))

    def search(self, ids: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[int, list[Holding]]]:
        """Yield (document number, its overlaps with examples) for documents with any overlap."""
        found = self.ngrams.find(texts)
        for number, document_id in enumerate(ids):
            matches, named = found.get(number), self._named(document_id)
            if matches or named:
                words = dict.fromkeys(named, (0, 0))
                if matches:
                    words |= {int(text): (int(count), int(run)) for text, count, run in zip(*matches, strict=True)}
                yield number, self._apply_rule(words, set(named))

    def _named(self, document_id: str) -> list[int]:
        pmid = PMID.fullmatch(document_id) if self._by_pmid else None
        return self._by_pmid.get(pmid[1], []) if pmid else []

    def _apply_rule(self, found: dict[int, tuple[int, int]], named: set[int]) -> list[Holding]:
        """Apply the rule in the head docstring. `found`: example -> (covered words, longest run); `named`: by PMID."""
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
