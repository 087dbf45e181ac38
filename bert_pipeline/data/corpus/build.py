"""The raw corpus: documents split into sentences, train and held out, each once and in its latest version.

    files -> records, broken ones rejected -> train / heldout by id -> shards and their ledgers (shard.py)
          -> which records are documents, given all others (resolution.py) -> live.parquet, dropped.parquet

PubMed: a worker reads a whole file of citations and writes its shards. Other formats: this process reads groups of
files and distributes their records over shards; workers clean them and split them into sentences. A group is one large
file or several small ones, chosen by their names and sizes alone. Every shard belongs to one file or group, so a new
file adds its own shards and changes no other. The content of a shard does not depend on the number of workers.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import cached_digest
from bert_pipeline.core.progress import Progress
from bert_pipeline.data.contamination.overlap import EvaluationIndex, EvaluationText
from bert_pipeline.data.corpus.facts import about_documents, samples
from bert_pipeline.data.corpus.ledger import Ledger
from bert_pipeline.data.corpus.resolution import resolve, write_outcome
from bert_pipeline.data.corpus.shard import Aside, deal, write_file, write_shard
from bert_pipeline.data.corpus.sources import (
    PASSED_OVER,
    SOURCES,
    describe_sources,
    passed_over,
    read_source_files,
    source_files,
    write_sources,
)
from bert_pipeline.data.sources.folders import by_reason, report_members
from bert_pipeline.data.sources.pubmed.reader import read_pubmed
from bert_pipeline.data.sources.records import Document, PassedOver, Rejection, SourceError
from bert_pipeline.formats.tables import SPLITS, id_hash
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Facts
from bert_pipeline.store.shards import Entry, Shard, ShardStore, total

MIN_DOCUMENTS = 2
"""Per split, because the B segment of a random pair comes from another document."""

GROUP_BYTES = 2**22
"""A file of at least this size is a group by itself; groups of smaller files have this size on average."""

SHOWN_REJECTIONS = 5

NOT_IN_SHARDS = {"path", "sources_file", "cutoff", "max_rejected_fraction", "exclude_tasks", "drop_retracted"}
NOT_IN_SHARDS |= {"near_duplicate_threshold"}
"""Recipe fields that no shard's content depends on: they select files and rows."""


def build_raw_corpus(section: CorpusRecipe, out: Path, excluded: Sequence[EvaluationText] = ()) -> Facts:
    """Write the shards with their ledgers, live.parquet, dropped.parquet, rejected.jsonl, sources.jsonl, the data
    card and, if the folder holds files that are not read, passed_over.jsonl.

    `excluded`: evaluation examples that no document may hold; the removed documents are listed in excluded.jsonl.
    Raises SourceError if a file cannot be read, too many records are broken, or a split has fewer than two documents.
    """
    from bert_pipeline.data.corpus import card  # imports matplotlib, which workers do not need

    files = source_files(section)
    sources = describe_sources(section, files)
    store = ShardStore("raw_corpus", out)
    index, rules = None, {k: v for k, v in section.for_origin().items() if k not in NOT_IN_SHARDS}
    rules |= {"signatures": section.near_duplicate_threshold > 0}
    if excluded:
        examples = EvaluationIndex(excluded)
        index = store.scratch / examples.fingerprint
        examples.save(index)
        rules |= {"excluded": examples.fingerprint}
    groups = _build(section, files, store, rules, index)
    entries = [entry for entry in store.finish() if entry.files]
    facts = _facts_of_shards(entries)
    rejections = [Rejection(**each) for group in groups for each in group.facts["rejections"]]
    _check_rejections(section, rejections, len(rejections) + facts["records"])
    _write_lines(out / "rejected.jsonl", map(asdict, rejections))
    if excluded:
        _write_lines(out / "excluded.jsonl", facts["held"])

    ledger = Ledger.open(out, facts["shards"], list(files) or [""])
    fates = resolve(ledger, section.source == "pubmed", section.drop_retracted, section.near_duplicate_threshold)
    digests = {name: entry.files[name]["sha256"] for entry in entries for name in entry.files}
    dropped_by_reason = write_outcome(ledger, fates, digests)
    documents = about_documents(out)
    counts = {split: documents[f"{split}_documents"] for split in SPLITS}
    if min(counts.values()) < MIN_DOCUMENTS:
        raise SourceError(_too_few(section, counts, dropped_by_reason))

    write_sources(out / SOURCES, sources)
    facts = {
        "records": len(rejections) + facts["records"] - facts["deletions"],
        **documents,
        "rejected_documents": len(rejections),
        "rejected_by_reason": dict(Counter(each.reason for each in rejections)),
        "dropped_documents": sum(dropped_by_reason.values()),
        "dropped_by_reason": dropped_by_reason,
        "deletions": facts["deletions"],
        "cleaned_by_rule": facts["cleaned_by_rule"],
        "files": len(sources),
        "source_bytes": sum(each.bytes for each in sources),
        "sources_fingerprint": artifact.fingerprint({each.name: each.sha256 for each in sources}),
        "cut_off": max((each.released for each in sources), default=""),
    } | (_about_excluded(facts["held"]) if excluded else {})
    members = [PassedOver(**each) for group in groups for each in group.facts["passed_over"]]
    report_members(members)
    if others := passed_over(section, files) + members:
        _write_lines(out / PASSED_OVER, map(asdict, others))
        facts["passed_over"] = by_reason(others)
    card.write_data_card(out, facts, samples(out))
    return facts


def _build(
    section: CorpusRecipe, files: dict[str, Path], store: ShardStore, rules: dict[str, Any], index: Path | None
) -> list[Entry]:
    """Build the shards; return the entries of the files or groups in order. Their facts hold what was set aside."""
    if section.source == "pubmed":
        shards = [
            Shard(
                f"file/{name}",
                rules | {"file": name, "sha256": cached_digest(path)},
                (section, partial(read_pubmed, name, path), index),
            )
            for name, path in files.items()
        ]
        store.build(write_file, shards)
        return [store.made(shard.name) for shard in shards]
    dealer = Dealer(section, files, store, rules, index)
    store.build(write_shard, dealer.shards())
    return dealer.groups


class Dealer:
    """Distributes the documents of each group over shards. Groups that the store already holds are not read."""

    def __init__(
        self,
        section: CorpusRecipe,
        files: dict[str, Path],
        store: ShardStore,
        rules: dict[str, Any],
        index: Path | None,
    ) -> None:
        self.section, self.files, self.store, self.rules, self.index = section, files, store, rules, index
        self.groups: list[Entry] = []  # in the order of the source files

    def shards(self) -> Iterator[Shard]:
        if self.section.source == "sample":
            from bert_pipeline.data.sources.sample.documents import sample_documents

            texts = sample_documents(self.section.sample_documents, self.section.seed)
            yield from self._deal(
                self.rules, (Document(name, (text,), "", n) for n, (name, text) in enumerate(texts, 1))
            )
            return
        progress = Progress("raw_corpus: reading", sum(path.stat().st_size for path in self.files.values()), "bytes")
        for group in group_files(self.files):
            made_from = self.rules | {"files": {name: cached_digest(path) for name, path in group.items()}}
            if self._reuse(made_from):
                progress.advance(sum(path.stat().st_size for path in group.values()))
            else:
                yield from self._deal(made_from, read_source_files(self.section, group, progress))

    def _reuse(self, made_from: dict[str, Any]) -> bool:
        """Reuse a group and its shards if the store holds all of them; return whether it did."""
        group = self.store.existing(made_from)
        if group is None:
            return False
        entries = [group]
        for shard in group.facts["shards"]:
            entry = self.store.existing(shard)
            if entry is None:
                return False
            entries.append(entry)
        for entry in entries:
            self.store.adopt(entry)
        self.groups.append(group)
        return True

    def _deal(self, made_from: dict[str, Any], records: Iterable[Document | Rejection | PassedOver]) -> Iterator[Shard]:
        """Yield the shards of a group while reading it."""
        group = self.store.fingerprint(made_from)
        aside = Aside()
        shards = []
        for name, documents in deal(self.section, aside.documents(records)):
            ids = [document.document_id for document in documents]
            shards.append({"group": group, "ids": artifact.fingerprint({"ids": ids})})
            yield Shard(name, shards[-1], (self.section, name, documents, self.index))
        self.groups.append(self.store.note(made_from, {"shards": shards, **asdict(aside)}))


def group_files(files: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Split a list of files into groups. Whether a group ends after a file depends only on that file, so adding or
    removing a file changes only its own group.
    """
    group: dict[str, Path] = {}
    for name, path in files.items():
        size = path.stat().st_size
        if group and size >= GROUP_BYTES:
            yield group
            group = {}
        group[name] = path
        if id_hash(name) < size / GROUP_BYTES * 2**64:
            yield group
            group = {}
    if group:
        yield group


def _facts_of_shards(entries: list[Entry]) -> Facts:
    """`shards`: their names; `records`, `deletions`, `cleaned_by_rule` and `held`, summed over all shards."""
    by_shard: dict[str, Facts] = {}
    for entry in entries:
        by_shard |= entry.facts.get("shards", {entry.name: entry.facts})
    nothing: Facts = {"records": 0, "deletions": 0, "cleaned_by_rule": {}}
    summed = nothing | total({name: each[name] for name in nothing} for each in by_shard.values())
    return summed | {"shards": list(by_shard), "held": [row for each in by_shard.values() for row in each["held"]]}


def _about_excluded(held: list[dict[str, Any]]) -> Facts:
    tasks = Counter(task for each in held for task in sorted({row["task"] for row in each["held"]}))
    return {"excluded_documents": len(held), "excluded_by_task": dict(tasks)}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _check_rejections(section: CorpusRecipe, rejections: list[Rejection], records: int) -> None:
    """Raise SourceError if too many records are broken."""
    if len(rejections) > section.max_rejected_fraction * records:
        raise SourceError(
            f"{len(rejections):,} of {records:,} records are broken, more than corpus.max_rejected_fraction = "
            f"{section.max_rejected_fraction:g} allows; remedy: fix them, or raise the limit. The first ones:\n  "
            + "\n  ".join(map(str, rejections[:SHOWN_REJECTIONS]))
        )


def _too_few(section: CorpusRecipe, num_documents: dict[str, int], dropped: dict[str, int]) -> str:
    source = section.path or section.source
    train, heldout = num_documents["train"], num_documents["heldout"]
    if train + heldout < 2 * MIN_DOCUMENTS:
        remedy = "add documents (in a .txt file, a blank line separates documents)"
    elif heldout < MIN_DOCUMENTS:
        enough = min(0.5, round(10 / (train + heldout), 4))
        remedy = f"raise corpus.heldout_fraction (for example to {enough:g}), or add text"
    else:
        remedy = "lower corpus.heldout_fraction, or add text"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return (
        f"{source}: {train + heldout} documents{f' (dropped: {reasons})' if reasons else ''}, {train} for training and "
        f"{heldout} held out (corpus.heldout_fraction = {section.heldout_fraction:g}); each split needs at least "
        f"{MIN_DOCUMENTS}, because a random next sentence comes from another document; remedy: {remedy}"
    )
