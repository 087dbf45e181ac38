"""PubMed as NLM distributes it: citations and deletions, from the files of its annual baseline and daily updates.

    file -> records, broken ones set aside (pubmed_records.py) -> citations, deletions (pubmed_citation.py) -> documents

A file is read as a stream, in the order of its records.
"""

import logging
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from bert_pipeline.data.sources.pubmed.citation import Citation, Deletion, judge
from bert_pipeline.data.sources.pubmed.records import Broken, read_records
from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError

log = logging.getLogger(__name__)

FOLDERS = ("", "baseline", "updatefiles")
FILE_NAME = re.compile(r"pubmed([0-9]{2})n([0-9]{4,5})\.xml\.gz")
BESIDE = re.compile(FILE_NAME.pattern + r"\.md5|files\.jsonl")

NO_LABEL = ("", "UNLABELLED")
NO_TITLE = "Not Available"
BRACKETS = re.compile(r"\[([^][]*(?:\[[^][]*\][^][]*)*)\](\.?)")


def read_pubmed(
    name: str, path: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Document | Rejection]:
    """What `read_citations` gives, as documents of the file `name`: title and abstract, section by section.

    The title is texts[0] even where it is empty. A section that has a label begins with it ("METHODS: "). A translated
    title, which NLM puts into brackets, loses them.
    """
    for record in _read(name, path, on_bytes):
        if isinstance(record, Citation):
            sections = (text if label in NO_LABEL else f"{label}: {text}" for label, _, text in record.abstract if text)
            yield Document(
                record.pmid,
                (_without_brackets(record.title), *sections),
                name,
                record.number,
                record.version,
                record.date,
                record.journal,
                record.retracted,
                tuple(link.pmid for link in record.links if link.kind == "RetractionOf" and link.pmid),
            )
        elif isinstance(record, Deletion):
            yield Document(record.pmid, (), name, record.number, record.version, deleted=True)
        else:
            yield record


def read_citations(
    path: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Citation | Deletion | Rejection]:
    """Every record of a .xml or .xml.gz file in its order; `on_bytes` is told the bytes of the file as they are taken.

    Raises SourceError where the file cannot be read to its end. A Rejection tells the byte of the file's XML.
    """
    return _read(path.name, path, on_bytes)


def pubmed_files(folder: Path) -> dict[str, Path]:
    """The files pubmedYYnNNNN.xml.gz in the folder, its baseline/ and its updatefiles/, in the order of their numbers.

    Other names, and links out of the folder, are passed over. Raises SourceError where there are none, where they are
    of two years, and where one stands there twice.
    """
    found: dict[int, Path] = {}
    years = set()
    for path in sorted(path for part in FOLDERS for path in (folder / part).glob("*")):
        named = FILE_NAME.fullmatch(path.name)
        if not named or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            if not (BESIDE.fullmatch(path.name) or path.is_dir()):
                log.warning("passing over %r: not named as a file of PubMed, or no file in its folder", str(path))
            continue
        number = int(named[2])
        if number in found:
            raise SourceError(f"{path}: stands there as {found[number]}, too; remedy: delete one of them")
        found[number] = path
        years.add(named[1])
    if not found:
        raise SourceError(
            f"{folder}: no file of PubMed in it; remedy: correct corpus.path, or run "
            f"`bert-pipeline download-pubmed --out {folder}`"
        )
    if len(years) > 1:
        raise SourceError(
            f"{folder}: files of the years {' and '.join(sorted(years))}; remedy: keep those of one year, "
            "because each year's baseline replaces all that was before"
        )
    numbers = sorted(found)
    missing = [
        f"{before + 1}" if after == before + 2 else f"{before + 1}-{after - 1}"
        for before, after in pairwise(numbers)
        if after > before + 1
    ]
    if missing:
        log.warning("%s: no files of the numbers %s; what stands in them is missing", folder, ", ".join(missing))
    return {found[number].name: found[number] for number in numbers}


def _read(name: str, path: Path, on_bytes: Callable[[int], None]) -> Iterator[Citation | Deletion | Rejection]:
    number, last = 0, "no PMID"
    try:
        for record in read_records(path, on_bytes):
            for each in [record.fault] if isinstance(record, Broken) else judge(record, number + 1):
                number += 1
                if isinstance(each, Fault):
                    place = f"record {number}, byte {record.offset}, after {last}"
                    yield Rejection(name, place, each.reason, each.excerpt)
                else:
                    last = f"PMID {each.pmid}"
                    yield each
    except SourceError as error:
        raise SourceError(
            f"{path}: {error}; {number} records came before it, the last good one of {last}; "
            "remedy: download the file again"
        ) from error


def _without_brackets(title: str) -> str:
    """NLM writes [A title that it translated]. and, for want of any, [Not Available]."""
    found = BRACKETS.fullmatch(title)
    if not found:
        return title
    return "" if found[1] == NO_TITLE else found[1] + found[2]
