"""`bert-pipeline dropped DIR`: what a corpus left out: dropped and rejected records, and files of its folder that were
not read, with the reason for each.

The lists are read in batches and only the first matches are kept, so memory does not grow with the corpus.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert_pipeline.core.tables import Table
from bert_pipeline.data.corpus.sources import PASSED_OVER
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError

BATCH_ROWS = 65_536
SHOWN_CHARACTERS = 300
"""Longer texts are cut, unless one document is shown."""


@dataclass(frozen=True)
class Query:
    """Which records to find; an empty field matches all."""

    document_id: str = ""
    reason: str = ""
    """Part of the reason, case-insensitive: `duplicate` matches `duplicate text` and `near duplicate`."""

    def matches_reason(self, reason: str) -> bool:
        return self.reason.casefold() in reason.casefold()

    def matches_rejection(self, rejection: dict[str, str]) -> bool:
        """A broken record has no id. Match its number in the file, which is part of the id if the recipe names no id
        field, and its excerpt, which may contain the id.
        """
        if not self.document_id:
            return self.matches_reason(rejection["reason"])
        number = rejection["record"].rpartition(" ")[2]
        text = f"{rejection['file']}:{number} {rejection['record']} {rejection['excerpt']}"
        found = re.search(rf"(?<!\w){re.escape(self.document_id)}(?!\w)", text)
        return self.matches_reason(rejection["reason"]) and bool(found)


def find_dropped(corpus: Path, query: Query, count: int) -> dict[str, Any]:
    """Return {"dropped": {reason: n}, "rejected": {reason: n}, "passed_over": {reason: n}, "rows": [...],
    "rejections": [...], "files": [...]} of the matches.

    `rows` are the first `count` rows of dropped.parquet, each with its `text` (None if the text is not stored);
    `rejections` are the first `count` lines of rejected.jsonl; `files` are the first `count` lines of
    passed_over.jsonl, whose names are compared with the id. Raises ArtifactError if `corpus` is not a raw_corpus or
    lacks these lists.
    """
    artifact.load(corpus, "raw_corpus")
    dropped, rejected, passed_over = Counter[str](), Counter[str](), Counter[str]()
    rows: list[dict[str, Any]] = []
    rejections: list[dict[str, str]] = []
    files: list[dict[str, str | int]] = []
    for reasons, first in _dropped(corpus / "dropped.parquet", query, count):
        dropped.update(reasons)
        rows += first[: count - len(rows)]
    for each in _lines(corpus / "rejected.jsonl"):
        if query.matches_rejection(each):
            rejected[each["reason"]] += 1
            rejections += [each][: count - len(rejections)]
    for each in _lines(corpus / PASSED_OVER) if (corpus / PASSED_OVER).is_file() else ():
        if query.document_id in ("", each["file"]) and query.matches_reason(each["reason"]):
            passed_over[each["reason"]] += 1
            files += [each][: count - len(files)]
    with_text = [row | {"text": _text(corpus, row["shard"], row["row"]) if row["row"] >= 0 else None} for row in rows]
    counts = {"dropped": dropped, "rejected": rejected, "passed_over": passed_over}
    return {
        **{what: _ordered(each) for what, each in counts.items()},
        "rows": with_text,
        "rejections": rejections,
        "files": files,
    }


def _dropped(path: Path, query: Query, count: int) -> Iterator[tuple[Counter[str], list[dict[str, Any]]]]:
    """For each batch: the matches counted by reason, and the first `count` of them."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: an older version built this corpus; remedy: build it again")
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, use_threads=False):
        if query.document_id:
            batch = batch.filter(pc.equal(batch["document_id"], query.document_id))
        reasons = batch["reason"].cast(pa.string())
        wanted = [reason for reason in reasons.unique().to_pylist() if query.matches_reason(reason)]
        found = batch.filter(pc.is_in(reasons, pa.array(wanted, pa.string())))
        counts = found["reason"].cast(pa.string()).value_counts().to_pylist()
        yield Counter({each["values"]: each["counts"] for each in counts}), found.slice(0, count).to_pylist()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _text(corpus: Path, shard: str, row: int) -> str:
    """The sentences of one row of a shard, one per line."""
    path, left = corpus / f"{shard}.parquet", row
    for batch in pq.ParquetFile(path).iter_batches(1_000, columns=["sentences"], use_threads=False):
        if left < len(batch):
            return "\n".join(batch["sentences"][left].as_py())
        left -= len(batch)
    raise ArtifactError(f"{path} has no row {row}, but dropped.parquet refers to it; remedy: build the corpus again")


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe_dropped(found: dict[str, Any], full_text: bool) -> Iterator[Table | str]:
    """Tables and texts for people: counts, then the records. Texts are cut unless `full_text`."""
    counts = [(f"{n:,}", what, reason) for what in ("dropped", "rejected") for reason, n in found[what].items()]
    files = [(f"{n:,}", reason) for reason, n in found["passed_over"].items()]
    if not counts and not files:
        yield "No dropped or rejected record matches."
        return
    if counts:
        yield Table(("records", "list", "reason"), counts)
    if files:
        yield Table(("files that were not read", "reason"), files)
    if rows := found["rows"]:
        names = ("document_id", "reason", "detail", "source")
        yield Table(names, [[row[name] for name in names] for row in rows])
    for row in rows:
        if text := row["text"]:
            cut = not full_text and len(text) > SHOWN_CHARACTERS
            yield f"text of {row['document_id']} in {row['source']}:"
            yield from (f"    {line}" for line in (f"{text[:SHOWN_CHARACTERS]} …" if cut else text).split("\n") if line)
            yield ""
    if rejections := found["rejections"]:
        fields = ("file", "record", "reason", "excerpt")
        yield Table(
            ("file", "record", "reason", "excerpt of the rejected record"),
            [[one[name] for name in fields] for one in rejections],
        )
    if found["files"]:
        yield Table(
            ("file that was not read", "bytes", "reason"),
            [(each["file"], f"{each['bytes']:,}", each["reason"]) for each in found["files"]],
        )
