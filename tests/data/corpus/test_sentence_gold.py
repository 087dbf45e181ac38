"""Sentence boundaries against gold: sentences written to be hard to split, and the sentences of HoC."""

import json
import os
from pathlib import Path

import pytest

from bert_pipeline.data.corpus.sentences import split_sentences

GOLD = Path(__file__).with_name("gold_sentences.txt")
HARD = [
    *(
        " i.v. ",
        "et al. ",
        "Fig. 2",
        "p < 0.05",
        "E. coli",
        "S. aureus",
        "(1) ",
        "(2) ",
        "vs. ",
        "approx. ",
        "No. ",
        "mg/kg.",
    ),
    *(
        "[1]",
        "U.S. ",
        "Dr. ",
        "METHODS: ",
        " ... ",
        "http://",
        "nad1.b",
        "\nmTOR",
        "\np53",
        "\nα-",
        "\nalpha-",
        "J. D. Watson",
    ),
    *(
        "spp. ",
        "sp.\n",
        "i.v.\n",
        "et al.\n",
        "U.S.\n",
        "S. aureus.\n",
        "a.m. ",
        "resp.\n",
        "St. Louis",
        "?\n",
        "!\n",
        "no. 12",
    ),
]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    from benchmarks import sentences

    return sentences


@pytest.fixture
def gold(bench):
    return list(bench.read_gold(GOLD))


def test_the_gold_has_enough_hard_cases(gold):
    written = GOLD.read_text(encoding="utf-8")
    assert [each for each in HARD if each not in written] == []
    assert sum(len(boundaries) for _, boundaries in gold) >= 300
    assert all(line == " ".join(line.split()) for line in written.splitlines())
    sentences = [line for line in written.splitlines() if line]
    assert len(sentences) == len(set(sentences)) + sentences.count("We did.") - 1, "none counts twice"


def test_boundaries_are_positions_among_characters_that_are_not_blank(bench):
    assert bench.boundaries(["A b.", "C  d e.", "F."]) == {3, 7}
    assert bench.boundaries(["One."]) == bench.boundaries([]) == bench.boundaries(["", "One.", ""]) == frozenset()


def test_the_score_is_perfect_for_gold_and_counts_missed_and_invented_boundaries(bench, gold):
    sentences = {" ".join(block.split("\n")): block.split("\n") for block in GOLD.read_text().strip().split("\n\n")}
    perfect = bench.measure(sentences.__getitem__, gold)
    assert (perfect["precision"], perfect["recall"], perfect["f1"], perfect["texts_altered"]) == (1, 1, 1, 0)
    half = bench.measure(lambda text: [sentences[text][0], " ".join(sentences[text][1:])], gold)
    assert half["precision"] == 1 and half["recall"] == len(gold) / sum(len(each) for _, each in gold)
    words = bench.measure(str.split, gold)
    assert words["recall"] == 1 and words["precision"] < 0.3
    nothing = bench.measure(lambda text: [text[1:]], gold)
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (0, 0, 0)
    assert nothing["texts_altered"] == len(gold)


def test_our_scores_equal_the_recorded_ones(bench, gold):
    scores = bench.measure(split_sentences, gold)
    assert scores["f1"] > 0.94 and scores["texts_altered"] == 0


def test_documents_of_hoc_are_assembled_from_their_rows(bench, tmp_path):
    rows = ['Cells ( HeLa ) died , " fast " .\t11_s0', "p53 was 3 % .\t11_s1", "Rats lived .\t12_s0"]
    (tmp_path / "HoC").mkdir()
    for split, chosen in (("train", rows), ("dev", ["Mice too .\t13_s0"])):
        lines = ["labels\tsentence\tindex", *(f"0_0\t{row}" for row in chosen)]
        (tmp_path / "HoC" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    assert list(bench.hoc(tmp_path)) == [
        ('Cells (HeLa) died, "fast". p53 was 3%.', frozenset({23})),
        ("Rats lived.", frozenset()),
        ("Mice too.", frozenset()),
    ]


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
def test_boundaries_of_hoc(bench):
    """The gold ends no sentence before a small letter or a digit, so only recall can be tested."""
    texts = list(bench.hoc(Path(os.environ["BERT_PIPELINE_DATA"], "blurb")))
    assert len(texts) > 1_000
    scores = bench.measure(split_sentences, texts)
    assert scores["recall"] > 0.998 and scores["precision"] > 0.985


def test_the_benchmark_prints_a_row_for_each_library_and_gold(run_python, tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("Rats slept.\nMice ate.\n\nIt was given i.v. to Dr. Foo.\nShe slept.\n")
    finished = run_python("-m", "benchmarks.sentences", "--gold", str(mine), str(GOLD), "--json", BERT_PIPELINE_DATA="")
    assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    ours = {row["gold"]: row["f1"] for row in rows if row["library"] == "bert-pipeline"}
    segtok = {row["gold"]: row["f1"] for row in rows if row["library"] == "segtok"}
    assert ours == segtok and ours["mine"] == 1.0 and ours["gold_sentences"] > 0.94
    assert all("f1" in row or row["skipped"] for row in rows)
