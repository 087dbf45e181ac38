"""The text of a benchmark: the first megabytes of a file or of the generated sample, for ours and the peers.

<folder>/text.jsonl        the documents, input of our raw-corpus stage
<folder>/settings.json     the corpus and tokenizer sections of our recipe
<folder>/sentences.txt     our sentences, one per line, a blank line between documents: input of the peers
<folder>/raw_corpus ...    our artifacts, at 128 tokens: inputs of single measurements
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer

Fields = tuple[str, ...]


def documents(text: str | None, fields: Fields) -> Iterator[dict[str, str]]:
    if text is None:
        from bert_pipeline.data.sources.sample.documents import sample_documents

        for _, sample in sample_documents(10**9, seed=12345):
            yield {"text": sample}
    else:
        from bert_pipeline.data.sources.files import read_documents
        from bert_pipeline.data.sources.folders import find_files
        from bert_pipeline.data.sources.records import Document

        for record in read_documents(find_files(text), fields):
            if isinstance(record, Document):
                yield dict(zip(fields, record.texts, strict=True))


def take(text: str | None, fields: Fields, megabytes: float, folder: str, among: float | None = None) -> Answer:
    """Copy the first `megabytes` (UTF-8) of documents to text.jsonl, or as many spread over the first `among`."""
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
    """The first documents, until they fill `megabytes`."""
    total = 0
    for document in given:
        yield document
        total += num_bytes(document)
        if total >= megabytes * 1e6:
            break


def num_bytes(document: dict[str, str]) -> int:
    return sum(len(each.encode()) for each in document.values())


def recipe(folder: Path, max_seq_length: int, **corpus: Any) -> Any:
    """A recipe with one pass at one length and defaults otherwise. `corpus`: keys that differ from text.jsonl's."""
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
    """Corpus and tokenizer of a recipe, with as many pieces as the recipe wants, or as the text yields."""
    from bert_pipeline.data.tokenizer.build import VocabularySizeError
    from bert_pipeline.lineage import make_stage

    made = {"raw_corpus": make_stage("raw_corpus", chosen, {}, folder / "raw_corpus")}
    try:
        return made | {"tokenizer": make_stage("tokenizer", chosen, made, folder / "tokenizer")}
    except VocabularySizeError as error:
        section = chosen.tokenizer.model_copy(update={"vocab_size": error.possible})
        smaller = chosen.model_copy(update={"tokenizer": section})
        return made | {"tokenizer": make_stage("tokenizer", smaller, made, folder / "tokenizer")}


def prepare(folder: str, fields: Fields, documents_per_shard: int, peer_megabytes: float) -> Answer:
    """Build our artifacts of text.jsonl and write its sentences as text, all of them and the peers' part."""
    from bert_pipeline.lineage import make_stage

    here, started = Path(folder), time.perf_counter()

    def written_recipe(tokenizer: dict[str, Any]) -> Any:
        corpus = {"text_fields": fields, "documents_per_shard": documents_per_shard}
        (here / "settings.json").write_text(json.dumps({"corpus": corpus, "tokenizer": tokenizer}), encoding="utf-8")
        return recipe(here, 128)

    made = corpus_and_tokenizer(written_recipe({}), here)
    chosen = written_recipe({"vocab_size": made["tokenizer"].facts["vocab_size"]})
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
    """Write the first training documents; no blank line at the end, because transformers' reader fails on it."""
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
