"""Which records become documents of the corpus, given all other records. The rules, in this order:

    same id           PubMed: keep the latest version, unless it was deleted later; other sources: keep the first record
    retracted         if the recipe says so, drop documents whose own record or whose retraction notice says "retracted"
    same text         of documents with the same sentences, keep the first
    near duplicate    drop a document that is similar to an earlier one that is kept (near_duplicates.py)

The result equals a replay of all records in corpus order. If the latest version has the same content as an earlier
record, the row of the earlier record is kept, so a revision that changes nothing in the corpus moves no document.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline.data.corpus import near_duplicates
from bert_pipeline.data.corpus.ledger import Ledger, signatures_of
from bert_pipeline.formats.corpus import DROPPED, DROPPED_SCHEMA, CorpusShard, write_live

LIVES, NOT_STORED, SUPERSEDED, UNCHANGED, DELETED, RETRACTED, SAME_ID, SAME_TEXT, NEAR = range(9)
REASONS = {
    SUPERSEDED: "superseded by a later version",
    UNCHANGED: "a revision that changes nothing here",
    DELETED: "deleted",
    RETRACTED: "retracted",
    SAME_ID: "duplicate document id",
    SAME_TEXT: "duplicate text",
    NEAR: "near duplicate",
}
"""Why a stored record is dropped; for a record that is not stored, the ledger holds the reason."""
BAND_BYTES = 2**29
"""Memory for band hashes; one band of 38 million records takes 300 MB."""
NO_RECORD = np.iinfo(np.int64).max


@dataclass
class Fates:
    """The outcome for each record."""

    codes: np.ndarray
    """(records,) uint8: LIVES, NOT_STORED, ..."""
    replaced: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Dropped records, the records kept instead (both int64), their similarity (float32; 1 except for NEAR)."""

    def drop(self, records: np.ndarray, fate: int, kept_instead: np.ndarray | None = None) -> None:
        self.codes[records] = fate
        if kept_instead is not None:
            self.replaced.append((records, kept_instead, np.ones(len(records), np.float32)))

    @property
    def live(self) -> np.ndarray:
        return self.codes == LIVES

    def replacements(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The entries of `replaced`, concatenated and sorted by dropped record."""
        if not self.replaced:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        gone, stays, similarity = (np.concatenate(parts) for parts in zip(*self.replaced, strict=True))
        order = np.argsort(gone, kind="stable")
        return gone[order], stays[order], similarity[order]


def resolve(ledger: Ledger, in_versions: bool, drop_retracted: bool, near_duplicate_threshold: float) -> Fates:
    """Decide the fate of every record. Memory: a few bytes per record, and one part of the ledger.

    `in_versions`: a later record with the same id is its next version or its deletion, as in PubMed.
    """
    fates = Fates(np.full(len(ledger), NOT_STORED, np.uint8))
    for here, table in ledger.columns("row"):
        fates.codes[here][table["row"].to_numpy() >= 0] = LIVES
    if in_versions:
        _latest_versions(ledger, fates, drop_retracted)
    else:
        _first(ledger, fates, "id_hash", SAME_ID)
    _first(ledger, fates, "text", SAME_TEXT)
    if near_duplicate_threshold:
        _near_duplicates(ledger, fates, near_duplicate_threshold)
    return fates


def _first(ledger: Ledger, fates: Fates, key: str, fate: int) -> None:
    """Of the live records with the same key, keep the first."""
    for records, columns in ledger.parts(fates.live, key):
        order = np.lexsort((records, columns[key]))
        starts, size = _groups(columns[key][order])
        first = np.repeat(records[order][starts], size)
        goes = records[order] != first
        fates.drop(records[order][goes], fate, first[goes])


def _latest_versions(ledger: Ledger, fates: Fates, drop_retracted: bool) -> None:
    everything = np.ones(len(ledger), bool)
    retracted_by_notice: list[np.ndarray] = []
    for records, columns in ledger.parts(everything, "id_hash", "version", "row", "content", "deleted", "retracted"):
        latest = _latest_of_each_id(records, columns, fates, drop_retracted)
        if drop_retracted:
            retracted_by_notice += _retracted_by(ledger, latest)
    if retracted_by_notice:
        ids = np.unique(np.concatenate(retracted_by_notice))
        for records, columns in ledger.parts(fates.live, "id_hash"):
            fates.drop(records[np.isin(columns["id_hash"], ids)], RETRACTED)


def _latest_of_each_id(
    records: np.ndarray, columns: dict[str, np.ndarray], fates: Fates, drop_retracted: bool
) -> np.ndarray:
    """Keep at most one record per id; return the latest record of each id, stored or not, ascending."""
    order = np.lexsort((records, columns["version"], columns["id_hash"]))
    records, columns = records[order], {name: column[order] for name, column in columns.items()}
    ids, version, deleted = columns["id_hash"], columns["version"], columns["deleted"]
    stored = columns["row"] >= 0
    starts, size = _groups(ids)
    group = np.repeat(np.arange(len(starts)), size)
    last_of_version = np.append((ids[1:] != ids[:-1]) | (version[1:] != version[:-1]), True)
    position = np.arange(len(records))
    # Per id: the highest version whose last record is not a deletion; -1: none.
    latest = np.maximum.reduceat(np.where(last_of_version & ~deleted, position, -1), starts)
    there = latest >= 0
    same = stored & there[group] & stored[latest[group]] & (columns["content"] == columns["content"][latest[group]])
    lives = np.minimum.reduceat(np.where(same, records, NO_RECORD), starts)  # the first record with the latest content

    goes = stored & (records != lives[group])
    version_start = np.concatenate([[0], np.flatnonzero(last_of_version)[:-1] + 1])
    version_end = np.repeat(np.flatnonzero(last_of_version), np.diff(np.append(version_start, len(records))))
    gone = goes & deleted[version_end]
    is_latest = position == latest[group]
    fates.drop(records[gone], DELETED)
    later = goes & ~gone & ~is_latest
    fates.drop(records[later], SUPERSEDED, records[latest[group]][later])
    unchanged = goes & is_latest
    fates.drop(records[unchanged], UNCHANGED, lives[group][unchanged])
    if drop_retracted:
        retracted = (lives != NO_RECORD) & there & columns["retracted"][latest]
        fates.drop(lives[retracted], RETRACTED)
    return np.sort(records[latest[there]])


def _retracted_by(ledger: Ledger, latest: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the hashes of the ids that these records retract."""
    ends = np.searchsorted(latest, ledger.offsets)
    for number, (here, table) in enumerate(ledger.columns("retracts")):
        retracts = table["retracts"].combine_chunks()
        if len(retracts.values):
            chosen = latest[ends[number] : ends[number + 1]] - here.start
            yield retracts.take(pa.array(chosen)).flatten().to_numpy()


def _near_duplicates(ledger: Ledger, fates: Fates, threshold: float) -> None:
    pairs = near_duplicates.unique_pairs(list(_pairs_in_a_band(ledger, fates.live, threshold)))
    involved = np.unique(pairs)
    signatures = signatures_of(ledger.take(involved, "signature")["signature"])
    earlier, later = (signatures[np.searchsorted(involved, side)] for side in (pairs[:, 0], pairs[:, 1]))
    duplicates = near_duplicates.select_duplicates(pairs, near_duplicates.similarity(earlier, later), threshold)
    fates.codes[duplicates.records] = NEAR
    fates.replaced.append((duplicates.records, duplicates.stays, duplicates.similarity))


def _pairs_in_a_band(ledger: Ledger, live: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """Yield the pairs of each band; memory holds the hashes of as many bands as fit in BAND_BYTES."""
    records = np.flatnonzero(live)
    num_bands = near_duplicates.SIGNATURE_SIZE // near_duplicates.num_rows(threshold)
    width = min(num_bands, max(1, BAND_BYTES // (8 * max(1, len(records)))))
    for first in range(0, num_bands, width):
        hashes = np.empty((min(width, num_bands - first), len(records)), np.uint64)
        done = 0
        for here, table in ledger.columns("signature"):
            signatures = signatures_of(table["signature"])[live[here]]
            bands = near_duplicates.bands(signatures, threshold)[:, first : first + len(hashes)]
            hashes[:, done : done + len(bands)] = bands.T
            done += len(bands)
        for band in hashes:
            yield near_duplicates.pairs_of_band(band, records)


def _groups(ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each run of equal values."""
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])) if len(ascending) else np.empty(0, int)
    return starts, np.diff(np.append(starts, len(ascending)))


def write_outcome(ledger: Ledger, fates: Fates, digests: Mapping[str, str]) -> dict[str, int]:
    """Write live.parquet and dropped.parquet; return the number of dropped records by reason, most frequent first.

    `digests`: SHA-256 by file path within the corpus.
    """
    counts: Counter[str] = Counter()
    live: list[CorpusShard] = []
    replaced = fates.replacements()
    names = _names(ledger, replaced[1])
    with pq.ParquetWriter(ledger.corpus / DROPPED, DROPPED_SCHEMA, compression="zstd") as writer:
        columns = ledger.columns("document_id", "source", "reason", "detail", "row", "deleted")
        for shard, (here, table) in zip(ledger.shards, columns, strict=True):
            rows, codes = table["row"].to_numpy(), fates.codes[here]
            left_out = np.sort(rows[(rows >= 0) & (codes != LIVES)])
            path = f"{shard}.parquet"
            num_live = int((codes == LIVES).sum())
            live.append(CorpusShard(ledger.corpus / path, digests[path], num_live, tuple(left_out.tolist())))

            goes = np.flatnonzero((codes != LIVES) & ~table["deleted"].to_numpy())
            gone = table.take(pa.array(goes))
            by_ledger = zip(codes[goes].tolist(), gone["reason"].to_pylist(), strict=True)
            reasons = [REASONS.get(code, reason) for code, reason in by_ledger]
            counts.update(reasons)
            details = _details(goes + here.start, gone["detail"].to_pylist(), replaced, names)
            writer.write_table(_dropped_rows(shard, gone, reasons, details))
    write_live(ledger.corpus, live)
    return dict(counts.most_common())


def _dropped_rows(shard: str, gone: pa.Table, reasons: list[str], details: list[str]) -> pa.Table:
    """The rows of dropped.parquet for one shard; `gone`: the ledger rows of its dropped records."""
    arrays = [
        gone["document_id"].combine_chunks(),
        gone["source"].combine_chunks(),
        pa.array(reasons, pa.string()).cast(DROPPED_SCHEMA.field("reason").type),
        pa.array(details, pa.string()),
        pa.array([shard if row >= 0 else "" for row in gone["row"].to_pylist()], pa.string()),
        gone["row"].combine_chunks(),
    ]
    return pa.Table.from_arrays(arrays, schema=DROPPED_SCHEMA)


def _details(
    records: np.ndarray,
    from_ledger: list[str],
    replaced: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: dict[int, str],
) -> list[str]:
    """The detail of each dropped record: the record kept instead, else the detail in the ledger."""
    gone, stays, similarity = replaced
    details = list(from_ledger)
    places = np.searchsorted(gone, records)
    for number in np.flatnonzero(np.isin(records, gone)).tolist():
        place = int(places[number])
        near = f", similarity {similarity[place]:.2f}" if similarity[place] < 1 else ""
        details[number] = f"stays: {names[int(stays[place])]}{near}"
    return details


def _names(ledger: Ledger, records: np.ndarray) -> dict[int, str]:
    """`<id> (<file>, record <number>)`"""
    records = np.unique(records)
    rows = ledger.take(records, "document_id", "source", "number").to_pylist()
    shown = (f"{row['document_id']} ({row['source']}, record {row['number']})" for row in rows)
    return dict(zip(records.tolist(), shown, strict=True))
