"""Evaluation examples in the corpus: found like by a literal search, reported, and excluded on request."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.ngrams import matches, words_of

from bert_pipeline.data.contamination import ngrams
from bert_pipeline.data.contamination.build import build_contamination
from bert_pipeline.data.contamination.ngrams import NgramIndex
from bert_pipeline.data.contamination.overlap import EvaluationIndex, EvaluationText
from bert_pipeline.data.corpus import build as corpus
from bert_pipeline.data.corpus.build import build_raw_corpus
from bert_pipeline.formats.corpus import iterate_documents
from bert_pipeline.formats.tables import SPLITS, shard_paths
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.store import artifact

EXAMPLE = (
    "22 - oxacalcitriol ( 10 mg/kg ) suppresses secondary hyperparathyroidism , as β-blockers do in Sjögren 's disease "
    "of dogs and of the ﬁsh that we have followed for 3.5 years ."
)
RUNNING = (
    "22-Oxacalcitriol (10 mg/kg) suppresses secondary hyperparathyroidism, as β-blockers do in Sjo\u0308gren's disease "
    "of dogs and of the fish that we have fol\u00adlowed for 3.5 years."
)


def text_of(rng: random.Random, count: int, vocabulary: int = 5_000) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(count))


def found(index: NgramIndex, document: str) -> dict[int, tuple[int, int]]:
    found = index.find([document]).get(0)
    return {int(text): (int(words), int(run)) for text, words, run in zip(*found, strict=True)} if found else {}


def example(text: str, task: str = "chem", split: str = "test", name: str = "1", pmid: str = "") -> EvaluationText:
    return EvaluationText(task, split, name, (text,), pmid)


def judged(examples: list[EvaluationText], document: str, name: str = "d") -> dict[str, str]:
    """The rule that applies to the document for each example."""
    index = EvaluationIndex(examples)
    return {h.example: h.rule for _, holdings in index.search([name], [document]) for h in holdings}


@pytest.mark.parametrize("seed", range(30))
def test_matches_equal_a_literal_search(seed):
    """A small vocabulary, so that n-grams repeat within texts, across texts and across documents."""
    rng = random.Random(seed)
    marks = [" ", " ", " ", " , ", "-", "\n", ". ", " @GENE$ ", "\u2014"]

    def noise(text: str) -> str:
        return "".join(
            (word.upper() if rng.random() < 0.2 else word) + rng.choice(marks[: 6 if rng.random() < 0.9 else 9])
            for word in text.split()
        )

    vocabulary = rng.choice([2, 3, 40])
    texts = [
        tuple(noise(text_of(rng, rng.randrange(40), vocabulary)) for _ in range(rng.randrange(1, 4))) for _ in range(25)
    ]
    documents = []
    for _ in range(20):
        pieces = [text_of(rng, rng.randrange(30), vocabulary)]
        for _ in range(rng.randrange(4)):
            words = words_of(" ".join(rng.choice(texts)))
            begin = rng.randrange(len(words) + 1)
            words = words[begin : begin + rng.randrange(50)]
            if words and rng.random() < 0.5:
                words[rng.randrange(len(words))] = "other"
            pieces.append(noise(" ".join(words)))
        documents.append(" ".join(pieces))
    index = NgramIndex.build(texts)
    together = index.find(documents)
    some = 0
    for number, document in enumerate(documents):
        expected = {n: held for n, parts in enumerate(texts) if (held := matches(parts, document))[0]}
        assert found(index, document) == expected
        assert (number in together) == bool(expected)
        if expected:
            assert [column.tolist() for column in together[number]] == [
                list(column) for column in zip(*((n, *held) for n, held in expected.items()), strict=True)
            ]
            some += 1
    assert some > 2


@given(st.lists(st.text(st.characters(codec=None), max_size=200), max_size=5))
@settings(max_examples=200, deadline=None)
def test_words_equal_a_slow_definition(texts):
    letters, starts, firsts = ngrams.fold(texts)
    words = [letters[begin:end].tobytes().decode() for begin, end in pairwise(starts)]
    assert words == [word for text in texts for word in words_of(text)]
    assert np.diff(firsts).tolist() == [len(words_of(text)) for text in texts]


def test_tokens_and_running_text_give_the_same_words():
    assert judged([example(EXAMPLE)], f"Background. {RUNNING.upper()} Conclusion.") == {"1": "full"}


def test_one_changed_word_removes_the_ngrams_around_it():
    words = text_of(random.Random(1), 60).split()
    changed = " ".join([*words[:30], "other", *words[31:]])
    index = NgramIndex.build([(" ".join(words),)])
    assert found(index, changed) == {0: (59, 30)}
    assert found(index, " ".join(words[:12])) == {}
    assert found(index, " ".join(words[20:33])) == {0: (13, 13)}
    assert found(index, " ".join(w + "x" for w in words)) == {}


def test_a_hash_collision_is_not_a_match():
    """With base 1 the hash is a sum and ignores the order of the words."""
    words = [f"w{n}" for n in range(13)]
    swapped = [words[1], words[0], *words[2:]]
    others = [f"v{n}" for n in range(10)]
    texts = [(" ".join(words),), (" ".join(swapped),), (" ".join(others),)]
    index = NgramIndex.build(texts, base=1)
    assert len(index.hashes) == 3 and len(set(index.hashes.tolist())) == 2, "two n-grams collide"
    assert found(index, " ".join(words)) == {0: (13, 13)}
    assert found(index, " ".join(swapped)) == {1: (13, 13)}
    assert found(index, " ".join(reversed(words))) == {}
    assert found(index, " ".join(reversed(others))) == {}


def test_hostile_documents_hold_nothing():
    rng = random.Random(2)
    known = text_of(rng, 40)
    index = NgramIndex.build([(known,), ("",), ("--- ... ---",), ("@A$@B$",), ("short",)])
    assert index.num_words.tolist() == [40, 0, 0, 0, 0]
    long_word = "x" * 10_000_000
    documents = ["", " ", "!?" * 1000, long_word, f"{long_word} {known}", "\x00\u200b\u0301", known, "\ud800 " * 50]
    assert set(index.find(documents)) == {4, 6}
    assert index.find([]) == {}
    repeated = found(index, f"{known} " * 20_000)
    assert repeated == {0: (40, 40)}
    assert NgramIndex.build([]).find(["some words of a document"]) == {}


def test_the_index_depends_on_the_examples_alone_and_survives_the_disk(tmp_path):
    rng = random.Random(3)
    examples = [example(text_of(rng, 30), name=str(n), pmid=str(n)) for n in range(50)]
    index = EvaluationIndex(examples)
    index.save(tmp_path / "index")
    loaded = EvaluationIndex.load(tmp_path / "index")
    documents = [" ".join(examples[n].parts[0].split()[: n + 1]) for n in range(30)]
    before = index.ngrams.num_bytes
    ids = [f"pmid:{n}" for n in range(30)]
    assert list(loaded.search(ids, documents)) == list(index.search(ids, documents))
    assert index.ngrams.num_bytes == loaded.ngrams.num_bytes == before
    assert index.ngrams.num_bytes < 50 * 30 * 120


class TestTheRule:
    rng = random.Random(4)
    long, sentence, half, short = text_of(rng, 200), text_of(rng, 30), text_of(rng, 14), text_of(rng, 9)

    def test_a_whole_example_is_full(self):
        assert judged([example(self.sentence)], f"a {self.sentence} b") == {"1": "full"}

    def test_nine_tenths_of_a_sentence_are_full_and_less_is_a_phrase(self):
        words = self.sentence.split()[:19]
        assert judged([example(" ".join(words[:18]))], " ".join(["a", *words[:18]])) == {"1": "full"}
        assert judged([example(" ".join(words))], " ".join([*words[:18], "other"])) == {"1": "full"}
        assert judged([example(" ".join(words))], " ".join([*words[:17], "other", words[18]])) == {"1": "phrase"}
        assert judged([example(self.half)], self.half) == {"1": "full"}
        assert judged([example(" ".join(words[:12]))], " ".join(words)) == {"1": "phrase"}
        assert judged([example(self.sentence)], self.sentence[: len(" ".join(self.sentence.split()[:12]))]) == {}

    def test_coverage_counts_only_pieces_between_placeholders_that_are_searched(self):
        words = self.sentence.split()
        known = f"Of @GENE$ {' '.join(words[:14])} @DISEASE$ in us."
        assert judged([example(known)], f"Of p53 {' '.join(words[:14])} asthma in us.") == {"1": "full"}
        known = f"{' '.join(words[:14])} @GENE$ {' '.join(words[14:])}"
        assert judged([example(known)], f"{' '.join(words[:14])} p53") == {"1": "phrase"}

    def test_twenty_words_in_a_row_of_a_long_example_are_partial(self):
        words = self.long.split()
        assert judged([example(self.long)], " ".join(words[50:70])) == {"1": "partial"}
        assert judged([example(self.long)], " ".join(words[50:69])) == {"1": "phrase"}

    def test_a_short_example_is_held_only_with_another_one_of_its_split(self):
        short, other = example(self.short, name="short"), example(self.sentence, name="long")
        assert judged([short, other], self.short) == {"short": "phrase"}
        assert judged([short, other], f"{self.short} {self.sentence}") == {"short": "full", "long": "full"}
        elsewhere = other._replace(split="train")
        assert judged([short, elsewhere], f"{self.short} {self.sentence}") == {"short": "phrase", "long": "full"}

    def test_half_of_an_example_is_held_with_another_one(self):
        half, other = example(self.half, name="half"), example(self.sentence, name="long")
        altered = " ".join([*self.half.split()[:13], "other"])
        longer = half._replace(parts=(f"{self.half} {text_of(self.rng, 12)}",))
        assert judged([longer, other], altered) == {"half": "phrase"}
        assert judged([longer, other], f"{altered} {self.sentence}") == {"half": "partial", "long": "full"}
        longer = half._replace(parts=(f"{self.half} {text_of(self.rng, 13)}",))
        assert judged([longer, other], f"{altered} {self.sentence}") == {"half": "phrase", "long": "full"}

    def test_a_pmid_is_held_by_name(self):
        known = example(self.sentence, pmid="123456")
        assert judged([known], "other text", "pmid:123456") == {"1": "pmid"}
        assert judged([known], "other text", "0123456") == {"1": "pmid"}
        assert judged([known], self.sentence, "PMID: 123456") == {"1": "full"}
        for name in ("PMC123456", "1234567", "x123456", "pmid:123456:2"):
            assert judged([known], "other text", name) == {}
        assert judged([example(self.sentence, name="123456")], "other text", "123456") == {}, "no PMID was stated"


PLANTED = [3, 40, 41, 77]


def planted(folder: Path, seed: int = 5) -> tuple[Path, list[EvaluationText]]:
    """120 documents; four of them hold an example of the test set, one an example of the training set, one a phrase."""
    rng = random.Random(seed)
    examples = [example(text_of(rng, 25), name=str(n)) for n in range(10)]
    examples += [example(text_of(rng, 25), "chem", "train", "t"), example(text_of(rng, 25), "other", "test", "o")]
    texts = [f"{text_of(rng, 60)}. {text_of(rng, 20)}." for _ in range(120)]
    for n, document in enumerate(PLANTED):
        texts[document] += f" {examples[n].parts[0].upper()}. End."
    texts[90] += f" {examples[10].parts[0]}."
    texts[91] += f" {' '.join(examples[5].parts[0].split()[:12])}."
    texts[92] += f" {examples[11].parts[0]}."
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return path, examples


def recipe(path: Path, **fields: Any) -> CorpusRecipe:
    return CorpusRecipe(path=str(path), id_field="id", heldout_fraction=0.2, documents_per_shard=16, **fields)


def build(section: CorpusRecipe, out: Path, excluded: list[EvaluationText] = []):  # noqa: B006 (not changed)
    out.mkdir(parents=True)
    return build_raw_corpus(section, out, excluded)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.*")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_documents_that_hold_examples_are_excluded_and_counted(tmp_path, in_this_process):
    path, examples = planted(tmp_path)
    test = [each for each in examples if each[:2] == ("chem", "test")]
    facts = build(recipe(path, exclude_tasks=("chem",)), tmp_path / "out", test)
    assert facts["excluded_documents"] == 4 and facts["excluded_by_task"] == {"chem": 4}
    assert facts["train_documents"] + facts["heldout_documents"] == 116 and facts["rejected_documents"] == 0
    rows = lines(tmp_path / "out" / "excluded.jsonl")
    assert [row["document_id"] for row in rows] == [f"d{n}" for n in PLANTED]
    assert rows[0]["file"] == "a.jsonl"
    assert rows[0]["held"] == [
        {"task": "chem", "split": "test", "example": "0", "rule": "full", "coverage": 1.0, "longest_run": 25}
        | {"same_pmid": False}
    ]
    kept = tmp_path / "kept" / "a.jsonl"
    kept.parent.mkdir()
    records = path.read_text().splitlines(keepends=True)
    kept.write_text("".join(record for n, record in enumerate(records) if n not in PLANTED))
    build(recipe(kept), tmp_path / "without")
    for split in SPLITS:
        left = sorted(iterate_documents(tmp_path / "out", split))
        assert left == sorted(iterate_documents(tmp_path / "without", split)), "the others are what they were"


def test_without_a_match_the_corpus_equals_one_without_exclusion(tmp_path, in_this_process):
    path, _ = planted(tmp_path)
    facts = build(recipe(path), tmp_path / "plain")
    assert "excluded_documents" not in facts and not (tmp_path / "plain" / "excluded.jsonl").exists()
    build(recipe(path, exclude_tasks=("x",)), tmp_path / "none-found", [example("of no document " * 5, "x")])
    plain, searched = contents(tmp_path / "plain"), contents(tmp_path / "none-found")
    assert {name for name in searched if searched[name] != plain.get(name)} == {"excluded.jsonl", "shards.jsonl"}


@pytest.mark.parametrize("excluding", [False, True])
def test_the_number_of_workers_changes_no_byte(tmp_path, monkeypatch, excluding):
    path, examples = planted(tmp_path)
    made, reports = [], []
    for workers in ("1", "2"):
        monkeypatch.setenv("BERT_PIPELINE_WORKERS", workers)
        root = tmp_path / workers
        facts = build(recipe(path), root / "corpus", examples if excluding else [])
        (root / "report").mkdir()
        reports.append((facts, build_contamination(examples, root / "corpus", root / "report")))
        made.append(contents(root))
    assert made[0] == made[1] and reports[0] == reports[1]


def test_the_report_counts_examples_and_documents(tmp_path, in_this_process):
    path, examples = planted(tmp_path)
    examples.append(example("too short", name="short"))
    build(recipe(path), tmp_path / "corpus")
    (tmp_path / "report").mkdir()
    facts = build_contamination(examples, tmp_path / "corpus", tmp_path / "report")
    assert facts["documents"] == 120 and facts["documents_that_hold_examples"] == 6
    chem = facts["tasks"]["chem"]
    assert list(facts["tasks"]) == ["chem", "other"] and list(chem) == ["test", "train"]
    expected = {"examples": 11, "examples_too_short": 1, "examples_held": 4, "examples_full": 4, "documents_full": 4}
    assert {name: chem["test"][name] for name in expected} == expected
    assert chem["test"]["share_held"] == pytest.approx(4 / 11, abs=1e-6)
    assert chem["train"]["examples_held"] == 1 and facts["tasks"]["other"]["test"]["documents_full"] == 1
    rows = lines(tmp_path / "report" / "contamination.jsonl")
    assert {(row["document"], row["task"], row["split"], row["example"]) for row in rows} == {
        *((f"d{document}", "chem", "test", str(n)) for n, document in enumerate(PLANTED)),
        ("d90", "chem", "train", "t"),
        ("d92", "other", "test", "o"),
    }
    assert all(row["rule"] == "full" and row["coverage"] == 1 and row["corpus_split"] in SPLITS for row in rows)
    assert "holds 100% of chem/test" in facts["instances"]
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["contamination.jsonl"]
    json.dumps(facts)


def test_after_the_exclusion_nothing_is_found(tmp_path, in_this_process):
    path, examples = planted(tmp_path)
    build(recipe(path, exclude_tasks=("chem", "other")), tmp_path / "corpus", examples)
    (tmp_path / "report").mkdir()
    facts = build_contamination(examples, tmp_path / "corpus", tmp_path / "report")
    assert facts["documents"] == 114 and facts["documents_that_hold_examples"] == 0
    assert {numbers["examples_held"] for task in facts["tasks"].values() for numbers in task.values()} == {0}


def test_a_report_on_no_task_and_one_on_a_corpus_without_hits(tmp_path, in_this_process):
    path, _ = planted(tmp_path)
    build(recipe(path), tmp_path / "corpus")
    for name, examples in {"none": [], "clean": [example("unheard of words " * 10)]}.items():
        (tmp_path / name).mkdir()
        facts = build_contamination(examples, tmp_path / "corpus", tmp_path / name)
        assert facts["documents"] == 120 and facts["documents_that_hold_examples"] == 0 and facts["instances"] == ""
        assert (tmp_path / name / "contamination.jsonl").read_text() == ""


def test_broken_records_are_counted_among_all_records(tmp_path, in_this_process):
    path, examples = planted(tmp_path)
    with path.open("a") as file:
        file.write('{"id": "d3", "text": "the id of a document that is left out"}\n{"id": "cut\n')
    facts = build(recipe(path, max_rejected_fraction=0.02), tmp_path / "out", examples)
    assert facts["rejected_by_reason"] == {"line is not JSON": 1}
    assert facts["dropped_by_reason"] == {"holds an evaluation example": 6}, "another text took the id"
    assert facts["excluded_documents"] == 6
    with pytest.raises(corpus.SourceError, match="1 of 122 records are broken"):
        build(recipe(path), tmp_path / "strict", examples)


def test_the_error_for_an_empty_corpus_gives_the_reason(tmp_path, in_this_process):
    text = text_of(random.Random(6), 30)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": f"d{n}", "text": text}) + "\n" for n in range(9)))
    with pytest.raises(corpus.SourceError, match=r"0 documents \(dropped: 9 holds an evaluation example\)"):
        build(recipe(tmp_path / "a.jsonl"), tmp_path / "out", [example(text)])


def test_a_new_file_builds_its_own_group_and_sees_the_ids_of_excluded_documents(tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(corpus, "GROUP_BYTES", 1)
    texts = tmp_path / "texts"
    texts.mkdir()
    path, examples = planted(texts)
    path = path.rename(texts / "b.jsonl")
    section = recipe(texts, max_rejected_fraction=0.5)

    def make(root: str, number: int) -> artifact.Artifact:
        return artifact.make(
            tmp_path / root, {"kind": "c", "n": number}, lambda out: build_raw_corpus(section, out, examples)
        )

    make("store/first", 0)
    new = ({"id": name, "text": f"New {name} text."} for name in ("n1", "n2", "n3"))
    (texts / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    read: list[list[str]] = []
    reading = corpus.read_source_files
    monkeypatch.setattr(
        corpus,
        "read_source_files",
        lambda section, files, *rest: read.append(list(files)) or reading(section, files, *rest),
    )
    grown = make("store/grown", 1)
    assert read == [["c.jsonl"]], "existing groups are not searched again"
    assert contents(grown.path / "train") == contents(make("alone/grown", 1).path / "train")
    assert grown.facts["excluded_documents"] == 6
    (texts / "c.jsonl").rename(texts / "a.jsonl")
    with (texts / "a.jsonl").open("a") as file:
        file.write(json.dumps({"id": "d3", "text": "The id of a document that was left out."}) + "\n")
    read.clear()
    earlier = make("store/earlier", 2)
    assert read == [["a.jsonl"]]
    assert earlier.facts["dropped_by_reason"] == {"holds an evaluation example": 6}, "another text took the id"
    assert contents(earlier.path / "train") == contents(make("alone/earlier", 2).path / "train")


def test_other_examples_rebuild_the_corpus(tmp_path, in_this_process):
    path, examples = planted(tmp_path)
    counts = []
    for number, excluded in enumerate([examples, examples[:2], []]):
        made = artifact.make(
            tmp_path / f"store/{number}",
            {"kind": "c", "n": number},
            lambda out, excluded=excluded: build_raw_corpus(recipe(path), out, excluded),
        )
        counts.append(sum(len(list(iterate_documents(made.path, split))) for split in SPLITS))
        assert shard_paths(made.path / "train", "parquet")
    assert counts == [114, 118, 120]
