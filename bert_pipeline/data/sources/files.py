"""Documents from files: .txt, .jsonl, .csv and .parquet, each also as .gz, .xz and .zst.

A broken record becomes a Rejection, and reading goes on. A broken file (missing, empty, cut short) is a
SourceError. Files are streamed: memory holds a record at a time.

A document without an id of its own is named by its place: `<file>:<number>`, where the number is that of the line
it begins on (.txt, .jsonl, .csv) or of its row (.parquet), from 1.
"""

import csv
import glob
import gzip
import io
import json
import logging
import lzma
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.data.sources.records import Document, Fault, Rejection, SourceError, excerpt
from bert_pipeline.progress import Progress

log = logging.getLogger(__name__)

UNIT = {".txt": "line", ".jsonl": "line", ".csv": "line", ".parquet": "row"}
"""What the number of a record counts."""
SURROGATE = re.compile(r"[\ud800-\udfff]")
LETTER_OR_DIGIT = re.compile(r"[^\W_]")
RECORDS_PER_LOOK = 64  # at how far the file is read


Stream = Any  # a file of bytes: those of io, gzip, lzma and pyarrow share no type
Records = Iterator[tuple[int, Mapping[str, Any] | Fault]]
"""Number of the line or row, and its fields."""


def find_files(path: str) -> dict[str, Path]:
    """The files that a path, a folder or a glob means, in the order of their names relative to it.

    A relative path is looked up under BERT_PIPELINE_DATA (default: the current directory). A folder or a glob
    passes over hidden files and other suffixes. Raises SourceError where nothing is found.
    """
    base, wanted = Path(os.environ.get("BERT_PIPELINE_DATA") or "."), Path(path).expanduser()
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
        if _suffixes(found[name])[0] in READERS and not any(part.startswith(".") for part in Path(name).parts)
    }
    if not files:
        raise SourceError(f"{root}: {len(found)} files, none of them readable; remedy: {_known_suffixes()}")
    if len(files) < len(found):
        log.info("%s: passing over %d hidden files or other suffixes", root, len(found) - len(files))
    return files


def read_documents(
    files: Mapping[str, Path],
    text_fields: tuple[str, ...],
    id_field: str = "",
    progress: Progress | None = None,
) -> Iterator[Document | Rejection]:
    """Every record of every file, in their order; `progress` counts the bytes read.

    Each of `text_fields` must be a string; together they must hold a letter or a digit. A .txt file has neither
    fields nor ids. Raises SourceError from a file that cannot be read to its end.
    """
    for name, path in files.items():
        suffix = _suffixes(path)[0]
        fields, ids = (("text",), "") if suffix == ".txt" else (text_fields, id_field)
        for number, record in _read_file(path, (*fields, *filter(None, [ids])), progress):
            judged = record if isinstance(record, Fault) else _document(record, name, number, fields, ids)
            if isinstance(judged, Fault):
                yield Rejection(name, f"{UNIT[suffix]} {number}", judged.reason, judged.excerpt)
            else:
                yield judged


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
            return Fault("bytes that are not UTF-8, or half a surrogate pair", excerpt(text, broken.start()))
    if not any(map(LETTER_OR_DIGIT.search, texts)):
        return Fault("document without text", excerpt(" ".join(texts)))
    return Document(document_id, texts, source, number)


def _read_file(path: Path, columns: tuple[str, ...], progress: Progress | None) -> Records:
    """The records of one file, whatever its compression."""
    suffix, compression = _suffixes(path)
    number, told = 0, 0
    try:
        with path.open("rb") as raw:
            for number, record in READERS[suffix](DECOMPRESSORS[compression](raw), columns):
                yield number, record
                if progress and number % RECORDS_PER_LOOK == 0 and not raw.closed:
                    progress.advance(raw.tell() - told)
                    told = raw.tell()
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException) as error:
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


def _lines(stream: Stream, newline: str | None) -> Iterable[str]:
    """Lines without a byte order mark; undecodable bytes become lone surrogates, for `_document` to find."""
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=newline)


def _read_txt(stream: Stream, columns: tuple[str, ...]) -> Records:
    """Blank lines stand between documents."""
    number = 0
    for blank, group in groupby(_lines(stream, newline=None), str.isspace):
        lines = list(group)
        if not blank:
            yield number + 1, {"text": "".join(lines)}
        number += len(lines)


def _read_jsonl(stream: Stream, columns: tuple[str, ...]) -> Records:
    for number, line in enumerate(_lines(stream, newline="\n"), 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Fault("line is not JSON", excerpt(line, getattr(error, "pos", 0)))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            yield number, Fault("line is not a JSON object", excerpt(line))


def _read_csv(stream: Stream, columns: tuple[str, ...]) -> Records:
    """Comma-separated, quoted by `"`, the first row names the columns (RFC 4180)."""
    csv.field_size_limit(2**31 - 1)  # Python's own limit is 131,072 characters: one long article
    last_line = ""

    def remembered() -> Iterator[str]:
        nonlocal last_line
        for line in _lines(stream, newline=""):
            last_line = line
            yield line

    rows = csv.reader(remembered(), strict=True)
    try:
        header = next((row for row in rows if row), [])
    except csv.Error as error:
        raise SourceError(f"line {rows.line_num}: the header is not CSV: {error}: {excerpt(last_line)!r}") from None
    if header:
        _require(columns, header)
    begins = rows.line_num + 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise SourceError(f'line {begins}: a quoted field never ends; remedy: write "" for a " in it') from None
            yield begins, Fault("row is not CSV", excerpt(last_line))
        else:
            if row is None:
                return
            if len(row) == len(header):
                yield begins, dict(zip(header, row, strict=True))
            elif row:
                found = f"{len(row)} for {len(header)} columns: {','.join(row)}"
                yield begins, Fault("row with a wrong number of fields", excerpt(found))
        begins = rows.line_num + 1


def _read_parquet(stream: Stream, columns: tuple[str, ...]) -> Records:
    with tempfile.TemporaryFile() as seekable:
        if not isinstance(stream, io.BufferedReader):  # Parquet is read from its end: decompress it first
            shutil.copyfileobj(stream, seekable)
            stream = seekable
        table = pq.ParquetFile(stream)
        _require(columns, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=1000, columns=list(columns)):
            values = [_values(batch.column(name)) for name in columns]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(columns, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    """Python values; text comes through bytes, since one undecodable value must not stop the whole column."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values = column.to_pylist()
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]


def _require(wanted: tuple[str, ...], columns: list[str]) -> None:
    for name in wanted:
        if name not in columns:
            raise SourceError(
                f"no column {name}; the columns are {', '.join(map(excerpt, columns))}; "
                "remedy: name one of them in corpus.text_fields or corpus.id_field"
            )


def _suffixes(path: Path) -> tuple[str, str]:
    """Format and compression: texts.JSONL.gz is (".jsonl", ".gz")."""
    name = path.name.lower()
    compression = next((suffix for suffix in DECOMPRESSORS if suffix and name.endswith(suffix)), "")
    return Path(name.removesuffix(compression)).suffix, compression


def _known_suffixes() -> str:
    compressions = ", ".join(filter(None, DECOMPRESSORS))
    return f"name it {', '.join(READERS)}, each also with {compressions} after it, and convert what is none of these"


READERS: dict[str, Callable[[Stream, tuple[str, ...]], Records]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
DECOMPRESSORS: dict[str, Callable[[Stream], Stream]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lambda raw: lzma.LZMAFile(raw),  # noqa: SIM115
    ".zst": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
}
