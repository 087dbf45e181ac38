"""Shard files: names, writing and reading, for every stage that stores rows."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "heldout")


def shard_name(document_id: str) -> str:
    """The file stem of the shard whose first document has this id."""
    return f"shard-{id_hash(document_id) >> 5:015x}"


def shard_key(path: Path) -> int:
    """The 59-bit key in a shard's file name; it seeds the draws of the shard (core/randomness.py)."""
    return int(path.stem.removeprefix("shard-"), 16)


def id_hash(document_id: str) -> int:
    """A 64-bit hash of the id."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest())


def shard_paths(directory: Path, suffix: str) -> list[Path]:
    """The shards of a folder, sorted by name. Raises FileNotFoundError if there is none."""
    paths = sorted(directory.glob(f"shard-*.{suffix}"))
    if not paths:
        raise FileNotFoundError(f"{directory} holds no shard-*.{suffix}: the dataset is unfinished or lacks this split")
    return paths


def write_table(path: Path, table: pa.Table) -> None:
    """Write one shard: Parquet for documents, else Arrow's stream format, which `datasets` can memory-map."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Read a Parquet shard, or memory-map an Arrow shard."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def flat_list(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (values, offsets): row r is values[offsets[r]:offsets[r + 1]]. One chunk is not copied."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy(zero_copy_only=True), offsets


def list_array(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
