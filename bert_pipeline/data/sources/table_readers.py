"""Read records from tables: .parquet and .arrow.

Memory holds a thousand rows at a time; for an Arrow file, one record batch of the size in which it was written.
"""

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.data.sources.wanted import Records, Stream, Wanted, require

BATCH_ROWS = 1000
ARROW_FILE, END_OF_ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""https://arrow.apache.org/docs/format/Columnar.html, section Serialization and Interprocess Communication."""


def read_parquet(stream: Stream, wanted: Wanted) -> Records:
    with _seekable(stream) as file:
        table = pq.ParquetFile(file)
        _require_columns(wanted, table.schema_arrow)
        yield from _rows(table.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted.fields)), wanted)


def read_arrow(stream: Stream, wanted: Wanted) -> Records:
    """Read Arrow's stream format, which `datasets` writes, or its file format."""
    with _seekable(stream) as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
        file.seek(0)
        if is_file:
            table = pa.ipc.open_file(file)
            _require_columns(wanted, table.schema)
            yield from _rows(map(table.get_batch, range(table.num_record_batches)), wanted)
            return
        batches = pa.ipc.open_stream(file)
        _require_columns(wanted, batches.schema)
        yield from _rows(batches, wanted)
        file.seek(-len(END_OF_ARROW_STREAM), io.SEEK_CUR)
        if file.read() != END_OF_ARROW_STREAM:  # Arrow takes a cut between two batches for the end
            raise pa.ArrowInvalid("no end-of-stream mark at the end")


@contextmanager
def _seekable(stream: Stream) -> Iterator[Stream]:
    """Yield the stream, decompressed to a temporary file if necessary: the formats need random access."""
    if isinstance(stream, io.BufferedReader):
        yield stream
        return
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file)
        file.seek(0)
        yield file


def _rows(batches: Iterable[pa.RecordBatch], wanted: Wanted) -> Records:
    number = 0
    for batch in batches:
        for start in range(0, len(batch), BATCH_ROWS):
            values = [_values(batch.column(name).slice(start, BATCH_ROWS)) for name in wanted.fields]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(wanted.fields, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    """The column as Python values; text is decoded here, so that one undecodable value does not fail the column."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if any(is_text(column.type) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        column = column.cast(pa.large_binary())
    values = column.to_pylist()
    if getattr(column.type, "extension_name", "") == "arrow.uuid":
        return [None if value is None else str(value) for value in values]
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]


def _require_columns(wanted: Wanted, schema: pa.Schema) -> None:
    require(wanted.fields, schema.names)
    for name in wanted.text_fields:
        if pa.types.is_nested(kind := schema.field(name).type):
            raise SourceError(f"column {name} is nested ({kind}); remedy: write its text to a column of strings")
