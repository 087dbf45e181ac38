"""The ledger: one row per record of a shard of the corpus, kept or not.

It holds everything that resolution.py needs to decide which records become documents, so no text is read again. A
record is identified by its number in corpus order: file by file, and within a file shard by shard. All records with the
same id are in the same split, in their original order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.formats.tables import write_table

FOLDER = "records"
RECORDS_AT_A_TIME = 2**22
"""Records whose columns are in memory at once. All other memory is a few bytes per record of the corpus."""

SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("id_hash", pa.uint64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("number", pa.uint32(), nullable=False),  # of the record in its file
        pa.field("version", pa.uint16(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # of the record in the shard; -1: not stored
        pa.field("reason", pa.string(), nullable=False),  # why it is not stored
        pa.field("detail", pa.string(), nullable=False),
        pa.field("content", pa.uint64(), nullable=False),  # hash of id, version, date, journal and sentences
        pa.field("text", pa.uint64(), nullable=False),  # hash of the sentences
        pa.field("deleted", pa.bool_(), nullable=False),  # the record deletes its document
        pa.field("retracted", pa.bool_(), nullable=False),
        pa.field("retracts", pa.list_(pa.uint64()), nullable=False),  # hashes of the ids that this record retracts
    ]
)
"""If near duplicates are dropped, also `signature`: bytes, zero if the record is not stored (near_duplicates.py)."""


def write_ledger(path: Path, rows: list[dict[str, Any]], signatures: np.ndarray | None = None) -> None:
    """Write the ledger of one shard. `signatures`: (stored rows, size) uint8."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    if signatures is not None:
        column = np.zeros((len(rows), signatures.shape[1]), np.uint8)
        column[table["row"].to_numpy() >= 0] = signatures
        array = pa.Array.from_buffers(pa.binary(signatures.shape[1]), len(rows), [None, pa.py_buffer(column)])
        table = table.append_column("signature", array)
    write_table(path, table)


def signatures_of(column: pa.ChunkedArray) -> np.ndarray:
    """The signature column as a (rows, size) uint8 array."""
    array = column.combine_chunks()
    size = array.type.byte_width
    return np.frombuffer(array.buffers()[1], np.uint8)[array.offset * size :][: len(array) * size].reshape(-1, size)


@dataclass
class Ledger:
    """The ledgers of all shards, concatenated in corpus order."""

    corpus: Path
    shards: list[str]
    offsets: np.ndarray = field(init=False)  # (shards + 1,) int64: number of the first record of each shard

    def __post_init__(self) -> None:
        sizes = [pq.read_metadata(self._path(name)).num_rows for name in self.shards]
        self.offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    @classmethod
    def open(cls, corpus: Path, shards: Sequence[str], files: Sequence[str]) -> "Ledger":
        """Sort the shards into corpus order. `files`: the names of the source files, in order."""
        order = {name: number for number, name in enumerate(files)}

        def place(name: str) -> tuple[int, int]:
            first = next(pq.ParquetFile(_ledger_path(corpus, name)).iter_batches(1, columns=["source", "number"]))
            return order[first["source"][0].as_py()], first["number"][0].as_py()

        return cls(corpus, sorted(shards, key=place))

    def _path(self, shard: str) -> Path:
        return _ledger_path(self.corpus, shard)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def columns(self, *names: str) -> Iterator[tuple[slice, pa.Table]]:
        """Yield, for each shard, the slice of its record numbers and the columns."""
        for shard, start, end in zip(self.shards, self.offsets[:-1], self.offsets[1:], strict=True):
            yield slice(int(start), int(end)), pq.read_table(self._path(shard), columns=list(names))

    def parts(self, among: np.ndarray, key: str, *names: str) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield the records selected by `among`, (records,) bool, with their columns, in parts of a few million.

        Record numbers are ascending within a part. Records with equal keys are in the same part.
        """
        num_parts = -(-int(among.sum()) // RECORDS_AT_A_TIME)  # 0 if no record is selected
        for part in range(num_parts):
            found: list[np.ndarray] = []
            values: dict[str, list[np.ndarray]] = {name: [] for name in (key, *names)}
            for here, table in self.columns(key, *names):
                keys = table[key].to_numpy()
                chosen = np.flatnonzero(among[here] & (keys % num_parts == part))
                found.append(chosen + here.start)
                for name in values:
                    values[name].append(table[name].to_numpy()[chosen])
            yield np.concatenate(found), {name: np.concatenate(each) for name, each in values.items()}

    def take(self, records: np.ndarray, *names: str) -> pa.Table:
        """Columns of the given records; `records` is ascending."""
        tables = [pq.read_table(self._path(self.shards[0]), columns=list(names)).slice(0, 0)]
        ends = np.searchsorted(records, self.offsets)
        for shard in np.flatnonzero(np.diff(ends)):
            here = records[ends[shard] : ends[shard + 1]] - self.offsets[shard]
            tables.append(pq.read_table(self._path(self.shards[shard]), columns=list(names)).take(pa.array(here)))
        return pa.concat_tables(tables)


def _ledger_path(corpus: Path, shard: str) -> Path:
    return corpus / FOLDER / f"{shard}.parquet"
