"""PubMed's files by our reader, by `pubmed_parser`, and their fields beside each other."""

import time
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from benchmarks.children import Answer, answer
from bert_pipeline.data.sources.pubmed.reader import Citation, Deletion, read_citations, read_pubmed

# Their field, as we would write it. Separators are theirs; of dates they give the year.
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
    """`documents`: as the corpus takes them, titles and sections; else every field."""
    next(iter(read_citations(Path(files[0]))))  # compiled
    started = time.perf_counter()
    count = 0
    for file in files:
        for _ in read_pubmed("", Path(file)) if documents else read_citations(Path(file)):
            count += 1
    return {"tokens": count, "seconds": time.perf_counter() - started, "peak_mib": _peak_mib()}


def pubmed_parser(files: list[str]) -> Answer:
    from pubmed_parser import parse_medline_xml

    started = time.perf_counter()
    count = 0
    for file in files:
        for _ in parse_medline_xml(file):
            count += 1
    return {"tokens": count, "seconds": time.perf_counter() - started, "peak_mib": _peak_mib()}


def compare(files: list[str]) -> Answer:
    """Field by field of every citation: how often it is equal, differs as EXPLANATIONS tell, or differs otherwise."""
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
    """Whether letters can be taken out of `whole` so that `short` is left, white space aside."""
    letters = iter(whole.replace(" ", ""))
    return len(short) < len(whole) and all(letter in letters for letter in short.replace(" ", ""))


def _peak_mib() -> float:
    """Of this process alone, which the largest resident size of getrusage is not: that begins at the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    answer(ours, pubmed_parser, compare)
