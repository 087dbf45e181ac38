"""The raw corpus on disk, and its reader.

    {train,heldout}/shard-<key>.parquet            one row per document
    records/{train,heldout}/shard-<key>.parquet    one row per record of the shard, kept or not (data/corpus/ledger.py)
    live.parquet                                   one row per shard: which of its rows belong to this corpus
    dropped.parquet                                one row per dropped record, with the reason

A shard depends only on its own source files. Other files may supersede, delete or duplicate its documents; live.parquet
records which rows to skip, so a growing corpus keeps its existing shards unchanged.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.formats.tables import write_table
from bert_pipeline.store import artifact

CORPUS_SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("sentences", pa.list_(pa.string()), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # name of the source file
        pa.field("version", pa.uint16(), nullable=False),  # version of a citation; 1 for other sources
        pa.field("date", pa.string(), nullable=False),  # of publication, as precise as known: 2018-05, 2018, ""
        pa.field("journal", pa.string(), nullable=False),
        pa.field("num_sentences", pa.uint32(), nullable=False),
        pa.field("num_words", pa.uint32(), nullable=False),
    ]
)

LIVE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),  # train/shard-<key>
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("documents", pa.uint32(), nullable=False),  # rows, except those in left_out
        pa.field("left_out", pa.list_(pa.int32()), nullable=False),  # row numbers to skip, ascending
    ]
)

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("detail", pa.string(), nullable=False),  # "stays: 123 (...), similarity 0.91"; "87 words"; ""
        pa.field("shard", pa.string(), nullable=False),  # the shard that holds its text; "": none
        pa.field("row", pa.int32(), nullable=False),  # its row in that shard; -1: none
    ]
)

LIVE, DROPPED = "live.parquet", "dropped.parquet"
BATCH_DOCUMENTS = 1_000


@dataclass(frozen=True)
class CorpusShard:
    """A shard of a raw corpus; the rows in `left_out` are not documents of this corpus."""

    path: Path
    sha256: str
    num_documents: int
    left_out: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """train/shard-<key>"""
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def digest(self) -> str:
        """Fingerprint of the content, for the shards that later stages build from it."""
        return artifact.fingerprint({"sha256": self.sha256, "left_out": self.left_out})

    def batches(self, *columns: str) -> Iterator[pa.RecordBatch]:
        """Yield its documents in batches of at most BATCH_DOCUMENTS."""
        before, left_out = 0, np.array(self.left_out, np.int64)
        file = pq.ParquetFile(self.path)
        for batch in file.iter_batches(BATCH_DOCUMENTS, columns=list(columns), use_threads=False):
            here = left_out[np.searchsorted(left_out, before) : np.searchsorted(left_out, before + len(batch))] - before
            before += len(batch)
            if len(here):
                stays = np.ones(len(batch), bool)
                stays[here] = False
                batch = batch.filter(pa.array(stays))
            yield batch

    def read(self, *columns: str) -> pa.Table:
        schema = pa.schema([CORPUS_SCHEMA.field(column) for column in columns])
        return pa.Table.from_batches(list(self.batches(*columns)), schema)


def corpus_shards(corpus: Path, split: str) -> list[CorpusShard]:
    """The shards of a split that hold documents, sorted by name. Raises FileNotFoundError if there is none."""
    path = corpus / LIVE
    rows = pq.read_table(path).to_pylist() if path.is_file() else []
    shards = [
        CorpusShard(corpus / f"{row['shard']}.parquet", row["sha256"], row["documents"], tuple(row["left_out"]))
        for row in rows
        if row["documents"] and row["shard"].startswith(f"{split}/")
    ]
    if not shards:
        raise FileNotFoundError(f"{path} names no shard of {split}: the corpus is unfinished or lacks this split")
    return sorted(shards, key=lambda shard: shard.name)


def write_live(corpus: Path, shards: Iterable[CorpusShard]) -> None:
    rows = [
        {"shard": shard.name, "sha256": shard.sha256, "documents": shard.num_documents, "left_out": shard.left_out}
        for shard in sorted(shards, key=lambda shard: shard.name)
    ]
    write_table(corpus / LIVE, pa.Table.from_pylist(rows, LIVE_SCHEMA))


def iterate_documents(corpus: Path, split: str) -> Iterator[list[str]]:
    """Yield the sentences of every document of a split, shard by shard, in constant memory."""
    for shard in corpus_shards(corpus, split):
        for batch in shard.batches("sentences"):
            yield from batch.column(0).to_pylist()
