"""The source files of a corpus: which files, their release dates, and how to read each."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bert_pipeline import settings
from bert_pipeline.core.files import cached_digest
from bert_pipeline.core.progress import Progress
from bert_pipeline.data.sources.article_sets import CITATIONS
from bert_pipeline.data.sources.files import read_documents, root_element_of
from bert_pipeline.data.sources.folders import find_files, list_files
from bert_pipeline.data.sources.jats import ARTICLE_FIELDS
from bert_pipeline.data.sources.pubmed.mirror import RECORD, MirroredFile, read_record
from bert_pipeline.data.sources.pubmed.reader import pubmed_files, read_pubmed
from bert_pipeline.data.sources.records import Document, PassedOver, Rejection, SourceError, escaped, excerpt
from bert_pipeline.data.sources.wanted import require
from bert_pipeline.recipe import CorpusRecipe

SOURCES = "sources.jsonl"
"""Every corpus lists its source files in this file. Set corpus.sources_file to one to rebuild the same corpus."""

PASSED_OVER = "passed_over.jsonl"
"""The files of the folder that are not read, with the reason; a corpus without any lacks this file."""


@dataclass(frozen=True)
class SourceFile:
    """A line of sources.jsonl."""

    name: str
    bytes: int
    sha256: str
    released: str = ""
    """Date given by the server; empty if unknown."""


def source_files(section: CorpusRecipe) -> dict[str, Path]:
    """The source files of the corpus by name, in order; empty for the sample.

    Raises SourceError if there is no file, if corpus.cutoff needs a release date that is unknown, or if the files
    differ from corpus.sources_file.
    """
    if section.source == "sample":
        return {}
    files = (
        pubmed_files(settings.in_data_folder(section.path)) if section.source == "pubmed" else find_files(section.path)
    )
    if section.cutoff:
        files = _until(section, files)
    return _pinned(settings.in_data_folder(section.sources_file), files) if section.sources_file else files


def passed_over(section: CorpusRecipe, files: Mapping[str, Path]) -> list[PassedOver]:
    """What lies in the folder beside the source files (source = "files")."""
    if section.source != "files":
        return []
    listing = list_files(section.path)
    others = {name: path for name, path in listing.files.items() if name not in files}
    unlisted = [PassedOver(name, path.stat().st_size, "not in corpus.sources_file") for name, path in others.items()]
    return listing.passed_over + unlisted


def describe_sources(section: CorpusRecipe, files: dict[str, Path]) -> list[SourceFile]:
    """Describe the files. Raises SourceError if the SHA-256 of a file differs from the downloaded one."""
    fetched = _fetched(section)
    sources = []
    for name, path in files.items():
        source = SourceFile(name, path.stat().st_size, cached_digest(path))
        if known := fetched.get(name):
            if source.sha256 != known.sha256:
                raise SourceError(
                    f"{path}: its sha256 is {source.sha256}, but it was downloaded with {known.sha256}; "
                    "remedy: remove it, and run `bert-pipeline download-pubmed` again"
                )
            source = replace(source, released=known.released)
        sources.append(source)
    return sources


def write_sources(path: Path, sources: list[SourceFile]) -> None:
    path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in sources), encoding="utf-8")


def _fetched(section: CorpusRecipe) -> dict[str, MirroredFile]:
    """The files that `bert-pipeline download-pubmed` downloaded, by name."""
    if section.source != "pubmed":
        return {}
    return {each.name: each for each in read_record(settings.in_data_folder(section.path)).values()}


def read_source_files(
    section: CorpusRecipe, files: Mapping[str, Path], progress: Progress
) -> Iterator[Document | Rejection | PassedOver]:
    """Yield every record of the files, in order, and the members of archives that are not read."""
    for name, path in files.items():
        if section.source == "pubmed":
            yield from read_pubmed(name, path, progress.advance)
        elif root_element_of(name, path) == CITATIONS:
            yield from _citations(section, name, path, progress)
        else:
            yield from read_documents(
                {name: path},
                section.text_fields,
                section.id_field,
                progress,
                section.section_titles,
                section.csv_delimiter,
            )


def _citations(section: CorpusRecipe, name: str, path: Path, progress: Progress) -> Iterator[Document | Rejection]:
    """Read a set of PubMed citations, as efetch returns it: articles of which only title and abstract are known."""
    require(section.text_fields, ARTICLE_FIELDS, "field")
    if not name.lower().endswith((".xml", ".nxml", ".gz")):
        raise SourceError(f"{escaped(path)}: a <{CITATIONS}> in this compression; remedy: compress it as .gz")
    for record in read_pubmed(name, path, progress.advance):
        if isinstance(record, Rejection):
            yield record
            continue
        if record.deleted:
            raise SourceError(
                f"{escaped(path)}, record {record.number}: deletes citation {record.document_id}, as only PubMed's "
                'update files do; remedy: read these files with source = "pubmed"'
            )
        title, *abstract = record.texts
        by_field = {"title": [title], "abstract": abstract}
        texts = tuple(text for field in section.text_fields for text in by_field.get(field, ()) if text)
        if texts:
            yield record._replace(texts=texts)
        else:
            yield Rejection(name, f"record {record.number}", "document without text", excerpt(record.document_id))


def _until(section: CorpusRecipe, files: dict[str, Path]) -> dict[str, Path]:
    released = {name: each.released for name, each in _fetched(section).items()}
    for name, path in files.items():
        if not released.get(name):
            raise SourceError(
                f"{path}: its release date is unknown, but corpus.cutoff = {section.cutoff} needs it; "
                f"remedy: download the files with `bert-pipeline download-pubmed`, which records it in {RECORD}"
            )
    chosen = {name: path for name, path in files.items() if released[name] <= section.cutoff}
    if not chosen:
        raise SourceError(
            f"{section.path}: none of {len(files)} files was released by corpus.cutoff = {section.cutoff} "
            f"(the first on {min(released[name] for name in files)}); remedy: set a later cutoff"
        )
    return chosen


def _pinned(listing: Path, files: dict[str, Path]) -> dict[str, Path]:
    try:
        sources = [SourceFile(**json.loads(line)) for line in listing.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise SourceError(f"{listing}: no such file; remedy: correct corpus.sources_file") from None
    except (ValueError, TypeError) as error:
        raise SourceError(f"{listing}: not a valid {SOURCES}: {error}; remedy: use the {SOURCES} of a corpus") from None
    for each in sources:
        if each.name not in files:
            raise SourceError(f"{listing} lists {each.name}, which is missing; remedy: restore it")
        if (found := cached_digest(files[each.name])) != each.sha256:
            raise SourceError(
                f"{files[each.name]}: its sha256 is {found}, but {listing} lists {each.sha256}; "
                "remedy: restore the original file"
            )
    return {each.name: files[each.name] for each in sources}
