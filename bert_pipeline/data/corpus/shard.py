"""One shard of the corpus, built by a worker: the kept records, cleaned and split into sentences, and a ledger of all.

The content of a shard depends only on its own records and the recipe.

Cleaning: first the rules named in the recipe (cleaning.py), then the recipe's Unicode normalization. Then control and
format characters (Unicode categories Cc and Cf: NUL, byte order marks, soft hyphens, zero-width spaces, direction
marks) are removed, as in BERT's own tokenizer; those that are white space (tab, line feed, ...) separate words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from bert_pipeline.core.text import UNUSUAL, kind_of_text
from bert_pipeline.data.contamination.overlap import EvaluationIndex
from bert_pipeline.data.corpus.cleaning import RULES, apply_rules
from bert_pipeline.data.corpus.ledger import FOLDER, write_ledger
from bert_pipeline.data.corpus.near_duplicates import packed, signatures
from bert_pipeline.data.corpus.sentences import split_lines, split_sentences
from bert_pipeline.data.sources.records import Document, PassedOver, Rejection
from bert_pipeline.formats.corpus import CORPUS_SCHEMA
from bert_pipeline.formats.tables import SPLITS, id_hash, shard_name, write_table
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.store.artifact import Facts

Normalization = Literal["NFC", "NFKC", "none"]

CHARACTERS_PER_SHARD = 2**24
"""Bounds memory, which holds several shards: a shard of long documents ends before documents_per_shard."""

TOO_SHORT = "fewer words than corpus.min_words"
OTHER_LANGUAGE = "another language than corpus.language"
HOLDS_EXAMPLE = "holds an evaluation example"
NO_SENTENCE = "no sentence is left of it"


def split_of(document_id: str, heldout_fraction: float) -> str:
    """The split of a document, from its id alone: a larger heldout_fraction only adds documents to heldout."""
    return "heldout" if id_hash(document_id) < heldout_fraction * 2**64 else "train"


class Pile:
    """Records of one split, collected until they fill a shard."""

    def __init__(self, documents_per_shard: int) -> None:
        self.documents_per_shard = documents_per_shard
        self.documents: list[Document] = []
        self._full_at = 0  # number of records in the full shard; 0 while there is none
        self._characters = 0  # in the records after the full shard

    def add(self, document: Document) -> list[Document]:
        """Add a record. Return a full shard once the next one is half full, so that the last shard is not small;
        else [].
        """
        self.documents.append(document)
        self._characters += sum(map(len, document.texts))
        share = 0.5 if self._full_at else 1
        count = len(self.documents) - self._full_at
        if count < share * self.documents_per_shard and self._characters < share * CHARACTERS_PER_SHARD:
            return []
        full, self.documents = self.documents[: self._full_at], self.documents[self._full_at :]
        self._full_at = 0 if full else len(self.documents)
        self._characters = self._characters if full else 0
        return full


class Kept(NamedTuple):
    record: Document
    sentences: list[str]
    num_words: int


@dataclass
class Aside:
    """What a source yields beside documents."""

    rejections: list[Rejection] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)

    def documents(self, records: Iterable[Document | Rejection | PassedOver]) -> Iterator[Document]:
        """Yield the documents and keep the others."""
        for record in records:
            if isinstance(record, Document):
                yield record
            elif isinstance(record, Rejection):
                self.rejections.append(record)
            else:
                self.passed_over.append(record)


def deal(section: CorpusRecipe, documents: Iterable[Document]) -> Iterator[tuple[str, list[Document]]]:
    """Yield the name and the documents of each shard."""
    piles = {split: Pile(section.documents_per_shard) for split in SPLITS}
    for document in documents:
        split = split_of(document.document_id, section.heldout_fraction)
        if full := piles[split].add(document):
            yield _shard_name(split, full), full
    for split, pile in piles.items():
        if pile.documents:
            yield _shard_name(split, pile.documents), pile.documents


def _shard_name(split: str, records: list[Document]) -> str:
    """The name from the place (file and number) of the first record; its id may occur again in a later file."""
    return f"{split}/{shard_name(records[0].place)}"


def write_file(
    folder: Path, section: CorpusRecipe, read: Callable[[], Iterator[Document | Rejection]], index: Path | None
) -> Facts:
    """Read a source file and write the shards of its records; return the shards' facts and what was set aside."""
    aside = Aside()
    shards = {
        name: write_shard(folder, section, name, records, index)
        for name, records in deal(section, aside.documents(read()))
    }
    return {"shards": shards, **asdict(aside)}


def write_shard(
    folder: Path, section: CorpusRecipe, name: str, records: list[Document], index: Path | None = None
) -> Facts:
    """Clean and split the records of one shard; write the kept ones to `name`.parquet, and a ledger of all.

    `index`: folder of the EvaluationIndex with the examples that no document may hold. Facts: `records`, `deletions`,
    `stored`, `cleaned_by_rule` (documents changed by each rule) and `held` (examples found in documents).
    """
    held = _held(index, records) if index else {}
    cleaned_by_rule: Counter[str] = Counter()
    ledger: list[dict[str, Any]] = []
    kept: list[Kept] = []
    for number, record in enumerate(records):
        try:
            sentences, reason, detail = _process(record, section, number in held, cleaned_by_rule)
        except Exception as error:
            error.add_note(f"document {record.document_id} of {record.source}")
            raise
        text = "\n".join(sentences).encode()
        ledger.append(_entry(record, text, reason, detail, len(kept)))
        if sentences:
            kept.append(Kept(record, sentences, text.count(b" ") + len(sentences)))
    write_table(folder / f"{name}.parquet", _table(kept))
    texts = [" ".join(each.sentences) for each in kept] if section.near_duplicate_threshold else None
    write_ledger(folder / FOLDER / f"{name}.parquet", ledger, packed(signatures(texts)) if texts is not None else None)
    return {
        "records": len(records),
        "deletions": sum(record.deleted for record in records),
        "stored": len(kept),
        "cleaned_by_rule": dict(cleaned_by_rule),
        "held": [
            {"file": records[number].source, "document_id": records[number].document_id, "held": rows}
            for number, rows in held.items()
        ],
    }


def _process(
    record: Document, section: CorpusRecipe, holds_example: bool, cleaned_by_rule: Counter[str]
) -> tuple[list[str], str, str]:
    """(sentences, reason, detail): the sentences of a kept record, or [] with the reason for dropping it."""
    if record.deleted:
        return [], "", ""
    if holds_example:
        return [], HOLDS_EXAMPLE, ""
    texts, rules = apply_rules(record.texts, RULES if "all" in section.cleaning else section.cleaning)
    cleaned_by_rule.update(rules)
    texts = tuple(clean(text, section.unicode_normalization) for text in texts)
    body = texts[1:] if section.source == "pubmed" else texts  # a citation without its title
    num_words = sum(len(text.split()) for text in body) if section.min_words else 0
    if num_words < section.min_words:
        return [], TOO_SHORT, f"{num_words} words"
    if section.language:
        from bert_pipeline.data.corpus.language import language_of

        if (found := language_of(" ".join(body))) not in ("", section.language):
            return [], OTHER_LANGUAGE, found
    split = split_sentences if section.sentence_splitter == "segtok" else split_lines
    sentences = [sentence for text in texts for sentence in split(text)]
    return sentences, "" if sentences else NO_SENTENCE, ""


def _entry(record: Document, text: bytes, reason: str, detail: str, row: int) -> dict[str, Any]:
    """The ledger row of a record. `text`: its sentences, as lines."""
    about = "\0".join([record.document_id, str(record.version), record.date, record.journal]).encode()
    return {
        "document_id": record.document_id,
        "id_hash": id_hash(record.document_id),
        "source": record.source,
        "number": record.number,
        "version": record.version,
        "row": row if text else -1,
        "reason": reason,
        "detail": detail,
        "content": _hash(about + b"\0" + text),
        "text": _hash(text),
        "deleted": record.deleted,
        "retracted": record.retracted,
        "retracts": [id_hash(each) for each in record.retracts],
    }


def _hash(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest())


def _table(kept: list[Kept]) -> pa.Table:
    records = [each.record for each in kept]
    columns = [
        [record.document_id for record in records],
        [each.sentences for each in kept],
        [record.source for record in records],
        [record.version for record in records],
        [record.date for record in records],
        [record.journal for record in records],
        [len(each.sentences) for each in kept],
        [each.num_words for each in kept],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CORPUS_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=CORPUS_SCHEMA)


def _held(index: Path, records: list[Document]) -> dict[int, list[dict[str, Any]]]:
    """The evaluation examples found in the records, by the number of the record."""
    texts = [" ".join(record.texts) for record in records]
    found = _open_index(index).search([record.document_id for record in records], texts)
    held = {number: [each.row for each in holdings if each.rule != "phrase"] for number, holdings in found}
    return {number: rows for number, rows in held.items() if rows}


@lru_cache(maxsize=1)
def _open_index(folder: Path) -> EvaluationIndex:
    return EvaluationIndex.load(folder)


_CONTROLS = [
    char for char in map(chr, range(0x10000)) if unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
]
_CONTROL = re.compile(f"[{re.escape(''.join(_CONTROLS))}]")


def clean(text: str, unicode_normalization: Normalization) -> str:
    """Normalize a text and remove control characters; see the head of this file."""
    if unicode_normalization != "none":
        text = unicodedata.normalize(unicode_normalization, text)
    return _CONTROL.sub("", text) if kind_of_text(text) == UNUSUAL else text
