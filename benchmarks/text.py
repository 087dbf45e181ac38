"""The text of a benchmark: so many megabytes of a file or of the generated sample, as ours and the peers read it.

<folder>/text.jsonl        documents as they came: what our raw-corpus stage reads
<folder>/settings.json     what our recipe says of it
<folder>/sentences.txt     our sentences, one a line, a blank line between documents: what the peers read
<folder>/raw_corpus ...    our artifacts, at 128 tokens: what single measurements begin from
"""

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer

VOCABULARY_SIZES = (30_522, 16_000, 8_000, 4_000, 2_000, 1_000, 500)
"""BERT's own, or else the largest that the text can fill."""

Fields = tuple[str, ...]


def choose_fields(text: str, text_fields: Fields | None) -> Fields:
    """What makes up a document: as asked, else `text`, or whichever of title and text a .jsonl has."""
    from bert_pipeline.data.sources.files import Document, find_files, read_documents

    if text_fields or ".jsonl" not in Path(text).name.lower():
        return text_fields or ("text",)
    for fields in (("title", "text"), ("text",), ("title",)):
        if any(isinstance(record, Document) for record in islice(read_documents(find_files(text), fields), 100)):
            return fields
    raise SystemExit(f"{text}: neither title nor text in its first 100 records; remedy: --text-fields NAME,NAME")


def documents(text: str | None, fields: Fields) -> Iterator[dict[str, str]]:
    if text is None:
        from bert_pipeline.data.sources.sample import sample_documents

        for _, sample in sample_documents(10**9, seed=12345):
            yield {"text": sample}
    else:
        from bert_pipeline.data.sources.files import Document, find_files, read_documents

        for record in read_documents(find_files(text), fields):
            if isinstance(record, Document):
                yield dict(zip(fields, record.texts, strict=True))


def take(text: str | None, fields: Fields, megabytes: float, folder: str) -> Answer:
    """Copy the first `megabytes` (UTF-8) of the documents to text.jsonl."""
    num_documents = num_bytes = 0
    Path(folder).mkdir(parents=True)
    with Path(folder, "text.jsonl").open("w", encoding="utf-8") as out:
        for document in documents(text, tuple(fields)):
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
            num_documents += 1
            num_bytes += sum(len(each.encode()) for each in document.values())
            if num_bytes >= megabytes * 1e6:
                break
    return {"documents": num_documents, "megabytes": num_bytes / 1e6}


def recipe(folder: Path, max_seq_length: int) -> Any:
    """One pass at one length; everything else as published."""
    from bert_pipeline.recipe import Recipe

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    phase = {"max_seq_length": max_seq_length, "num_steps": 1, "learning_rate": 1e-4, "warmup_steps": 0}
    written = {
        "name": "benchmark",
        "corpus": settings["corpus"] | {"path": str(folder / "text.jsonl")},
        "tokenizer": settings["tokenizer"],
        "nsp": {"dupe_factor": 1},
        "pretrain": {"phases": [phase]},
    }
    return Recipe.model_validate_json(json.dumps(written))


def prepare(folder: str, fields: Fields, documents_per_shard: int, peer_megabytes: float) -> Answer:
    """Our artifacts of text.jsonl, and the peers' share of its sentences."""
    from bert_pipeline.data.tokenizer import VocabularyError
    from bert_pipeline.stages import make_stage

    here, started = Path(folder), time.perf_counter()
    made: dict[str, Any] = {}
    for vocab_size in VOCABULARY_SIZES:
        corpus = {"text_fields": fields, "documents_per_shard": documents_per_shard}
        settings = {"corpus": corpus, "tokenizer": {"vocab_size": vocab_size}}
        (here / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        chosen = recipe(here, 128)
        made["raw_corpus"] = make_stage("raw_corpus", chosen, {}, here / "raw_corpus")
        try:
            made["tokenizer"] = make_stage("tokenizer", chosen, made, here / "tokenizer")
            break
        except VocabularyError:
            if vocab_size == VOCABULARY_SIZES[-1]:
                raise
    for kind in ("nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, chosen, made, here / kind)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "vocab_size": made["tokenizer"].facts["vocab_size"],
        "sentences": made["raw_corpus"].facts["train_sentences"],
        "words": made["raw_corpus"].facts["train_words"],
        "peer_megabytes": write_sentences(here / "raw_corpus", here / "sentences.txt", peer_megabytes),
    }


def write_sentences(raw_corpus: Path, out: Path, megabytes: float) -> float:
    """The first documents of the training split; no blank line at the end, where transformers' reader trips."""
    from bert_pipeline.formats import iterate_documents

    num_bytes = 0
    with out.open("w", encoding="utf-8") as lines:
        for number, document in enumerate(iterate_documents(raw_corpus, "train")):
            num_bytes += lines.write("\n" * (number > 0) + "".join(f"{sentence}\n" for sentence in document))
            if num_bytes >= megabytes * 1e6:
                break
    return num_bytes / 1e6


if __name__ == "__main__":
    answer(take, prepare)
