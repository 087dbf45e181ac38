"""Trivial answers (all yes, all positive) on the published test sets: the metrics must give the known scores."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from bert_pipeline.evaluation.scoring.scores import scores, statistics
from bert_pipeline.evaluation.tasks.task import Task

CHEMPROT = ("CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9", "false")
ENTITIES = {"BC5CDR-chem": 5385, "BC5CDR-disease": 4424, "NCBI-disease": 960, "BC2GM": 6325, "JNLPBA": 8662}
DDI = ("DDI-advise", "DDI-effect", "DDI-int", "DDI-mechanism", "DDI-false")


def task(kind, labels=(), unscored=()):
    fields = {"labels": labels, "unscored_labels": unscored}
    return Task(name="baseline", title="", kind=kind, version="1", terms="", folder="baseline", **fields)


@pytest.fixture
def blurb() -> Path:
    if not (folder := Path(os.environ.get("BERT_PIPELINE_DATA", "")) / "blurb").is_dir():
        pytest.skip("BERT_PIPELINE_DATA names no folder with blurb/ in it")
    return folder


def available(path: Path) -> Path:
    if not path.is_file():
        pytest.skip(f"{path} is not available")
    return path


def last_column(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row[-1] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def sentences(path: Path) -> list[list[str]]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    return [[line.split("\t")[-1] for line in block.splitlines() if "\t" in line] for block in blocks]


def test_pubmedqa_all_yes(blurb):
    answers = json.loads((blurb / "PubMedQA" / "test_set.json").read_text(encoding="utf-8"))
    gold = [answer["final_decision"] for answer in answers.values()]
    assert scores(task("qa", ("yes", "no", "maybe")), gold, ["yes"] * len(gold))["score"] == pytest.approx(
        0.552, abs=1e-12
    )


def test_bioasq_all_yes():
    gold = ["yes"] * 94 + ["no"] * 46  # of the 140 questions of the test set
    assert round(100 * scores(task("qa", ("yes", "no")), gold, ["yes"] * 140)["score"], 2) == 67.14


def test_the_test_set_of_bioasq_holds_those_answers(blurb):
    assert Counter(last_column(available(blurb / "BioASQ" / "test.tsv"))) == {"yes": 94, "no": 46}


def test_gad_all_positive(blurb):
    gold = last_column(blurb / "GAD" / "test.tsv")[1:]
    found = scores(task("relation", ("0", "1"), ("0",)), gold, ["1"] * len(gold))
    assert (round(100 * found["score"], 2), found["recall"]) == (68.96, 1.0)


@pytest.mark.parametrize(("path", "labels"), [("DDI/test.tsv", DDI), ("ChemProt/dev.tsv", CHEMPROT)])
def test_relations_all_false(blurb, path, labels):
    gold = last_column(blurb / path)
    relation = task("relation", labels, labels[-1:])
    assert scores(relation, gold, [labels[-1]] * len(gold))["score"] == 0.0
    assert scores(relation, gold, gold)["score"] == 1.0


@pytest.mark.parametrize(("name", "entities"), ENTITIES.items())
def test_gold_tags_hold_the_published_number_of_entities(blurb, name, entities):
    gold = sentences(available(blurb / name / "test.tsv"))
    ner = task("ner")
    assert statistics(ner, gold, gold).sum(0).tolist() == [entities] * 3
    found = scores(ner, gold, gold)
    assert (found["score"], found["strict_f1"]) == (1.0, 1.0)
    assert set(scores(ner, gold, [["O"] * len(tags) for tags in gold]).values()) == {0.0}


def test_gold_tags_of_pico_hold_the_published_number_of_label_words(blurb):
    gold = sentences(blurb / "EBM-PICO" / "test.tsv")
    pico = task("pico", ("PAR", "INT", "OUT"))
    assert statistics(pico, gold, gold).sum(0)[-3:].sum() == 16364
