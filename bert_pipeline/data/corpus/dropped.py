"""Why a record is not in the corpus: `bert-pipeline dropped DIR` searches the dropped and the rejected records.

Both lists are read in batches, and only the first matching rows are kept, so memory does not grow with the corpus.
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
"""Characters shown of each text, unless the query names one id."""


@dataclass(frozen=True)
class Query:
    """Selects records; an empty field matches all."""

    document_id: str = ""
    reason: str = ""
    """A case-insensitive substring: `duplicate` matches `duplicate text` and `near duplicate`."""

    def matches_reason(self, reason: str) -> bool:
        return self.reason.casefold() in reason.casefold()

    def matches_rejection(self, rejection: dict[str, str]) -> bool:
        """Search the id in <file>:<number>, which is the id if the recipe names no id field, and in the excerpt: a
        broken record has no parsed id.
        """
        if not self.matches_reason(rejection["reason"]):
            return False
        number = rejection["record"].rpartition(" ")[2]
        text = f"{rejection['file']}:{number} {rejection['record']} {rejection['excerpt']}"
        return not self.document_id or bool(re.search(rf"(?<!\w){re.escape(self.document_id)}(?!\w)", text))


def find_dropped(corpus: Path, query: Query, count: int) -> dict[str, Any]:
    """{"dropped": {reason: n}, "rejected": {reason: n}, "rows": [...], "rejections": [...]} for all matching records.

    `rows`: the first `count` rows of dropped.parquet, with their `text` (None if it is not stored). `rejections`: the
    first `count` lines of rejected.jsonl. Raises ArtifactError if `corpus` is not a raw_corpus with dropped.parquet.
    """
    artifact.load(corpus, "raw_corpus")
    dropped, rejected = Counter[str](), Counter[str]()
    rows: list[dict[str, Any]] = []
    rejections: list[dict[str, str]] = []
    for reasons, first in _dropped(corpus / "dropped.parquet", query, count):
        dropped.update(reasons)
        rows += first[: count - len(rows)]
    for each in _rejected(corpus / "rejected.jsonl"):
        if query.matches_rejection(each):
            rejected[each["reason"]] += 1
            rejections += [each][: count - len(rejections)]
    rows = [row | {"text": _text(corpus, row["shard"], row["row"]) if row["row"] >= 0 else None} for row in rows]
    return {"dropped": _ordered(dropped), "rejected": _ordered(rejected), "rows": rows, "rejections": rejections}


def _dropped(path: Path, query: Query, count: int) -> Iterator[tuple[Counter[str], list[dict[str, Any]]]]:
    """Yield, for each batch, the matching rows counted by reason, and the first `count` of them."""
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


def _rejected(path: Path) -> Iterator[dict[str, str]]:
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


def show(found: dict[str, Any], full_text: bool) -> str:
    """The result of `find_dropped` for a terminal; texts are cut to SHOWN_CHARACTERS unless `full_text`."""
    return "\n".join(_lines(found, full_text))


def _lines(found: dict[str, Any], full_text: bool) -> Iterator[str]:
    if not found["dropped"] and not found["rejected"]:
        yield "No dropped or rejected record matches."
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
            if text and not full_text and len(text) > SHOWN_CHARACTERS:
                text = f"{text[:SHOWN_CHARACTERS]} …"
            yield from (f"    {printable(sentence)}" for sentence in text.split("\n") if sentence)
    for each in found["rejections"]:
        line = f"{each['file']}, {each['record']}: {each['reason']}: {each['excerpt']}"
        yield f"\n{printable(line)}"
