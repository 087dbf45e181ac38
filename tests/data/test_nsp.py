"""The nsp_dataset and the masked_dataset as files: workers, growth, shards with a single document."""

import hashlib
import json
from pathlib import Path

import pytest

from bert_pipeline.data.corpus import build as corpus
from bert_pipeline.recipe import Recipe
from bert_pipeline.stages import make_stage
from bert_pipeline.store import artifact
from bert_pipeline.store.shards import read_index

DATA_STAGES = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")


def write_texts(path: Path, first: int, count: int) -> None:
    sentences = ["The drug works in mice.", "It was given twice a day.", "No harm was seen in any of the animals."]
    rows = [
        {"id": f"d{n}", "text": " ".join(f"{s[:-1]} by {n} mg." for s in sentences[: 1 + n % 3])}
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    (tmp_path / "texts").mkdir()
    for part in range(3):
        write_texts(tmp_path / "texts" / f"{2 * part}.jsonl", 100 * part, 80)
    return Recipe.model_validate_json(
        json.dumps(
            {
                "name": "tiny",
                "corpus": {"path": str(tmp_path / "texts"), "heldout_fraction": 0.2, "documents_per_shard": 30},
                "tokenizer": {"vocab_size": 100},
                "nsp": {"dupe_factor": 2},
                "pretrain": {
                    "phases": [
                        {"max_seq_length": 16, "num_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0},
                        {"max_seq_length": 32, "num_steps": 1, "learning_rate_handover": "continue"},
                    ]
                },
            }
        )
    )


def build(recipe: Recipe, root: Path, number: int = 0, tokenizer=None) -> dict[str, artifact.Artifact]:
    made: dict[str, artifact.Artifact] = {"tokenizer": tokenizer} if tokenizer else {}
    for kind in DATA_STAGES:
        if kind not in made:
            made[kind] = make_stage(kind, recipe, made, root / kind / str(number))
    return made


def digests(made: dict[str, artifact.Artifact]) -> dict[str, str]:
    """SHA-256 of every file except record.json, which holds time and place."""
    return {
        f"{kind}/{path.relative_to(one.path)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for kind, one in made.items()
        for path in one.path.rglob("*")
        if path.is_file() and path.name != "record.json"
    }


def test_workers_of_any_number_and_kind_give_the_same_bytes(recipe, tmp_path, monkeypatch, dask_cluster):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    one = build(recipe, tmp_path / "one")
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    two = build(recipe, tmp_path / "two")
    monkeypatch.setenv("BERT_PIPELINE_EXECUTOR", dask_cluster.address)
    dask = build(recipe, tmp_path / "dask")
    assert digests(one) == digests(two) == digests(dask)
    assert len(digests(one)) > 50
    for kind in DATA_STAGES:
        assert one[kind].facts == two[kind].facts == dask[kind].facts


def test_a_new_source_file_builds_only_its_own_shards(recipe, tmp_path, monkeypatch):
    """With the existing tokenizer; a new vocabulary would change all ids."""
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    monkeypatch.setattr(corpus, "GROUP_BYTES", 1)
    first = build(recipe, tmp_path / "store")
    write_texts(tmp_path / "texts" / "1.jsonl", 1000, 80)
    grown = build(recipe, tmp_path / "store", 1, tokenizer=first["tokenizer"])
    for kind in ("raw_corpus", "nsp_dataset", "masked_dataset"):
        before, after = read_index(first[kind].path), read_index(grown[kind].path)
        assert set(before) < set(after)
        for name, entry in before.items():
            assert after[name] == entry
            for file in entry.files:
                assert (first[kind].path / file).samefile(grown[kind].path / file), "not written again"
    alone = build(recipe, tmp_path / "alone", 1, tokenizer=first["tokenizer"])
    assert digests(grown) == digests(alone)


def test_a_shard_with_a_single_document_is_paired_with_the_next_shard(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    monkeypatch.setattr(corpus, "GROUP_BYTES", 1)
    for number in range(5):
        write_texts(tmp_path / "texts" / f"lonely-{number}.jsonl", 5000 + number, 1)
    made = build(recipe, tmp_path / "store")
    corpus_shards, pair_shards = read_index(made["raw_corpus"].path), read_index(made["nsp_dataset"].path)
    lonely = [name for name, entry in corpus_shards.items() if entry.facts.get("stored") == 1]
    assert lonely and len(pair_shards) < sum(bool(entry.files) for entry in corpus_shards.values())
    facts = made["nsp_dataset"].facts["len_32"]
    assert facts["train_pairs"] + facts["heldout_pairs"] >= 2 * 245 * 0.8
