"""The raw corpus: documents in sentences, train and held out.

    documents of the source -> broken ones set aside -> train / heldout by id -> shards -> sentences

This process reads and deals; workers clean and split, a shard at a time. What a shard holds depends on the source
and the recipe alone, so the bytes are the same with any number of workers.

Cleaning: Unicode normalisation as the recipe says; then NUL and all other control and format characters (Unicode's
Cc and Cf: byte order marks, soft hyphens, zero-width spaces, marks of direction) are taken out, as BERT's own
tokenizer would do; those of them that are white space (tab, line feed, ...) separate words.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa

from bert_pipeline.artifact import Facts
from bert_pipeline.data.sentences import split_sentences
from bert_pipeline.data.sources.files import Document, Rejection, SourceError, find_files, id_hash, read_documents
from bert_pipeline.formats import CORPUS_SCHEMA, SPLITS, write_table
from bert_pipeline.progress import Progress
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.shards import map_shards

Normalization = Literal["NFC", "NFKC", "none"]

MIN_DOCUMENTS = 2
"""Per shard: the B segment of a random pair comes from another document of the same shard."""

HISTOGRAM_EDGES = np.unique(np.round(2 ** np.arange(0, 31.5, 0.5)).astype(np.int64))
"""Half octaves from 1 to 2**31: 1, 2, 3, 4, 6, 8, 11, 16, ..."""

SHOWN_REJECTIONS = 5


def source_files(section: CorpusRecipe) -> dict[str, Path]:
    """The files that the corpus is made of, by name; none for the sample."""
    return find_files(section.path) if section.source == "files" else {}


def build_raw_corpus(section: CorpusRecipe, out: Path) -> Facts:
    """Write {train,heldout}/shard-*.parquet and rejected.jsonl.

    Raises SourceError where a file cannot be read, too many records are broken, or a split has fewer than two
    documents.
    """
    with (out / "rejected.jsonl").open("w", encoding="utf-8") as aside:
        rejections = Rejections(aside)
        shards = map_shards("raw_corpus", write_shard, deal_shards(section, out, rejections))
    rows = {split: [facts for facts in shards if facts["split"] == split] for split in SPLITS}
    counts = {
        f"{split}_{unit}": sum(facts[unit] for facts in rows[split])
        for unit in ("documents", "sentences", "words")
        for split in SPLITS
    }
    return counts | {
        "rejected_documents": rejections.by_reason.total(),
        "rejected_by_reason": dict(rejections.by_reason),
        "sentences_per_document_histogram": _histogram(facts["sentences_histogram"] for facts in shards),
        "words_per_document_histogram": _histogram(facts["words_histogram"] for facts in shards),
        "example": rows["train"][0]["example"],
    }


class Rejections:
    """Broken records: all of them to a file, their reasons counted, the first few kept to be shown."""

    def __init__(self, aside: TextIO) -> None:
        self._aside = aside
        self.by_reason: Counter[str] = Counter()
        self.first: list[Rejection] = []

    def add(self, rejection: Rejection) -> None:
        self._aside.write(json.dumps(asdict(rejection), ensure_ascii=False) + "\n")
        self.by_reason[rejection.reason] += 1
        if len(self.first) < SHOWN_REJECTIONS:
            self.first.append(rejection)

    def check(self, num_documents: int, limit: float) -> None:
        """Raise SourceError where more than the share `limit` of all records is broken."""
        rejected = self.by_reason.total()
        records = rejected + num_documents
        if rejected > limit * records:
            raise SourceError(
                "\n  ".join(
                    [
                        f"{rejected:,} of {records:,} records are broken, more than corpus.max_rejected_fraction = "
                        f"{limit:g} allows; remedy: mend them, or raise the limit. The first of them:",
                        *map(str, self.first),
                    ]
                )
            )


def split_of(document_id: str, heldout_fraction: float) -> str:
    """A function of the id alone: other documents cannot move this one, and a larger share only adds to heldout."""
    return "heldout" if id_hash(document_id) < heldout_fraction * 2**64 else "train"


def deal_shards(
    section: CorpusRecipe, out: Path, rejections: Rejections
) -> Iterator[tuple[str, tuple[Path, list[Document], Normalization]]]:
    """The name and the arguments of `write_shard` for each shard, as the source is read.

    A shard leaves when two documents more than it holds have come, so the last one of a split has at least two.
    """
    waiting: dict[str, list[Document]] = {split: [] for split in SPLITS}
    num_documents, num_shards = Counter[str](), Counter[str]()

    def leave(split: str, size: int) -> tuple[str, tuple[Path, list[Document], Normalization]]:
        name = f"{split}/shard-{num_shards[split]:05d}.parquet"
        num_shards[split] += 1
        leaving, waiting[split] = waiting[split][:size], waiting[split][size:]
        return name, (out / name, leaving, section.unicode_normalization)

    for record in _records(section):
        if isinstance(record, Rejection):
            rejections.add(record)
            continue
        split = split_of(record.document_id, section.heldout_fraction)
        num_documents[split] += 1
        waiting[split].append(record)
        if len(waiting[split]) == section.documents_per_shard + MIN_DOCUMENTS:
            yield leave(split, section.documents_per_shard)
    rejections.check(num_documents.total(), section.max_rejected_fraction)
    if min(num_documents[split] for split in SPLITS) < MIN_DOCUMENTS:
        raise SourceError(_too_few(section, num_documents))
    for split in SPLITS:
        yield leave(split, len(waiting[split]))


def _records(section: CorpusRecipe) -> Iterator[Document | Rejection]:
    if section.source == "sample":
        from bert_pipeline.data.sources.sample import sample_documents

        for document_id, text in sample_documents(section.sample_documents, section.seed):
            yield Document(document_id, (text,), "sample")
    else:
        files = source_files(section)
        size = sum(path.stat().st_size for path in files.values())
        progress = Progress("raw_corpus: reading", size, "bytes")
        yield from read_documents(files, section.text_fields, section.id_field, progress)


def _too_few(section: CorpusRecipe, num_documents: Counter[str]) -> str:
    source = section.path or section.source
    train, heldout, total = num_documents["train"], num_documents["heldout"], num_documents.total()
    if total < 2 * MIN_DOCUMENTS:
        remedy = "bring more documents (in a .txt file, a blank line stands between documents)"
    elif heldout < MIN_DOCUMENTS:
        remedy = (
            f"raise corpus.heldout_fraction (for example to {min(0.5, round(10 / total, 4)):g}), or bring more text"
        )
    else:
        remedy = "lower corpus.heldout_fraction, or bring more text"
    return (
        f"{source}: {total} documents, of which {train} to train and {heldout} held out "
        f"(corpus.heldout_fraction = {section.heldout_fraction:g}); each needs at least {MIN_DOCUMENTS}, "
        f"because a random next sentence comes from another document; remedy: {remedy}"
    )


def write_shard(path: Path, documents: list[Document], unicode_normalization: Normalization) -> dict[str, Any]:
    """Clean and split the documents of one shard, and write them; its facts."""
    sentences = [
        [sentence for text in document.texts for sentence in split_sentences(clean(text, unicode_normalization))]
        for document in documents
    ]
    columns = [[each.document_id for each in documents], sentences, [each.source for each in documents]]
    write_table(path, pa.Table.from_arrays([pa.array(column) for column in columns], schema=CORPUS_SCHEMA))
    num_sentences = [len(each) for each in sentences]
    num_words = [sum(len(sentence.split()) for sentence in each) for each in sentences]
    return {
        "split": path.parent.name,
        "documents": len(documents),
        "sentences": sum(num_sentences),
        "words": sum(num_words),
        "sentences_histogram": np.histogram(num_sentences, HISTOGRAM_EDGES)[0],
        "words_histogram": np.histogram(num_words, HISTOGRAM_EDGES)[0],
        "example": "\n".join(sentences[0]),
    }


_CONTROLS = [
    char for char in map(chr, range(0x10000)) if unicodedata.category(char) in ("Cc", "Cf") and not char.isspace()
]
_CONTROL = re.compile(f"[{re.escape(''.join(_CONTROLS))}]")


def clean(text: str, unicode_normalization: Normalization) -> str:
    """The text as it goes into sentences; see the head of this file."""
    if unicode_normalization != "none":
        text = unicodedata.normalize(unicode_normalization, text)
    return _CONTROL.sub("", text)


def _histogram(per_shard: Iterable[np.ndarray]) -> dict[str, list[int]]:
    """The sum, without the empty bins at both ends. Bin i counts edges[i] <= x < edges[i + 1]."""
    counts = np.sum(list(per_shard), axis=0)
    occupied = np.flatnonzero(counts)
    first, last = occupied[0], occupied[-1]
    return {"edges": HISTOGRAM_EDGES[first : last + 2].tolist(), "counts": counts[first : last + 1].tolist()}
