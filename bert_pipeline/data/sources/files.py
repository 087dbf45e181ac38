"""Documents from files, each also as .gz, .xz and .zst:

    .txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow     text, and records with fields
    .nxml, .xml, .tar                                     an article in JATS, and archives of such

A folder that `datasets` saved is read as its .arrow files.

A broken record becomes a Rejection, and reading goes on. A broken file (missing, empty, cut short) is a
SourceError. Files are streamed: memory holds a record at a time.

A document without an id of its own is named by its place: `<file>:<number>`, where the number is that of the line
it begins on (.txt, .jsonl, .csv, .tsv), of its row (.parquet, .arrow), of its element or line (.json) or of its member
(.tar), from 1. An article has an id of its own.
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
RECORDS_PER_LOOK = 64  # at how far the file is read
NOTES_OF_DATASETS = re.compile(r"(state|dataset_info|dataset_infos|dataset_dict)\.json|cache-[0-9a-f]+\S*\.arrow")
"""Beside its data, `datasets` keeps notes, and what it computed from the data."""


def find_files(path: str) -> dict[str, Path]:
    """The files that a path, a folder or a glob means, in the order of their names relative to it.

    A relative path is looked up under BERT_PIPELINE_DATA (default: the current directory). A folder or a glob
    passes over hidden files, other suffixes and what `datasets` keeps beside its data. Raises SourceError
    where nothing is found.
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
        raise SourceError(f"{root}: {len(found)} files, none of them readable; remedy: {_known_suffixes()}")
    if len(files) < len(found):
        log.info("%s: passing over %d hidden files, other suffixes or notes of datasets", root, len(found) - len(files))
    return files


def read_documents(
    files: Mapping[str, Path],
    text_fields: tuple[str, ...],
    id_field: str = "",
    progress: Progress | None = None,
    section_titles: bool = False,
) -> Iterator[Document | Rejection]:
    """Every record of every file, in their order; `progress` counts the bytes read.

    Each of `text_fields` must be a string; together they must hold a letter or a digit. A .txt file has neither
    fields nor ids. Of an article, the fields are title, abstract and body, each with a text for each paragraph and,
    where `section_titles` says so, for each section's title; its id needs no `id_field`. Raises SourceError from a
    file that cannot be read to its end.
    """
    for name, path in files.items():
        suffix = _suffixes(path)[0]
        wanted = Wanted(("text",)) if suffix == ".txt" else Wanted(text_fields, id_field, section_titles)
        for number, record in _read_file(path, wanted, progress):
            judged = _judge(record, name, number, wanted)
            if isinstance(judged, Fault):
                yield Rejection(name, f"{UNIT[suffix]} {number}", judged.reason, judged.excerpt)
            else:
                yield judged


def _judge(record: Mapping[str, Any] | Article | Fault, source: str, number: int, wanted: Wanted) -> Document | Fault:
    if isinstance(record, Fault):
        return record
    if isinstance(record, Article):
        return _article(record, source, number, wanted.text_fields)
    return _document(record, source, number, wanted.text_fields, wanted.id_field)


def _article(article: Article, source: str, number: int, text_fields: tuple[str, ...]) -> Document | Fault:
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


def _document(
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
    """The records of one file, whatever its compression."""
    suffix, compression = _suffixes(path)
    number, told = 0, 0
    try:
        with path.open("rb") as raw:
            for number, record in READERS[suffix](DECOMPRESSORS[compression](raw), wanted):
                yield number, record
                if progress and number % RECORDS_PER_LOOK == 0 and not raw.closed:
                    progress.advance(raw.tell() - told)
                    told = raw.tell()
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the machine's fault: no permission, disk broken
            raise
        raise SourceError(
            f"{path}: cut short or corrupt after {UNIT[suffix]} {number}: {error}; "
            "remedy: copy or download the file again"
        ) from error
    if not number:
        raise SourceError(f"{path}: empty, it holds no record; remedy: fill it or take it away")
    if progress and path.stat().st_size > told:
        progress.advance(path.stat().st_size - told)


def _suffixes(path: Path) -> tuple[str, str]:
    """Format and compression: texts.JSONL.gz is (".jsonl", ".gz")."""
    name = path.name.lower()
    compression = next((suffix for suffix in DECOMPRESSORS if suffix and name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def _known_suffixes() -> str:
    compressions = ", ".join(filter(None, DECOMPRESSORS))
    return f"name it {', '.join(READERS)}, each also with {compressions} after it, and convert what is none of these"


DECOMPRESSORS: dict[str, Callable[[Stream], Stream]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lambda raw: lzma.LZMAFile(raw),  # noqa: SIM115
    ".zst": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
}
