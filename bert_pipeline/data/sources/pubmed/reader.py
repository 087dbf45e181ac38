"""Read PubMed as NLM distributes it: citations and deletions from the annual baseline and the daily updates.

    file -> records, broken ones rejected (records.py) -> citations, deletions (citation.py) -> documents

A file is read as a stream, in the order of its records.
"""

import logging
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from bert_pipeline.data.sources.pubmed.citation import Citation, Deletion, parse_record
from bert_pipeline.data.sources.pubmed.listing import FOLDERS, NAME
from bert_pipeline.data.sources.pubmed.records import Broken, read_records
from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError

log = logging.getLogger(__name__)

MIRROR_NOTES = re.compile(NAME.pattern + r"\.md5|files\.jsonl")
"""Files of a mirror (mirror.py) that hold no records."""

NO_LABEL = ("", "UNLABELLED")
NO_TITLE = "Not Available"
BRACKETS = re.compile(r"\[([^][]*(?:\[[^][]*\][^][]*)*)\](\.?)")


def read_pubmed(
    name: str, path: Path, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Document | Rejection]:
    """Yield the records of `read_citations` as documents of the file `name`: the title, then each abstract section.

    The title is texts[0], even if it is empty. A section with a label starts with it ("METHODS: "). NLM puts translated
    titles into brackets, which are removed.
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
    """Yield every record of a .xml or .xml.gz file in order; `on_bytes` receives the number of file bytes read.

    A Rejection names the byte offset in the uncompressed XML. Raises SourceError if the file cannot be read to its end.
    """
    return _read(path.name, path, on_bytes)


def pubmed_files(folder: Path) -> dict[str, Path]:
    """Return the files pubmedYYnNNNN.xml.gz in the folder, its baseline/ and its updatefiles/, ordered by number.

    Other names, and links that lead out of the folder, are skipped. Raises SourceError if there is no such file, if the
    files are of two years, or if two files have the same number.
    """
    found: dict[int, Path] = {}
    years = set()
    for path in sorted(path for part in ("", *FOLDERS) for path in (folder / part).glob("*")):
        named = NAME.fullmatch(path.name)
        if not named or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            if not (MIRROR_NOTES.fullmatch(path.name) or path.is_dir()):
                log.warning("skipping %r: not a PubMed file name, or not a regular file in this folder", str(path))
            continue
        number = int(named[2])
        if number in found:
            raise SourceError(f"{path}: has the same number as {found[number]}; remedy: delete one of them")
        found[number] = path
        years.add(named[1])
    if not found:
        raise SourceError(
            f"{folder}: contains no PubMed file; remedy: correct corpus.path, run "
            f'`bert-pipeline download-pubmed --out {folder}`, or read citations from efetch with source = "files" and '
            'text_fields = ["title", "abstract"]'
        )
    if len(years) > 1:
        raise SourceError(
            f"{folder}: files of the years {' and '.join(sorted(years))}; remedy: keep the files of one "
            "year, because each annual baseline replaces all earlier files"
        )
    numbers = sorted(found)
    missing = [
        f"{before + 1}" if after == before + 2 else f"{before + 1}-{after - 1}"
        for before, after in pairwise(numbers)
        if after > before + 1
    ]
    if missing:
        log.warning(
            "%s: the files with the numbers %s are missing, and their records with them", folder, ", ".join(missing)
        )
    return {found[number].name: found[number] for number in numbers}


def _read(name: str, path: Path, on_bytes: Callable[[int], None]) -> Iterator[Citation | Deletion | Rejection]:
    number, last = 0, "no PMID"
    try:
        for record in read_records(path, on_bytes):
            for each in [record.fault] if isinstance(record, Broken) else parse_record(record, number + 1):
                number += 1
                if isinstance(each, Fault):
                    place = f"record {number}, byte {record.offset}, after {last}"
                    yield Rejection(name, place, each.reason, each.excerpt)
                else:
                    last = f"PMID {each.pmid}"
                    yield each
    except SourceError as error:
        raise SourceError(
            f"{path}: {error}; {number} records were read before, the last good one with {last}; "
            "remedy: download the file again"
        ) from error


def _without_brackets(title: str) -> str:
    """Remove NLM's brackets: [A translated title]. keeps its text, [Not Available]. becomes empty."""
    found = BRACKETS.fullmatch(title)
    if not found:
        return title
    return "" if found[1] == NO_TITLE else found[1] + found[2]
