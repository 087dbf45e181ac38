"""Shard files: how they are named, written and read.

A shard's key is a hash of the id of its first document, written as 15 hexadecimal digits. It names the shard in
every stage and in every draw, so what is in one shard does not depend on how many others there are.
"""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "heldout")


def shard_name(document_id: str) -> str:
    """The stem of the files of the shard that begins with this document."""
    return f"shard-{id_hash(document_id) >> 5:015x}"


def shard_key(path: Path) -> int:
    """The 59-bit number that a shard is drawn under; see randomness.py."""
    return int(path.stem.removeprefix("shard-"), 16)


def id_hash(document_id: str) -> int:
    """64 bits that are a function of the id alone."""
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest())


def shard_paths(directory: Path, suffix: str) -> list[Path]:
    """The shards of a folder in their order. Raises FileNotFoundError where there are none."""
    paths = sorted(directory.glob(f"shard-*.{suffix}"))
    if not paths:
        raise FileNotFoundError(f"{directory} holds no shard-*.{suffix}: not a finished dataset, or another split")
    return paths


def write_table(path: Path, table: pa.Table) -> None:
    """One shard: Parquet for documents, Arrow's stream format (what `datasets` memory-maps) for rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """A shard; an Arrow shard is memory-mapped, not read."""
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def flat_list(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (values, offsets): row r is values[offsets[r]:offsets[r + 1]]. No copy for one chunk."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    offsets = array.offsets.to_numpy()
    return array.values.to_numpy(zero_copy_only=True), offsets


def list_array(values: np.ndarray, offsets: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
