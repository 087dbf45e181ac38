"""Read documents from files, plain or compressed (.gz, .xz, .bz2, .zst):

    .txt, .text, .md                                      plain text
    .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow  records with fields
    .nxml, .xml, .tar                                     a JATS article, a set or an archive of articles
    .zip                                                  an archive of all these, read like a folder

A folder written by `datasets` is read through its .arrow files.

A broken record becomes a Rejection, and reading continues with the next one. A broken file (missing, empty, cut short)
raises SourceError. Files are streamed: memory holds one record at a time.

A document without its own id gets the id `<file>:<number>`. The number counts from 1: the line on which the document
begins (.txt, .jsonl, .csv, .tsv), the row (.parquet, .arrow), the element or line (.json) or the member (.tar).
Articles have their own ids. A document of a .zip has the id `<file>/<member>:<number>`.
"""

import itertools
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import pyarrow as pa

from bert_pipeline.core.progress import Progress
from bert_pipeline.data.sources.archives import zip_members
from bert_pipeline.data.sources.article_sets import BEGINNING, root_element
from bert_pipeline.data.sources.folders import reason_to_pass_over_member
from bert_pipeline.data.sources.formats import DECOMPRESSORS, SIGNATURE_BYTES, ZIP, check_content, suffixes
from bert_pipeline.data.sources.jats import Article
from bert_pipeline.data.sources.readers import JATS_SUFFIXES, PLAIN_TEXT_SUFFIXES, READERS, UNIT
from bert_pipeline.data.sources.records import Document, Fault, PassedOver, Rejection, SourceError, escaped, excerpt
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted

SURROGATE = re.compile(r"[\ud800-\udfff]")
LETTER_OR_DIGIT = re.compile(r"[^\W_]")
RECORDS_PER_PROGRESS = 64  # records between two updates of the progress


def read_documents(
    files: Mapping[str, Path],
    text_fields: tuple[str, ...],
    id_field: str = "",
    progress: Progress | None = None,
    section_titles: bool = False,
    csv_delimiter: str = "",
) -> Iterator[Document | Rejection | PassedOver]:
    """Yield every record of every file in order, and the members of .tar archives that are not read; `progress` counts
    the bytes read.

    Each of `text_fields` must be a string, and together they must contain a letter or a digit. A file of plain text has
    neither fields nor ids. An article has the fields title, abstract and body, with one text per paragraph and, with
    `section_titles`, per section title; it needs no `id_field`. Raises SourceError if a file cannot be read to its end.
    """
    wanted = Wanted(text_fields, id_field, section_titles, csv_delimiter)
    for name, path in files.items():
        if suffixes(name)[0] == ZIP:
            yield from _read_zip(name, path, wanted, progress)
            continue
        for number, record in _read_file(name, path, wanted, progress):
            yield _to_document(record, name, number, wanted)


def root_element_of(name: str, path: Path) -> str:
    """The root element of an XML file; empty for other formats."""
    suffix, compression = suffixes(name)
    if suffix not in JATS_SUFFIXES:
        return ""
    try:
        with path.open("rb") as raw:
            return root_element(DECOMPRESSORS[compression](raw).read(BEGINNING))
    except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException):  # reading the file reports the cause
        return ""


def _read_zip(
    name: str, path: Path, wanted: Wanted, progress: Progress | None
) -> Iterator[Document | Rejection | PassedOver]:
    """Yield the records of each member like those of a file. Document.number counts the documents of the archive."""
    count, member, shown = itertools.count(1), "", escaped(path)
    try:
        with path.open("rb") as raw:
            check_content(name, raw.read(SIGNATURE_BYTES), shown)
            with ZipFile(raw) as archive:
                for info, fault in zip_members(archive):
                    member = f"{name}/{info.filename}"
                    if reason_to_pass_over_member(info.filename):
                        continue
                    shown = f"{escaped(path)}/{info.filename}"
                    if fault:
                        yield Rejection(member, "member", fault.reason, fault.excerpt)
                        continue
                    with archive.open(info) as stream:
                        for number, record in _read_stream(stream, member, shown, wanted):
                            document = _to_document(record, member, number, wanted)
                            if isinstance(document, Document):
                                document = document._replace(source=name, number=next(count))
                            yield document
                    if progress:
                        progress.advance(info.compress_size)
                rest = path.stat().st_size - sum(each.compress_size for each in archive.infolist())
    except NotImplementedError as error:  # zipfile's error for a compression method that it cannot read
        raise SourceError(f"{shown}: {error}; remedy: pack the archive with another method, such as deflate") from error
    except BadZipFile as error:
        raise SourceError(f"{shown}: cut short or corrupt: {error}; remedy: copy or download the file again") from error
    if not member:
        raise SourceError(f"{shown}: empty, it holds no readable file; remedy: add files or remove the archive")
    if progress:
        progress.advance(max(0, rest))


def _to_document(
    record: Mapping[str, Any] | Article | Fault | PassedOver, source: str, number: int, wanted: Wanted
) -> Document | Rejection | PassedOver:
    if isinstance(record, PassedOver):
        return record
    suffix = suffixes(source)[0]
    if isinstance(record, Article):
        found = _from_article(record, source, number, wanted.text_fields)
    elif isinstance(record, Fault):
        found = record
    elif suffix in PLAIN_TEXT_SUFFIXES:
        found = _from_fields(record, source, number, ("text",), "")
    else:
        found = _from_fields(record, source, number, wanted.text_fields, wanted.id_field)
    if isinstance(found, Document):
        return found
    return Rejection(source, f"{UNIT[suffix]} {number}", found.reason, found.excerpt)


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
    for field, text in zip((id_field, *text_fields), (document_id if id_field else "", *texts), strict=True):
        if broken := _broken_character(text):
            reason = "bytes that are not UTF-8" if "\udc80" <= broken[0] <= "\udcff" else "half a surrogate pair"
            return Fault(f"{reason}, in field {field}", excerpt(text, broken.start()))
    if not any(map(LETTER_OR_DIGIT.search, texts)):
        return Fault("document without text", excerpt(" ".join(texts)))
    return Document(document_id, texts, source, number)


def _broken_character(text: str) -> re.Match[str] | None:
    """The first lone surrogate. Encoding finds out whether there is one ten times as fast as a search."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.search(text)
    return None


def _read_file(name: str, path: Path, wanted: Wanted, progress: Progress | None) -> Records:
    """Yield the numbered records of one file."""
    counted = 0
    with path.open("rb") as raw:
        for number, record in _read_stream(raw, name, escaped(path), wanted):
            yield number, record
            if progress and number % RECORDS_PER_PROGRESS == 0 and not raw.closed:
                progress.advance(raw.tell() - counted)
                counted = raw.tell()
    if progress and path.stat().st_size > counted:
        progress.advance(path.stat().st_size - counted)


def _read_stream(raw: Stream, name: str, shown: str, wanted: Wanted) -> Records:
    """Yield the numbered records of a file or of a member of an archive, decompressing it if necessary.

    `shown` names it in errors.
    """
    suffix, compression = suffixes(name)
    number, is_empty = 0, True
    check_content(name, raw.peek(SIGNATURE_BYTES)[:SIGNATURE_BYTES], shown)
    try:
        for number, record in READERS[suffix](DECOMPRESSORS[compression](raw), replace(wanted, file=name)):
            is_empty = is_empty and isinstance(record, PassedOver)
            yield number, record
    except SourceError as error:
        raise SourceError(f"{shown}: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, BadZipFile, OSError, pa.ArrowException) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # an error of the machine: no permission, broken disk
            raise
        raise SourceError(
            f"{shown}: cut short or corrupt after {UNIT[suffix]} {number}: {error}; "
            "remedy: copy or download the file again"
        ) from error
    if is_empty:
        raise SourceError(f"{shown}: empty, it holds no record; remedy: add records or remove the file")
