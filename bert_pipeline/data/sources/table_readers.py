"""Records of tables: .parquet and .arrow.

Memory holds a thousand rows at a time, of an Arrow file a record batch as it was written.
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

ROWS_TOGETHER = 1000
ARROW_FILE, END_OF_ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""https://arrow.apache.org/docs/format/Columnar.html, section Serialization and Interprocess Communication."""


def read_parquet(stream: Stream, wanted: Wanted) -> Records:
    with _seekable(stream) as file:
        table = pq.ParquetFile(file)
        _require_columns(wanted, table.schema_arrow)
        yield from _rows(table.iter_batches(batch_size=ROWS_TOGETHER, columns=list(wanted.fields)), wanted)


def read_arrow(stream: Stream, wanted: Wanted) -> Records:
    """Arrow's stream format, which `datasets` writes, or its file format."""
    with _seekable(stream) as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
        file.seek(0)
        if is_file:
            whole = pa.ipc.open_file(file)
            _require_columns(wanted, whole.schema)
            yield from _rows(map(whole.get_batch, range(whole.num_record_batches)), wanted)
            return
        batches = pa.ipc.open_stream(file)
        _require_columns(wanted, batches.schema)
        yield from _rows(batches, wanted)
        file.seek(-len(END_OF_ARROW_STREAM), io.SEEK_CUR)
        if file.read() != END_OF_ARROW_STREAM:  # a cut between two batches looks like an end to Arrow
            raise pa.ArrowInvalid("no end-of-stream mark at the end")


@contextmanager
def _seekable(stream: Stream) -> Iterator[Stream]:
    """The stream, or what a compressed one decompresses to on disk: the formats are read from their ends."""
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
        for start in range(0, len(batch), ROWS_TOGETHER):
            values = [_values(batch.column(name).slice(start, ROWS_TOGETHER)) for name in wanted.fields]
            for row in zip(*values, strict=True):
                number += 1
                yield number, dict(zip(wanted.fields, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    """Python values; text comes through bytes, since one undecodable value must not stop the whole column."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if any(is_text(column.type) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        column = column.cast(pa.large_binary())
    values = column.to_pylist()
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]


def _require_columns(wanted: Wanted, schema: pa.Schema) -> None:
    require(wanted.fields, schema.names)
    for name in wanted.text_fields:
        if pa.types.is_nested(kind := schema.field(name).type):
            raise SourceError(f"column {name} is nested ({kind}); remedy: write its text to a column of strings")
