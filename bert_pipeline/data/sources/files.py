"""Read documents from files, plain or compressed (.gz, .xz, .zst):

    .txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow     plain text, or records with fields
    .nxml, .xml, .tar                                     a JATS article, or an archive of articles

A folder written by `datasets` is read through its .arrow files.

A broken record becomes a Rejection, and reading continues with the next one. A broken file (missing, empty, cut short)
raises SourceError. Files are streamed: memory holds one record at a time.

A document without its own id gets the id `<file>:<number>`. The number counts from 1: the line on which the document
begins (.txt, .jsonl, .csv, .tsv), the row (.parquet, .arrow), the element or line (.json) or the member (.tar).
Articles have their own ids.
"""

import glob
import gzip
import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from bert_pipeline import settings
from bert_pipeline.core.progress import Progress
from bert_pipeline.data.sources.jats import Article
from bert_pipeline.data.sources.readers import READERS, UNIT
from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError, excerpt
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted

log = logging.getLogger(__name__)

SURROGATE = re.compile(r"[\ud800-\udfff]")
LETTER_OR_DIGIT = re.compile(r"[^\W_]")
RECORDS_PER_PROGRESS = 64  # records between two updates of the progress
NOTES_OF_DATASETS = re.compile(r"(state|dataset_info|dataset_infos|dataset_dict)\.json|cache-[0-9a-f]+\S*\.arrow")
"""Metadata and caches that `datasets` writes beside its data."""


def find_files(path: str) -> dict[str, Path]:
    """Return the files that a path, a folder or a glob selects, by relative name and in the order of these names.

    A relative path is resolved in BERT_PIPELINE_DATA (default: the current directory). For a folder or a glob, hidden
    files, other suffixes and the metadata of `datasets` are skipped. Raises SourceError if no file is found.
    """
    base, wanted = settings.data_folder(), Path(path).expanduser()
    root = base / wanted
    if root.is_file():
        if _suffixes(root)[0] not in READERS:
            raise SourceError(f"{root}: unknown suffix {root.suffix or '(none)'}; remedy: {_known_suffixes()}")
        return {root.name: root}
    if root.is_dir():
        folder, pattern = root, "**/*"
    elif glob.has_magic(path):
        fixed = next(number for number, part in enumerate(wanted.parts) if glob.has_magic(part))
        folder, pattern = base.joinpath(*wanted.parts[:fixed]), str(Path(*wanted.parts[fixed:]))
    else:
        raise SourceError(f"{root}: no such file or folder; remedy: correct corpus.path ({path}) or BERT_PIPELINE_DATA")
    found = {file.relative_to(folder).as_posix(): file for file in folder.glob(pattern) if file.is_file()}
    files = {
        name: found[name]
        for name in sorted(found)
        if _suffixes(found[name])[0] in READERS
        and not any(part.startswith(".") for part in Path(name).parts)
        and not NOTES_OF_DATASETS.fullmatch(found[name].name)
    }
    if not files:
        raise SourceError(f"{root}: {len(found)} files, none in a supported format; remedy: {_known_suffixes()}")
    if len(files) < len(found):
        log.info("%s: skipping %d hidden files, other suffixes or metadata of datasets", root, len(found) - len(files))
    return files


def read_documents(
    files: Mapping[str, Path],
    text_fields: tuple[str, ...],
    id_field: str = "",
    progress: Progress | None = None,
    section_titles: bool = False,
) -> Iterator[Document | Rejection]:
    """Yield every record of every file in order; `progress` counts the bytes read.

    Each of `text_fields` must be a string, and together they must contain a letter or a digit. A .txt file has neither
    fields nor ids. An article has the fields title, abstract and body, with one text per paragraph and, with
    `section_titles`, per section title; it needs no `id_field`. Raises SourceError if a file cannot be read to its end.
    """
    for name, path in files.items():
        suffix = _suffixes(path)[0]
        wanted = Wanted(("text",)) if suffix == ".txt" else Wanted(text_fields, id_field, section_titles)
        for number, record in _read_file(path, wanted, progress):
            document = _to_document(record, name, number, wanted)
            if isinstance(document, Fault):
                yield Rejection(name, f"{UNIT[suffix]} {number}", document.reason, document.excerpt)
            else:
                yield document


def _to_document(
    record: Mapping[str, Any] | Article | Fault, source: str, number: int, wanted: Wanted
) -> Document | Fault:
    if isinstance(record, Fault):
        return record
    if isinstance(record, Article):
        return _from_article(record, source, number, wanted.text_fields)
    return _from_fields(record, source, number, wanted.text_fields, wanted.id_field)


def _from_article(article: Article, source: str, number: int, text_fields: tuple[str, ...]) -> Document | Fault:
    texts = tuple(text for field in text_fields for text in getattr(article, field))
    if not any(map(LETTER_OR_DIGIT.search, texts)):
        return Fault("document without text", excerpt(article.article_id))
    return Document(
        article.article_id or f"{source}:{number}",
        texts,
        source,
        number,
        date=article.date,
        journal=article.journal,
        retracted=article.retracted,
        retracts=article.retracts,
    )


def _from_fields(
    fields: Mapping[str, Any], source: str, number: int, text_fields: tuple[str, ...], id_field: str
) -> Document | Fault:
    for field in text_fields:
        if fields.get(field) is None:
            return Fault(f"text field {field} is missing", excerpt(repr(fields)))
        if not isinstance(fields[field], str):
            return Fault(f"text field {field} is not a string", excerpt(repr(fields[field])))
    document_id = fields.get(id_field) if id_field else f"{source}:{number}"
    if type(document_id) is int:
        document_id = str(document_id)
    if not isinstance(document_id, str) or not document_id.strip():
        return Fault(f"id field {id_field} is not a string or an integer", excerpt(repr(document_id)))
    texts = tuple(fields[field] for field in text_fields)
    for text in (document_id, *texts):
        if not text.isascii() and (broken := SURROGATE.search(text)):
            reason = "bytes that are not UTF-8" if "\udc80" <= broken[0] <= "\udcff" else "half a surrogate pair"
            return Fault(reason, excerpt(text, broken.start()))
    if not any(map(LETTER_OR_DIGIT.search, texts)):
        return Fault("document without text", excerpt(" ".join(texts)))
    return Document(document_id, texts, source, number)


def _read_file(path: Path, wanted: Wanted, progress: Progress | None) -> Records:
    """Yield the numbered records of one file, decompressing it if necessary."""
    suffix, compression = _suffixes(path)
    number, counted = 0, 0
    try:
        with path.open("rb") as raw:
            for number, record in READERS[suffix](DECOMPRESSORS[compression](raw), wanted):
                yield number, record
                if progress and number % RECORDS_PER_PROGRESS == 0 and not raw.closed:
                    progress.advance(raw.tell() - counted)
                    counted = raw.tell()
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, OSError, pa.ArrowException) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # an error of the machine: no permission, broken disk
            raise
        raise SourceError(
            f"{path}: cut short or corrupt after {UNIT[suffix]} {number}: {error}; "
            "remedy: copy or download the file again"
        ) from error
    if not number:
        raise SourceError(f"{path}: empty, it holds no record; remedy: add records or remove the file")
    if progress and path.stat().st_size > counted:
        progress.advance(path.stat().st_size - counted)


def _suffixes(path: Path) -> tuple[str, str]:
    """Return format and compression: (".jsonl", ".gz") for texts.JSONL.gz."""
    name = path.name.lower()
    compression = next((suffix for suffix in DECOMPRESSORS if suffix and name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def _known_suffixes() -> str:
    compressions = ", ".join(filter(None, DECOMPRESSORS))
    return f"use {', '.join(READERS)}, optionally followed by {compressions}, and convert other formats to one of these"


DECOMPRESSORS: dict[str, Callable[[Stream], Stream]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lambda raw: lzma.LZMAFile(raw),  # noqa: SIM115
    ".zst": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
}
