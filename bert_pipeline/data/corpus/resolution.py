"""Which records are documents of the corpus, seen beside all others: the latest version, and no duplicate.

    ids         of a citation the latest version lives, unless it was deleted since; of other documents the first
    retracted   goes, where the recipe says so: by its own record, or by that of the notice
    text        of documents with the same sentences the first stays
    nearly      a document goes that is near one before it that stays (near_duplicates.py)

The outcome is that of a replay of all records in the order of the corpus. Where the latest version says, word by word,
what an earlier record said, the earlier one's row stays: a revision of what the corpus does not hold moves nothing.
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
"""Of rows that are stored; of the others the ledger tells."""
BAND_BYTES = 2**29
"""Of hashes that are held to find near duplicates; one band of 38 million records takes 300 MB."""
NOBODY = np.iinfo(np.int64).max


@dataclass
class Fates:
    """What becomes of each record."""

    of: np.ndarray
    """(records,) uint8: LIVES, ..."""
    instead: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Records that went, those that stay instead (both int64), similarity (float32; 1 where it is no matter)."""

    def drop(self, records: np.ndarray, fate: int, instead: np.ndarray | None = None) -> None:
        self.of[records] = fate
        if instead is not None:
            self.instead.append((records, instead, np.ones(len(records), np.float32)))

    @property
    def live(self) -> np.ndarray:
        return self.of == LIVES

    def stays_instead(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of `instead` as one, by record."""
        if not self.instead:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        gone, stays, similarity = (np.concatenate(parts) for parts in zip(*self.instead, strict=True))
        order = np.argsort(gone, kind="stable")
        return gone[order], stays[order], similarity[order]


def resolve(ledger: Ledger, in_versions: bool, drop_retracted: bool, near_duplicate_threshold: float) -> Fates:
    """The fate of every record; memory holds a few bytes a record beside a part of the ledger.

    `in_versions`: a later record of an id is its next version, or the news that it is gone, as in PubMed.
    """
    fates = Fates(np.full(len(ledger), NOT_STORED, np.uint8))
    for here, table in ledger.columns("row"):
        fates.of[here][table["row"].to_numpy() >= 0] = LIVES
    if in_versions:
        _latest_versions(ledger, fates, drop_retracted)
    else:
        _first(ledger, fates, "id_hash", SAME_ID)
    _first(ledger, fates, "text", SAME_TEXT)
    if near_duplicate_threshold:
        _near_duplicates(ledger, fates, near_duplicate_threshold)
    return fates


def _first(ledger: Ledger, fates: Fates, key: str, fate: int) -> None:
    """Of the living with the same key the first lives on."""
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
    """Of each id one record lives on, or none; returns the latest records, stored or not, ascending."""
    order = np.lexsort((records, columns["version"], columns["id_hash"]))
    records, columns = records[order], {name: column[order] for name, column in columns.items()}
    ids, version, deleted = columns["id_hash"], columns["version"], columns["deleted"]
    stored = columns["row"] >= 0
    starts, size = _groups(ids)
    group = np.repeat(np.arange(len(starts)), size)
    last_of_version = np.append((ids[1:] != ids[:-1]) | (version[1:] != version[:-1]), True)
    position = np.arange(len(records))
    # Of the versions that are not deleted in the end, the highest; -1: none.
    latest = np.maximum.reduceat(np.where(last_of_version & ~deleted, position, -1), starts)
    there = latest >= 0
    same = stored & there[group] & stored[latest[group]] & (columns["content"] == columns["content"][latest[group]])
    lives = np.minimum.reduceat(np.where(same, records, NOBODY), starts)  # the first record that says the same

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
        retracted = (lives != NOBODY) & there & columns["retracted"][latest]
        fates.drop(lives[retracted], RETRACTED)
    return np.sort(records[latest[there]])


def _retracted_by(ledger: Ledger, latest: np.ndarray) -> Iterator[np.ndarray]:
    """Hashes of the ids that these records say are retracted."""
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
    fallen = near_duplicates.fallen(pairs, near_duplicates.similarity(earlier, later), threshold)
    fates.of[fallen.records] = NEAR
    fates.instead.append((fallen.records, fallen.stays, fallen.similarity))


def _pairs_in_a_band(ledger: Ledger, live: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """As many bands at a time as BAND_BYTES hold."""
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
    """Where runs of equal values start, and how long they are."""
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1])) if len(ascending) else np.empty(0, int)
    return starts, np.diff(np.append(starts, len(ascending)))


def write_outcome(ledger: Ledger, fates: Fates, digests: Mapping[str, str]) -> dict[str, int]:
    """Write live.parquet and dropped.parquet; returns how many records were dropped for each reason, most first.

    `digests`: SHA-256 by the path of a file in the corpus.
    """
    counts: Counter[str] = Counter()
    live: list[CorpusShard] = []
    instead = fates.stays_instead()
    names = _names(ledger, instead[1])
    with pq.ParquetWriter(ledger.corpus / DROPPED, DROPPED_SCHEMA, compression="zstd") as writer:
        columns = ledger.columns("document_id", "source", "reason", "detail", "row", "deleted")
        for shard, (here, table) in zip(ledger.shards, columns, strict=True):
            rows, fate = table["row"].to_numpy(), fates.of[here]
            left_out = np.sort(rows[(rows >= 0) & (fate != LIVES)])
            path = f"{shard}.parquet"
            num_live = int((fate == LIVES).sum())
            live.append(CorpusShard(ledger.corpus / path, digests[path], num_live, tuple(left_out.tolist())))
            goes = np.flatnonzero((fate != LIVES) & ~table["deleted"].to_numpy())
            gone = table.take(pa.array(goes))
            why = zip(fate[goes].tolist(), gone["reason"].to_pylist(), strict=True)
            reasons = [REASONS.get(code, told) for code, told in why]
            counts.update(reasons)
            details = _details(goes + here.start, gone["detail"].to_pylist(), instead, names)
            ids, sources, stored = gone["document_id"], gone["source"], gone["row"]
            arrays = [
                ids.combine_chunks(),
                sources.combine_chunks(),
                pa.array(reasons, pa.string()).cast(DROPPED_SCHEMA.field("reason").type),
                pa.array(details, pa.string()),
                pa.array([shard if row >= 0 else "" for row in rows[goes].tolist()], pa.string()),
                stored.combine_chunks(),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=DROPPED_SCHEMA))
    write_live(ledger.corpus, live)
    return dict(counts.most_common())


def _details(
    records: np.ndarray,
    written: list[str],
    instead: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: dict[int, str],
) -> list[str]:
    gone, stays, similarity = instead
    details = list(written)
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
