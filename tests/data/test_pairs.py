"""The pairs of the nsp_dataset: their rules against the published algorithm, and the dataset's files."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import google

from bert_pipeline.core.randomness import HELDOUT, PAIRS
from bert_pipeline.data.corpus import build as corpus
from bert_pipeline.data.pairs import RANDOM, TokenizedShard, plan_pairs, write_rows
from bert_pipeline.formats.pairs import IGNORE_INDEX
from bert_pipeline.formats.tokenizer import CLS_ID, SEP_ID
from bert_pipeline.lineage import make_stage
from bert_pipeline.recipe import NspRecipe, Recipe
from bert_pipeline.store import artifact
from bert_pipeline.store.shards import read_index

VOCABULARY = 2000
CONTINUES = np.arange(VOCABULARY) % 3 == 0  # a third of the pieces continue a word
CONTINUES[:5] = False


def shard_of(documents):
    sentences = [sentence for document in documents for sentence in document]
    return TokenizedShard(
        np.concatenate([np.asarray(s, np.uint16) for s in sentences]),
        np.concatenate([[0], np.cumsum([len(s) for s in sentences])]),
        np.concatenate([[0], np.cumsum([len(d) for d in documents])]),
    )


def make_documents(seed, count, most_sentences=9, most_tokens=40):
    rng = np.random.default_rng(seed)
    return [
        [
            rng.integers(5, VOCABULARY, rng.integers(1, most_tokens + 1)).tolist()
            for _ in range(rng.integers(1, most_sentences + 1))
        ]
        for _ in range(count)
    ]


def rows_of(documents, section, max_seq_length=64, split="train", number=0, shard=0):
    tokenized = shard_of(documents)
    plan = plan_pairs(tokenized, CONTINUES, section, max_seq_length, split, number, shard)
    rows = write_rows(tokenized, plan)
    segments = []
    for r in range(len(rows)):
        ids = rows.input_ids[rows.offsets[r] : rows.offsets[r + 1]].tolist()
        a = ids[1 : 1 + rows.segment_a_length[r]]
        b = ids[2 + rows.segment_a_length[r] : -1]
        if b or section.objective != "none":
            assert ids == [CLS_ID, *a, SEP_ID, *b, SEP_ID]
        else:
            assert ids == [CLS_ID, *a, SEP_ID]
        segments.append((a, b, int(rows.next_sentence_label[r]), bool(plan.forced[r])))
    return segments


OPTIONS = list(itertools.product(["document", "example"], ["random_segment", "longest_first"], [0.1, 1.0], [0, 1, 2]))


@pytest.mark.parametrize(("target_draw", "truncation", "short_seq_prob", "seed"), OPTIONS)
def test_the_builder_equals_the_google_algorithm_under_the_same_draws(target_draw, truncation, short_seq_prob, seed):
    documents = make_documents(seed, 60)
    section = NspRecipe(target_draw=target_draw, truncation=truncation, short_seq_prob=short_seq_prob, seed=100 + seed)
    for split, number, shard in [("train", 0, 0), ("train", 3, 2), ("heldout", 0, 1)]:
        expected = []
        for index in range(len(documents)):
            what = PAIRS + (HELDOUT if split == "heldout" else 0)
            expected += google.pairs_of_document(
                documents,
                index,
                max_seq_length=64,
                short_seq_prob=short_seq_prob,
                nsp_prob=0.5,
                per_example=target_draw == "example",
                truncate=getattr(google, f"truncate_{truncation}"),
                rng=google.Draws(section.seed, what, number, shard, index),
            )
        assert rows_of(documents, section, 64, split, number, shard) == expected
        assert len(expected) > 60


documents_strategy = st.lists(
    st.lists(st.lists(st.integers(5, VOCABULARY - 1), min_size=1, max_size=80), min_size=1, max_size=6),
    min_size=2,
    max_size=6,
)


@settings(deadline=None, max_examples=150)
@given(
    documents=documents_strategy,
    objective=st.sampled_from(["nsp", "sop", "none"]),
    truncation=st.sampled_from(["random_segment", "longest_first"]),
    at_word_starts=st.booleans(),
    balance=st.booleans(),
    max_seq_length=st.integers(8, 70),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_obeys_the_rules(documents, objective, truncation, at_word_starts, balance, max_seq_length, seed):
    numbered, unique = [], itertools.count(5)  # every token is unique, so its place is known
    place = {}
    for d, document in enumerate(documents):
        numbered.append([])
        for sentence in document:
            ids = [next(unique) for _ in sentence]
            place |= dict.fromkeys(ids, d)
            numbered[-1].append(ids)
    continues = np.zeros(max(VOCABULARY, next(unique)), np.bool_)
    flat = [t for d in numbered for s in d for t in s]
    kinds = [t for d in documents for s in d for t in s]
    continues[flat] = [kind % 3 == 0 for kind in kinds]
    for sentence in (s for d in numbered for s in d):
        continues[sentence[0]] = False  # a sentence begins with a word
    section = NspRecipe(
        objective=objective, truncation=truncation, truncate_at_word_starts=at_word_starts, balance=balance, seed=seed
    )
    tokenized = shard_of(numbered)
    plan = plan_pairs(tokenized, continues, section, max_seq_length, "train", 0, 0)
    rows = write_rows(tokenized, plan)
    for r in range(len(rows)):
        ids = rows.input_ids[rows.offsets[r] : rows.offsets[r + 1]].tolist()
        length_a, label = int(rows.segment_a_length[r]), int(rows.next_sentence_label[r])
        a, b = ids[1 : 1 + length_a], ids[2 + length_a : -1]
        assert ids[0] == CLS_ID and ids[1 + length_a] == SEP_ID and ids[-1] == SEP_ID
        assert len(ids) <= max_seq_length and a
        assert not {CLS_ID, SEP_ID} & set(a + b)
        for segment in (a, b):
            assert segment == list(range(segment[0], segment[0] + len(segment))) if segment else True
            if at_word_starts and segment:
                assert not continues[segment[0]], "no segment begins with a ## piece"
        homes_a, homes_b = {place[t] for t in a}, {place[t] for t in b}
        assert len(homes_a) == 1
        if objective == "none":
            assert not b and label == IGNORE_INDEX
        elif objective == "nsp":
            assert len(homes_b) == 1
            assert (homes_a != homes_b) == (label == RANDOM)
            assert label == RANDOM or b[0] > a[-1]
        else:
            assert homes_a == homes_b
            assert (b[0] > a[-1]) == (label == 0)


def test_objective_none_keeps_every_token_of_sentences_that_fit():
    documents = make_documents(3, 40, most_tokens=20)
    section = NspRecipe(objective="none", short_seq_prob=0.0)
    rows = rows_of(documents, section, 32)
    assert [t for a, _, _, _ in rows for t in a] == [t for d in documents for s in d for t in s]


def test_sop_gives_no_pair_of_a_single_sentence():
    documents = [[[7, 8, 9]], [[10], [11]]]
    assert {tuple(a + b) for a, b, _, _ in rows_of(documents, NspRecipe(objective="sop"))} <= {(10, 11), (11, 10)}


def test_forced_pairs_are_counted_separately_and_free_pairs_are_balanced():
    documents = make_documents(5, 3000)
    rows = rows_of(documents, NspRecipe(), 64)
    free = [label for _, _, label, forced in rows if not forced]
    forced = [label for _, _, label, forced in rows if forced]
    assert set(forced) == {RANDOM} and len(forced) > 100
    assert abs(np.mean(free) - 0.5) < 5 * 0.5 / len(free) ** 0.5


def test_balance_makes_both_labels_equally_frequent():
    documents = make_documents(6, 3000)
    plain = [label for _, _, label, _ in rows_of(documents, NspRecipe(), 64)]
    even = [label for _, _, label, _ in rows_of(documents, NspRecipe(balance=True), 64)]
    assert np.mean(plain) > 0.55
    assert abs(np.mean(even) - 0.5) < 5 * 0.5 / len(even) ** 0.5


def test_each_pass_draws_other_pairs():
    documents = make_documents(8, 50)
    assert rows_of(documents, NspRecipe(), number=0) != rows_of(documents, NspRecipe(), number=1)
    assert rows_of(documents, NspRecipe(), number=1) == rows_of(documents, NspRecipe(), number=1)


def test_random_documents_are_uniform_over_the_others():
    documents = [[[100 + d]] for d in range(5)] * 1
    counts = np.zeros((5, 5), int)
    for number in range(2000):
        for (a,), (b,), _, _ in rows_of(documents, NspRecipe(), number=number):
            counts[a - 100, b - 100] += 1
    assert (np.diag(counts) == 0).all()
    off = counts[~np.eye(5, dtype=bool)]
    assert abs(off - 500).max() < 5 * 20


# Files of the datasets: workers, growth, shards with a single document

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
