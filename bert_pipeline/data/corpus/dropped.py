"""Why a record is not in the corpus: what `bert-pipeline dropped DIR` tells of dropped and of rejected records.

Both lists are read a batch at a time, and of what matches only the first rows are kept, so a corpus of any size is
looked through in the same memory.
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

from bert_pipeline.core.printable import printable
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError

BATCH_ROWS = 65_536
SHOWN_CHARACTERS = 300
"""Of a text, where not one record alone was asked for."""


@dataclass(frozen=True)
class Query:
    """Which records: an empty field asks for all."""

    document_id: str = ""
    reason: str = ""
    """A part of it, in any case: `duplicate` finds `duplicate text` and `near duplicate`."""

    def wants_reason(self, reason: str) -> bool:
        return self.reason.casefold() in reason.casefold()

    def wants_rejection(self, rejection: dict[str, str]) -> bool:
        """A broken record has no id, but its number in its file, which makes the id where a recipe names no field;
        and its excerpt may hold one.
        """
        if not self.document_id:
            return self.wants_reason(rejection["reason"])
        number = rejection["record"].rpartition(" ")[2]
        told = f"{rejection['file']}:{number} {rejection['record']} {rejection['excerpt']}"
        named = re.search(rf"(?<!\w){re.escape(self.document_id)}(?!\w)", told)
        return self.wants_reason(rejection["reason"]) and bool(named)


def find_dropped(corpus: Path, query: Query, count: int) -> dict[str, Any]:
    """{"dropped": {reason: n}, "rejected": {reason: n}, "rows": [...], "rejections": [...]} of all that match.

    Of either list the first `count` are told in full: a row of dropped.parquet with the `text` where it is stored
    (else None), a line of rejected.jsonl. Raises ArtifactError where `corpus` is no raw_corpus, or has no such lists.
    """
    artifact.load(corpus, "raw_corpus")
    dropped, rejected = Counter[str](), Counter[str]()
    rows: list[dict[str, Any]] = []
    rejections: list[dict[str, str]] = []
    for reasons, first in _dropped(corpus / "dropped.parquet", query, count):
        dropped.update(reasons)
        rows += first[: count - len(rows)]
    for each in _rejected(corpus / "rejected.jsonl"):
        if query.wants_rejection(each):
            rejected[each["reason"]] += 1
            rejections += [each][: count - len(rejections)]
    told = [row | {"text": _text(corpus, row["shard"], row["row"]) if row["row"] >= 0 else None} for row in rows]
    return {"dropped": _ordered(dropped), "rejected": _ordered(rejected), "rows": told, "rejections": rejections}


def _dropped(path: Path, query: Query, count: int) -> Iterator[tuple[Counter[str], list[dict[str, Any]]]]:
    """Of each batch the reasons of what matches, and its first rows."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: the corpus was built by an older version; remedy: build it again")
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS, use_threads=False):
        if query.document_id:
            batch = batch.filter(pc.equal(batch["document_id"], query.document_id))
        reasons = batch["reason"].cast(pa.string())
        wanted = [reason for reason in reasons.unique().to_pylist() if query.wants_reason(reason)]
        found = batch.filter(pc.is_in(reasons, pa.array(wanted, pa.string())))
        counts = found["reason"].cast(pa.string()).value_counts().to_pylist()
        yield Counter({each["values"]: each["counts"] for each in counts}), found.slice(0, count).to_pylist()


def _rejected(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _text(corpus: Path, shard: str, row: int) -> str:
    """The sentences of one row of a shard, a line each."""
    path, left = corpus / f"{shard}.parquet", row
    for batch in pq.ParquetFile(path).iter_batches(1_000, columns=["sentences"], use_threads=False):
        if left < len(batch):
            return "\n".join(batch["sentences"][left].as_py())
        left -= len(batch)
    raise ArtifactError(f"{path} has no row {row}, which dropped.parquet names; remedy: build the corpus again")


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def show(found: dict[str, Any], whole: bool) -> str:
    """For people: the counts, then the rows; a text is cut unless it shall stand `whole`."""
    return "\n".join(_lines(found, whole))


def _lines(found: dict[str, Any], whole: bool) -> Iterator[str]:
    if not found["dropped"] and not found["rejected"]:
        yield "No dropped and no rejected record matches."
    for what in ("dropped", "rejected"):
        for reason, count in found[what].items():
            yield f"{count:>15,}  {what}: {printable(reason)}"
    if rows := found["rows"]:
        yield ""
        names = ("document_id", "reason", "detail", "source")
        cells = [names, *([printable(row[name]) for name in names] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        texts = ["", *(row["text"] or "" for row in rows)]
        for line, text in zip(cells, texts, strict=True):
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            if text and not whole and len(text) > SHOWN_CHARACTERS:
                text = f"{text[:SHOWN_CHARACTERS]} …"
            yield from (f"    {printable(sentence)}" for sentence in text.split("\n") if sentence)
    for each in found["rejections"]:
        told = f"{each['file']}, {each['record']}: {each['reason']}: {each['excerpt']}"
        yield f"\n{printable(told)}"
