"""The raw corpus: documents in sentences, train and held out.

    files -> groups -> documents, broken ones set aside, and those that hold text of evaluation sets where the recipe
    says so -> train / heldout by id -> shards -> sentences

A group is a large file, or some small ones; which ones, their names and sizes alone decide. A shard belongs to one
group, so a new file costs its own shards and no others. This process reads and deals; workers clean and split, a
shard at a time. What a shard holds depends on its group and the recipe alone, so the bytes are the same with any
number of workers.

Cleaning: Unicode normalisation as the recipe says; then NUL and all other control and format characters (Unicode's
Cc and Cf: byte order marks, soft hyphens, zero-width spaces, marks of direction) are taken out, as BERT's own
tokenizer would do; those of them that are white space (tab, line feed, ...) separate words.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bert_pipeline import artifact, formats
from bert_pipeline.artifact import Facts
from bert_pipeline.data.overlap import EvaluationIndex, EvaluationText
from bert_pipeline.data.sentences import split_lines, split_sentences
from bert_pipeline.data.sources.files import TAKEN_EARLIER, find_files, read_documents
from bert_pipeline.data.sources.records import Document, Rejection, SourceError
from bert_pipeline.formats import CORPUS_SCHEMA, SPLITS, id_hash, write_table
from bert_pipeline.progress import Progress
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.shards import Entry, Shard, ShardStore, total

Normalization = Literal["NFC", "NFKC", "none"]

MIN_DOCUMENTS = 2
"""In a split: the B segment of a random pair comes from another document."""

CHARACTERS_PER_SHARD = 2**24
"""A shard of long documents ends before it has its number of documents: memory holds some shards at a time."""

GROUP_BYTES = 2**22
"""A file of this size is a group by itself; smaller ones make up groups of this size on average."""

HISTOGRAM_EDGES = np.unique(np.round(2 ** np.arange(0, 31.5, 0.5)).astype(np.int64))
"""Half octaves from 1 to 2**31: 1, 2, 3, 4, 6, 8, 11, 16, ..."""

SEARCHED_TOGETHER = 64  # documents
SHOWN_REJECTIONS = 5
EXAMPLE_LENGTH = 5_000  # characters


def source_files(section: CorpusRecipe) -> dict[str, Path]:
    """The files that the corpus is made of, by name; none for the sample."""
    return find_files(section.path) if section.source == "files" else {}


@dataclass(frozen=True)
class Exclusion:
    """A document left out, because it holds examples of evaluation sets."""

    file: str
    document_id: str
    held: list[dict[str, Any]]  # overlap.Holding.row, an example each

    @property
    def tasks(self) -> set[str]:
        return {each["task"] for each in self.held}


def build_raw_corpus(section: CorpusRecipe, out: Path, excluded: Sequence[EvaluationText] = ()) -> Facts:
    """Write {train,heldout}/shard-*.parquet and rejected.jsonl; with `excluded`, whose examples no document of the
    corpus may hold, also excluded.jsonl.

    Raises SourceError where a file cannot be read, too many records are broken, or a split has fewer than two
    documents.
    """
    store = ShardStore("raw_corpus", out)
    dealer = Dealer(section, store, EvaluationIndex(excluded) if excluded else None)
    store.build(write_shard, dealer.shards())
    shards = [entry for entry in store.finish() if entry.files]
    rejections = [Rejection(**each) for group in dealer.groups for each in group.facts["rejections"]]
    exclusions = [Exclusion(**each) for group in dealer.groups for each in group.facts.get("exclusions", ())]
    _write_lines(out / "rejected.jsonl", rejections)
    if excluded:
        _write_lines(out / "excluded.jsonl", exclusions)
    summed = {split: total(entry.facts for entry in shards if entry.name.startswith(split)) for split in SPLITS}
    counts = {split: summed[split].get("documents", 0) for split in SPLITS}
    _check(section, rejections, exclusions, counts)
    whole = total(summed.values())
    facts: Facts = {
        f"{split}_{unit}": summed[split][unit] for unit in ("documents", "sentences", "words") for split in SPLITS
    } | {
        "rejected_documents": len(rejections),
        "rejected_by_reason": dict(Counter(each.reason for each in rejections)),
        "sentences_per_document_histogram": _histogram(whole["sentences_histogram"]),
        "words_per_document_histogram": _histogram(whole["words_histogram"]),
        "example": summed["train"]["example"],
    }
    if excluded:
        facts["excluded_documents"] = len(exclusions)
        facts["excluded_by_task"] = dict(Counter(task for each in exclusions for task in sorted(each.tasks)))
    return facts


def _write_lines(path: Path, rows: Iterable[Rejection | Exclusion]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def _check(
    section: CorpusRecipe, rejections: list[Rejection], exclusions: list[Exclusion], num_documents: dict[str, int]
) -> None:
    """Raise SourceError where too many records are broken, or too few documents are left."""
    records = len(rejections) + len(exclusions) + sum(num_documents.values())
    if len(rejections) > section.max_rejected_fraction * records:
        raise SourceError(
            f"{len(rejections):,} of {records:,} records are broken, more than corpus.max_rejected_fraction = "
            f"{section.max_rejected_fraction:g} allows; remedy: mend them, or raise the limit. The first of them:\n  "
            + "\n  ".join(map(str, rejections[:SHOWN_REJECTIONS]))
        )
    if min(num_documents.values()) < MIN_DOCUMENTS:
        raise SourceError(_too_few(section, num_documents, len(exclusions)))


def split_of(document_id: str, heldout_fraction: float) -> str:
    """A function of the id alone: other documents cannot move this one, and a larger share only adds to heldout."""
    return "heldout" if id_hash(document_id) < heldout_fraction * 2**64 else "train"


def group_files(files: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Cut a list of files into groups. Whether a group ends after a file depends on that file alone, so a file that
    comes or goes changes its own group only.
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


class Pile:
    """Documents of one split that wait for their shard to be full."""

    def __init__(self, documents_per_shard: int) -> None:
        self.documents_per_shard = documents_per_shard
        self.documents: list[Document] = []
        self._full_at = 0  # so many of them make a full shard; 0: not yet
        self._characters = 0  # of those that come after

    def add(self, document: Document) -> list[Document]:
        """The documents of a full shard when half of the next has come, so that the last is not a small one."""
        self.documents.append(document)
        self._characters += sum(map(len, document.texts))
        parts = 1 if not self._full_at else 0.5
        count = len(self.documents) - self._full_at
        if count < parts * self.documents_per_shard and self._characters < parts * CHARACTERS_PER_SHARD:
            return []
        leaving, self.documents = self.documents[: self._full_at], self.documents[self._full_at :]
        self._full_at = 0 if leaving else len(self.documents)
        self._characters = self._characters if leaving else 0
        return leaving


class Dealer:
    """Deals the documents of every group out to shards, and reads only the groups that do not stand already."""

    def __init__(self, section: CorpusRecipe, store: ShardStore, excluded: EvaluationIndex | None) -> None:
        self.section, self.store, self.excluded = section, store, excluded
        self.groups: list[Entry] = []  # in the order of the source
        self._taken: set[int] = set()  # hashes of the ids of earlier groups

    def shards(self) -> Iterator[Shard]:
        not_held = {"excluded": self.excluded.fingerprint} if self.excluded else {}
        if self.section.source == "sample":
            from bert_pipeline.data.sources.sample import sample_documents

            texts = sample_documents(self.section.sample_documents, self.section.seed)
            rules = self.section.model_dump(exclude={"exclude_tasks"}) | not_held
            yield from self._deal(rules, (Document(name, (text,), "sample") for name, text in texts))
            return
        rules = self.section.model_dump(exclude={"path", "max_rejected_fraction", "exclude_tasks"}) | not_held
        files = source_files(self.section)
        progress = Progress("raw_corpus: reading", sum(path.stat().st_size for path in files.values()), "bytes")
        for group in group_files(files):
            made_from = rules | {"files": {name: artifact.file_digest(path) for name, path in group.items()}}
            if self._adopt(made_from):
                progress.advance(sum(path.stat().st_size for path in group.values()))
            else:
                fields = self.section.text_fields, self.section.id_field
                yield from self._deal(made_from, read_documents(group, *fields, progress, self._taken))

    def _adopt(self, made_from: dict[str, Any]) -> bool:
        """Take a group over that stands whole, and whose ids no earlier group has taken in the meantime."""
        group = self.store.standing(made_from)
        if group is None or any(each["reason"] == TAKEN_EARLIER for each in group.facts["rejections"]):
            return False
        shards = [entry for shard in group.facts["shards"] if (entry := self.store.standing(shard))]
        if len(shards) < len(group.facts["shards"]):
            return False
        if self.section.id_field:
            paths = [self.store.path(shard, name) for shard in shards for name in shard.files]
            ids = {
                id_hash(each) for path in paths for each in pq.read_table(path, columns=["document_id"])[0].to_pylist()
            } | {id_hash(each["document_id"]) for each in group.facts.get("exclusions", ())}
            if ids & self._taken:
                return False
            self._taken |= ids
        for entry in (group, *shards):
            self.store.adopt(entry)
        self.groups.append(group)
        return True

    def _deal(self, made_from: dict[str, Any], records: Iterable[Document | Rejection]) -> Iterator[Shard]:
        """The shards of a group that is read."""
        group = self.store.fingerprint(made_from)
        rejections, exclusions, shards = [], [], []
        piles = {split: Pile(self.section.documents_per_shard) for split in SPLITS}

        def shard_of(split: str, documents: list[Document]) -> Shard:
            ids = [document.document_id for document in documents]
            name = f"{split}/{formats.shard_name(ids[0])}"
            shards.append({"group": group, "ids": artifact.fingerprint({"ids": ids})})
            return Shard(name, shards[-1], (self.section, name, documents))

        for record in _sifted(records, self.excluded) if self.excluded else records:
            if isinstance(record, Rejection):
                rejections.append(asdict(record))
                continue
            if self.section.id_field:
                self._taken.add(id_hash(record.document_id))
            if isinstance(record, Exclusion):
                exclusions.append(asdict(record))
                continue
            split = split_of(record.document_id, self.section.heldout_fraction)
            if leaving := piles[split].add(record):
                yield shard_of(split, leaving)
        for split, pile in piles.items():
            if pile.documents:
                yield shard_of(split, pile.documents)
        facts: Facts = {"rejections": rejections, "shards": shards}
        if self.excluded:
            facts["exclusions"] = exclusions
        self.groups.append(self.store.note(made_from, facts))


def _sifted(
    records: Iterable[Document | Rejection], excluded: EvaluationIndex
) -> Iterator[Document | Rejection | Exclusion]:
    """The records in their order; an Exclusion stands for a document that holds an example."""
    records = iter(records)
    while some := list(islice(records, SEARCHED_TOGETHER)):
        documents = [record for record in some if isinstance(record, Document)]
        found = excluded.search([each.document_id for each in documents], [" ".join(each.texts) for each in documents])
        held = {}
        for number, holdings in found:
            if rows := [each.row for each in holdings if each.rule != "phrase"]:
                held[documents[number]] = Exclusion(documents[number].source, documents[number].document_id, rows)
        yield from (held.get(record, record) if isinstance(record, Document) else record for record in some)


def _too_few(section: CorpusRecipe, num_documents: dict[str, int], num_excluded: int) -> str:
    source = section.path or section.source
    train, heldout = num_documents["train"], num_documents["heldout"]
    if train + heldout < 2 * MIN_DOCUMENTS:
        remedy = "bring more documents (in a .txt file, a blank line stands between documents)"
    elif heldout < MIN_DOCUMENTS:
        enough = min(0.5, round(10 / (train + heldout), 4))
        remedy = f"raise corpus.heldout_fraction (for example to {enough:g}), or bring more text"
    else:
        remedy = "lower corpus.heldout_fraction, or bring more text"
    excluded = f" ({num_excluded} more left out by corpus.exclude_tasks)" if num_excluded else ""
    return (
        f"{source}: {train + heldout} documents{excluded}, of which {train} to train and {heldout} held out "
        f"(corpus.heldout_fraction = {section.heldout_fraction:g}); each needs at least {MIN_DOCUMENTS}, "
        f"because a random next sentence comes from another document; remedy: {remedy}"
    )


def write_shard(folder: Path, section: CorpusRecipe, name: str, documents: list[Document]) -> Facts:
    """Clean and split the documents of one shard, and write them to `name`.parquet; its facts."""
    sentences = [_sentences(document, section) for document in documents]
    columns = [[each.document_id for each in documents], sentences, [each.source for each in documents]]
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=CORPUS_SCHEMA)
    write_table(folder / f"{name}.parquet", table)
    num_sentences = [len(each) for each in sentences]
    num_words = [" ".join(each).count(" ") + 1 for each in sentences]
    return {
        "documents": len(documents),
        "sentences": sum(num_sentences),
        "words": sum(num_words),
        "sentences_histogram": np.histogram(num_sentences, HISTOGRAM_EDGES)[0].tolist(),
        "words_histogram": np.histogram(num_words, HISTOGRAM_EDGES)[0].tolist(),
        "example": "\n".join(sentences[0])[:EXAMPLE_LENGTH],
    }


def _sentences(document: Document, section: CorpusRecipe) -> list[str]:
    split = split_sentences if section.sentence_splitter == "segtok" else split_lines
    try:
        texts = [clean(text, section.unicode_normalization) for text in document.texts]
        return [sentence for text in texts for sentence in split(text)]
    except Exception as error:
        error.add_note(f"document {document.document_id} of {document.source}")
        raise


_CONTROLS = [
    char for char in map(chr, range(0x10000)) if unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
]
_CONTROL = re.compile(f"[{re.escape(''.join(_CONTROLS))}]")


def clean(text: str, unicode_normalization: Normalization) -> str:
    """The text as it goes into sentences; see the head of this file."""
    if unicode_normalization != "none":
        text = unicodedata.normalize(unicode_normalization, text)
    return _CONTROL.sub("", text)


def _histogram(counts: list[int]) -> dict[str, list[int]]:
    """Without the empty bins at both ends. Bin i counts edges[i] <= x < edges[i + 1]."""
    occupied = np.flatnonzero(counts)
    first, last = int(occupied[0]), int(occupied[-1])
    return {"edges": HISTOGRAM_EDGES[first : last + 2].tolist(), "counts": counts[first : last + 1]}
