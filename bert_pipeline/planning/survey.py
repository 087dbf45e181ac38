"""Reads the source of a recipe for some seconds, counts documents and characters, and keeps a sample.

Counts are exact for the part that was read; the rest is assumed to be alike. The sample is uniform over that part: the
documents with the smallest hashes, not the head of a file, which may be sorted.
"""

import heapq
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pyarrow.parquet as pq

from bert_pipeline.core.progress import Progress
from bert_pipeline.data.corpus.build import MIN_DOCUMENTS
from bert_pipeline.data.corpus.shard import CHARACTERS_PER_SHARD, split_of
from bert_pipeline.data.corpus.sources import read_source_files, source_files
from bert_pipeline.data.sources.records import Document, PassedOver, Rejection, SourceError
from bert_pipeline.formats.tables import SPLITS, id_hash
from bert_pipeline.recipe import CorpusRecipe

READING_SECONDS = 10.0
SAMPLE_CHARACTERS = CHARACTERS_PER_SHARD * 4 // 3
"""Three quarters of it, the training part, make a full shard: enough text for a vocabulary as good as the corpus's."""
ORDER_SEED = 12345

log = logging.getLogger(__name__)


@dataclass
class Survey:
    """Counts and a sample of the part of the source that was read."""

    bytes_total: int = 0  # of all files; 0 if the text is generated
    share_read: float = 0.0
    seconds: float = 0.0
    rejected: int = 0
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    characters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    sample: list[Document] = field(default_factory=list)

    @property
    def sample_characters(self) -> int:
        return sum(map(num_characters, self.sample))

    @property
    def is_whole(self) -> bool:
        """Whether the sample is the complete corpus."""
        return self.share_read == 1 and len(self.sample) == sum(self.documents.values())


def num_characters(document: Document) -> int:
    return sum(map(len, document.texts))


def read_source(section: CorpusRecipe) -> Survey:
    """Read the source, files in a seeded random order, to its end or for READING_SECONDS.

    Raise SourceError if it has too few documents.
    """
    found = Survey(bytes_total=sum(path.stat().st_size for path in source_files(section).values()))
    kept: list[tuple[int, int, Document]] = []  # a heap: the next document to drop is the first
    size = 0
    clock = time.monotonic()
    for number, (share, record) in enumerate(_records(section)):
        if isinstance(record, Rejection):
            found.rejected += 1
        elif isinstance(record, Document) and not record.deleted:
            split = split_of(record.document_id, section.heldout_fraction)
            found.documents[split] += 1
            found.characters[split] += num_characters(record)
            # The prefix makes the hash independent of the hash of the id alone, which determines the split.
            heapq.heappush(kept, (-id_hash(f"sample {record.document_id}"), -number, record))
            size += num_characters(record)
            while size > SAMPLE_CHARACTERS and len(kept) > 2 * MIN_DOCUMENTS:
                size -= num_characters(heapq.heappop(kept)[-1])
        found.seconds = time.monotonic() - clock
        if found.seconds > READING_SECONDS and len(kept) >= 2 * MIN_DOCUMENTS:
            found.share_read = share
            break
    else:
        found.share_read = 1.0
    if len(kept) < 2 * MIN_DOCUMENTS:
        raise SourceError(
            f"{section.path or section.source}: {len(kept)} documents and {found.rejected} broken records, but at "
            f"least {2 * MIN_DOCUMENTS} documents are needed; remedy: add text"
        )
    found.sample = [document for _, _, document in sorted(kept, key=lambda entry: -entry[1])]
    log.info("plan: read %s of the source in %.1f s", f"{found.share_read:.0%}", found.seconds)
    return found


def _records(section: CorpusRecipe) -> Iterator[tuple[float, Document | Rejection | PassedOver]]:
    """Yield each record with the share of the source that has been read so far."""
    if section.source == "sample":
        from bert_pipeline.data.sources.sample.documents import sample_documents

        texts = sample_documents(section.sample_documents, section.seed)
        for number, (name, text) in enumerate(texts, 1):
            yield number / section.sample_documents, Document(name, (text,), "", number)
        return
    files = source_files(section)
    names = sorted(files)
    Random(ORDER_SEED).shuffle(names)
    total = sum(path.stat().st_size for path in files.values())
    progress = Progress("plan: reading", total, "bytes")
    before = 0
    for name in names:
        path = files[name]
        size = path.stat().st_size
        # A Parquet file is not read from start to end, so its share is counted in rows.
        num_rows = pq.ParquetFile(path).metadata.num_rows if path.suffix.lower() == ".parquet" else 0
        for number, record in enumerate(read_source_files(section, {name: path}, progress), 1):
            read = before + size * number / num_rows if num_rows else progress.done
            yield max(read, 1) / total, record
        before += size
