"""Read PubMed's files with our reader and with `pubmed_parser`, and compare their fields."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from benchmarks.children import Answer, answer
from bert_pipeline.core.files import peak_memory
from bert_pipeline.data.sources.pubmed.reader import Citation, Deletion, read_citations, read_pubmed

# Our citation in the form of each field of pubmed_parser: with its separators, and only the year of dates.
FIELDS = {
    "pmid": lambda mine: mine.pmid,
    "title": lambda mine: mine.title,
    "abstract": lambda mine: _abstract(mine),
    "journal": lambda mine: mine.journal,
    "nlm_unique_id": lambda mine: mine.nlm_unique_id,
    "pubdate": lambda mine: mine.date[:4],
    "mesh_terms": lambda mine: _terms(heading.descriptor for heading in mine.mesh),
    "publication_types": lambda mine: _terms(mine.publication_types),
    "keywords": lambda mine: "; ".join(mine.keywords),
    "languages": lambda mine: ";".join(mine.languages),
    "doi": lambda mine: mine.doi,
}
EXPLANATIONS = {
    "markup": "pubmed_parser 0.5.1 leaves out markup inside of markup: of <i>H<sub>2</sub>S</i> it gives H",
    "deletions": "pubmed_parser 0.5.1 passes over DeleteCitation",
    "versions": "pubmed_parser 0.5.1 gives no version of a PMID: two versions look like two of the same",
}


def ours(files: list[str], documents: bool) -> Answer:
    """`documents`: read titles and sections as the corpus does; otherwise read every field."""
    next(iter(read_citations(Path(files[0]))))  # compiles
    started = time.perf_counter()
    count = 0
    for file in files:
        for _ in read_pubmed("", Path(file)) if documents else read_citations(Path(file)):
            count += 1
    return {"tokens": count, "seconds": time.perf_counter() - started, "peak_mib": peak_memory() / 2**20}


def pubmed_parser(files: list[str]) -> Answer:
    from pubmed_parser import parse_medline_xml

    started = time.perf_counter()
    count = 0
    for file in files:
        for _ in parse_medline_xml(file):
            count += 1
    return {"tokens": count, "seconds": time.perf_counter() - started, "peak_mib": peak_memory() / 2**20}


def compare(files: list[str]) -> Answer:
    """Count equal fields of all citations, differences with a reason in EXPLANATIONS, and unexplained differences."""
    from pubmed_parser import parse_medline_xml

    equal: Counter[str] = Counter()
    explained: Counter[str] = Counter()
    unexplained = []
    for file in files:
        for mine, theirs in zip_longest(_citations(Path(file), explained), parse_medline_xml(file)):
            if mine is None or theirs is None:
                unexplained.append(f"{file}: {mine} beside {theirs}")
                break
            explained["versions"] += mine.version > 1
            for field, write in FIELDS.items():
                ours_written, their_text = write(mine), " ".join(theirs[field].split())
                if ours_written == their_text:
                    equal[field] += 1
                elif field in ("title", "abstract") and _is_part_of(their_text, ours_written):
                    explained["markup"] += 1
                else:
                    unexplained.append(f"{file}, PMID {mine.pmid}, {field}: {ours_written!r} beside {their_text!r}")
    told = {EXPLANATIONS[key]: count for key, count in explained.items() if count}
    return {"equal": equal, "explained": told, "unexplained": len(unexplained), "examples": unexplained[:5]}


def _citations(path: Path, explained: Counter[str]) -> Iterator[Citation]:
    for each in read_citations(path):
        if isinstance(each, Citation):
            yield each
        elif isinstance(each, Deletion):
            explained["deletions"] += 1
        else:
            raise ValueError(f"a broken record in a generated file: {each}")


def _abstract(mine: Citation) -> str:
    if len(mine.abstract) == 1:
        return mine.abstract[0].text
    parts = (part for label, _, text in mine.abstract for part in (label if label != "UNASSIGNED" else "", text))
    return " ".join(filter(None, parts))


def _terms(terms: Iterator) -> str:
    return "; ".join(f"{ui}:{name}" for ui, name in terms)


def _is_part_of(short: str, whole: str) -> bool:
    """Whether removing letters from `whole` gives `short`, ignoring spaces."""
    letters = iter(whole.replace(" ", ""))
    return len(short) < len(whole) and all(letter in letters for letter in short.replace(" ", ""))


if __name__ == "__main__":
    answer(ours, pubmed_parser, compare)
