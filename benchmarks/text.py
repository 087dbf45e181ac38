"""The text of a benchmark: so many megabytes of a file or of the generated sample, as ours and the peers read it.

<folder>/text.jsonl        documents as they came: what our raw-corpus stage reads
<folder>/settings.json     what our recipe says of it
<folder>/sentences.txt     our sentences, one a line, a blank line between documents: what the peers read
<folder>/raw_corpus ...    our artifacts, at 128 tokens: what single measurements begin from
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer

VOCABULARY_SIZES = (30_522, 16_000, 8_000, 4_000, 2_000, 1_000, 500)
"""BERT's own, or else the largest that the text can fill."""

Fields = tuple[str, ...]


def choose_fields(text: str, text_fields: Fields | None) -> Fields:
    """What makes up a document: as asked, else `text`, or whichever of title and text a .jsonl has."""
    from bert_pipeline.data.sources.files import find_files, read_documents
    from bert_pipeline.data.sources.records import Document

    if text_fields or ".jsonl" not in Path(text).name.lower():
        return text_fields or ("text",)
    for fields in (("title", "text"), ("text",), ("title",)):
        if any(isinstance(record, Document) for record in islice(read_documents(find_files(text), fields), 100)):
            return fields
    raise SystemExit(f"{text}: neither title nor text in its first 100 records; remedy: --text-fields NAME,NAME")


def documents(text: str | None, fields: Fields) -> Iterator[dict[str, str]]:
    if text is None:
        from bert_pipeline.data.sources.sample.documents import sample_documents

        for _, sample in sample_documents(10**9, seed=12345):
            yield {"text": sample}
    else:
        from bert_pipeline.data.sources.files import find_files, read_documents
        from bert_pipeline.data.sources.records import Document

        for record in read_documents(find_files(text), fields):
            if isinstance(record, Document):
                yield dict(zip(fields, record.texts, strict=True))


def take(text: str | None, fields: Fields, megabytes: float, folder: str, among: float | None = None) -> Answer:
    """Copy the first `megabytes` (UTF-8) of the documents to text.jsonl, or so many spread over the first `among`."""
    every = 1
    if among:
        found = sum(map(num_bytes, first(among, documents(text, tuple(fields)))))
        every = max(1, int(found / (megabytes * 1e6)))
    num_documents = total = 0
    Path(folder).mkdir(parents=True)
    with Path(folder, "text.jsonl").open("w", encoding="utf-8") as out:
        for document in first(megabytes, islice(documents(text, tuple(fields)), 0, None, every)):
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
            num_documents += 1
            total += num_bytes(document)
    return {"documents": num_documents, "megabytes": total / 1e6}


def first(megabytes: float, given: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """As many documents as it takes to fill them."""
    total = 0
    for document in given:
        yield document
        total += num_bytes(document)
        if total >= megabytes * 1e6:
            break


def num_bytes(document: dict[str, str]) -> int:
    return sum(len(each.encode()) for each in document.values())


def recipe(folder: Path, max_seq_length: int, **corpus: Any) -> Any:
    """One pass at one length; everything else as published. `corpus` is another one than text.jsonl."""
    from bert_pipeline.recipe import Recipe

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    phase = {"max_seq_length": max_seq_length, "num_steps": 1, "learning_rate": 1e-4, "warmup_steps": 0}
    written = {
        "name": "benchmark",
        "corpus": settings["corpus"] | {"path": str(folder / "text.jsonl")} | corpus,
        "tokenizer": settings["tokenizer"],
        "nsp": {"dupe_factor": 1},
        "pretrain": {"phases": [phase]},
    }
    return Recipe.model_validate_json(json.dumps(written))


def corpus_and_tokenizer(chosen: Any, folder: Path) -> dict[str, Any]:
    """The first two artifacts of a recipe, with the largest vocabulary, up to its own, that the text can fill."""
    from bert_pipeline.data.tokenizer.build import VocabularyError
    from bert_pipeline.stages import make_stage

    made = {"raw_corpus": make_stage("raw_corpus", chosen, {}, folder / "raw_corpus")}
    wanted = chosen.tokenizer.vocab_size
    for vocab_size in (wanted, *(size for size in VOCABULARY_SIZES if size < wanted)):
        section = chosen.tokenizer.model_copy(update={"vocab_size": vocab_size})
        try:
            smaller = chosen.model_copy(update={"tokenizer": section})
            return made | {"tokenizer": make_stage("tokenizer", smaller, made, folder / "tokenizer")}
        except VocabularyError as error:
            too_large = error
    raise too_large


def prepare(folder: str, fields: Fields, documents_per_shard: int, peer_megabytes: float) -> Answer:
    """Our artifacts of text.jsonl, its sentences as text, and the peers' share of them."""
    from bert_pipeline.stages import make_stage

    here, started = Path(folder), time.perf_counter()

    def settle(tokenizer: dict[str, Any]) -> Any:
        corpus = {"text_fields": fields, "documents_per_shard": documents_per_shard}
        (here / "settings.json").write_text(json.dumps({"corpus": corpus, "tokenizer": tokenizer}), encoding="utf-8")
        return recipe(here, 128)

    made = corpus_and_tokenizer(settle({}), here)
    chosen = settle({"vocab_size": made["tokenizer"].facts["vocab_size"]})
    for kind in ("nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, chosen, made, here / kind)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "vocab_size": made["tokenizer"].facts["vocab_size"],
        "sentences": made["raw_corpus"].facts["train_sentences"],
        "words": made["raw_corpus"].facts["train_words"],
        "sentence_megabytes": write_sentences(here / "raw_corpus", here / "all-sentences.txt", math.inf),
        "peer_megabytes": write_sentences(here / "raw_corpus", here / "sentences.txt", peer_megabytes),
    }


def write_sentences(raw_corpus: Path, out: Path, megabytes: float) -> float:
    """The first documents of the training split; no blank line at the end, where transformers' reader trips."""
    from bert_pipeline.formats.corpus import iterate_documents

    num_bytes = 0
    with out.open("w", encoding="utf-8") as lines:
        for number, document in enumerate(iterate_documents(raw_corpus, "train")):
            num_bytes += lines.write("\n" * (number > 0) + "".join(f"{sentence}\n" for sentence in document))
            if num_bytes >= megabytes * 1e6:
                break
    return num_bytes / 1e6


if __name__ == "__main__":
    answer(take, prepare)
