"""Count the words of a corpus in worker processes, in memory that does not grow with the corpus.

    shards -> sorted counts per shard -> merged, FAN_IN files at a time -> the KEPT_WORDS most frequent words

A word is a unit produced by the tokenizer's normalizer and pre-tokenizer; pieces are learned from words. Memory: a
counting worker holds a batch of documents and the distinct words of its shard; a merging worker holds BATCH_WORDS of
each of its FAN_IN files; the stage itself holds at most twice KEPT_WORDS.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert_pipeline.data.tokenizer.characters import Characters
from bert_pipeline.data.tokenizer.items import itemize
from bert_pipeline.formats.corpus import CorpusShard
from bert_pipeline.store.executors import map_shards

KEPT_WORDS = 1_500_000
"""Maximum number of distinct words to learn pieces from; the learner needs about 300 bytes per word."""
BATCH_WORDS = 20_000
FAN_IN = 16

SCHEMA = pa.schema([pa.field("word", pa.string(), nullable=False), pa.field("count", pa.int64(), nullable=False)])


class Sample(NamedTuple):
    """A random sample of documents, decided for each document by a hash of its id and the seed."""

    seed: int
    share: float

    def holds(self, document_id: str) -> bool:
        code = hashlib.blake2b(document_id.encode(), digest_size=8, key=self.seed.to_bytes(4)).digest()
        return int.from_bytes(code) < self.share * 2**64


class WordCounts(NamedTuple):
    words: pa.StringArray  # sorted
    counts: np.ndarray  # (words,) int64
    num_documents: int
    num_distinct: int  # distinct words in the text; `words` holds the most frequent ones
    num_cut: int  # occurrences of the distinct words not in `words`


def count_corpus(tokenizer: Any, shards: list[CorpusShard], sample: Sample, scratch: Path) -> WordCounts:
    """Count the words of the sampled documents. `scratch`: a folder that all workers can write to."""
    files = [scratch / "shards" / shard.path.name for shard in shards]
    tasks = [(shard.name, (tokenizer, shard, sample, file)) for shard, file in zip(shards, files, strict=True)]
    num_documents = map_shards("tokenizer: counting words", _count_shard, tasks, total=len(tasks))
    while len(files) > 1:
        groups = [files[n : n + FAN_IN] for n in range(0, len(files), FAN_IN)]
        files = [scratch / f"{len(files)}-merged" / group[0].name for group in groups]
        merges = [(file.name, (group, file)) for group, file in zip(groups, files, strict=True)]
        map_shards("tokenizer: merging counts", _merge_files, merges, total=len(merges))
    return _most_frequent(_merged(files), sum(num_documents))


def count_words(tokenizer: Any, batches: Iterable[pa.StringArray]) -> Counter[str]:
    """Count the words of sentences. Each distinct item (items.py) is normalized once."""
    characters = Characters(tokenizer)
    seen: Counter[str] = Counter()
    for sentences in batches:
        items = itemize(sentences, characters.table(sentences).kinds)
        counted = np.bincount(items.numbers, minlength=len(items.starts)).tolist()
        seen.update(dict(zip(items.strings(), counted, strict=True)))
    counts: Counter[str] = Counter()
    for words, count in zip(characters.words(pa.array(list(seen), pa.string())), seen.values(), strict=True):
        for word in words:
            counts[word] += count
    return counts


def _count_shard(tokenizer: Any, shard: CorpusShard, sample: Sample, out: Path) -> int:
    """Write the sorted words of a shard with their counts; return the number of sampled documents."""
    num_documents = 0

    def sentences() -> Iterator[pa.StringArray]:
        nonlocal num_documents
        for batch in shard.batches("document_id", "sentences"):
            chosen = batch.filter(pa.array(map(sample.holds, batch["document_id"].to_pylist()), pa.bool_()))
            num_documents += len(chosen)
            yield chosen["sentences"].flatten()

    _write(out, [as_table(count_words(tokenizer, sentences()))])
    return num_documents


def as_table(counts: Counter[str]) -> pa.Table:
    """The counts as a table, sorted by the code points of the words."""
    words = sorted(counts)
    return pa.table([words, [counts[word] for word in words]], schema=SCHEMA)


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    path.parent.mkdir(exist_ok=True)
    with pq.ParquetWriter(path, SCHEMA, use_dictionary=False) as writer:  # words are distinct
        for table in tables:
            writer.write_table(table, row_group_size=BATCH_WORDS)


def _merge_files(files: list[Path], out: Path) -> None:
    _write(out, _merged(files))


def _merged(files: list[Path]) -> Iterator[pa.Table]:
    """Merge the sorted counts of all files into one sequence of sorted tables in which each word occurs once."""
    unread = [pq.ParquetFile(file).iter_batches(BATCH_WORDS, use_threads=False) for file in files]
    held: list[pa.RecordBatch | None] = [None for _ in files]
    while True:
        held = [batch or next(filter(len, stream), None) for batch, stream in zip(held, unread, strict=True)]
        batches = [batch for batch in held if batch]
        if not batches:
            return
        last = min(batch["word"][-1].as_py() for batch in batches)  # all files have been read up to this word
        ends = [bisect_right(batch["word"], last, key=str) if batch else 0 for batch in held]
        yield _summed([batch.slice(0, end) for batch, end in zip(held, ends, strict=True) if batch])
        held = [batch.slice(end) if batch else None for batch, end in zip(held, ends, strict=True)]


def _summed(batches: list[pa.RecordBatch]) -> pa.Table:
    groups = pa.Table.from_batches(batches).group_by("word", use_threads=False)
    return groups.aggregate([("count", "sum")]).rename_columns(SCHEMA.names).cast(SCHEMA).sort_by("word")


def _most_frequent(tables: Iterable[pa.Table], num_documents: int) -> WordCounts:
    """The KEPT_WORDS most frequent words; ties are broken by code points."""
    kept = SCHEMA.empty_table()
    num_distinct, num_words = 0, 0
    for table in tables:
        num_distinct += len(table)
        num_words += pc.sum(table["count"]).as_py()
        kept = pa.concat_tables([kept, table])
        if len(kept) > 2 * KEPT_WORDS:
            kept = _cut(kept)
    kept = _cut(kept)
    words, counts = kept["word"].combine_chunks(), kept["count"].to_numpy()
    pa.default_memory_pool().release_unused()  # Arrow would otherwise keep 100 MB and more
    return WordCounts(words, counts, num_documents, num_distinct, num_words - int(counts.sum()))


def _cut(table: pa.Table) -> pa.Table:
    if len(table) <= KEPT_WORDS:
        return table
    first = pc.select_k_unstable(table, KEPT_WORDS, [("count", "descending"), ("word", "ascending")])
    return table.take(first).sort_by("word")
