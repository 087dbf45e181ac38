"""BLURB: its score from published rows, its files (size, SHA-256, labels) and the known scores of trivial answers."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from bert_pipeline.core.files import cached_digest
from bert_pipeline.evaluation.scoring.blurb import GROUP_SIZES, blurb_score
from bert_pipeline.evaluation.scoring.scores import scores, statistics
from bert_pipeline.evaluation.tasks.readers import Sentence, read_split, read_task, size
from bert_pipeline.evaluation.tasks.task import SPLITS, Task, find_task, split_files, task_folder

needs_real_data = pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")

NER, RELATION, QA = "named entity recognition", "relation extraction", "question answering"
TASKS = {
    "BC5-chem": NER,
    "BC5-disease": NER,
    "NCBI-disease": NER,
    "BC2GM": NER,
    "JNLPBA": NER,
    "EBM-PICO": "PICO",
    "ChemProt": RELATION,
    "DDI": RELATION,
    "GAD": RELATION,
    "BIOSSES": "sentence similarity",
    "HoC": "document classification",
    "PubMedQA": QA,
    "BioASQ": QA,
}
PUBLISHED = {  # the printed total, then the tasks in the order above
    # Gu et al. 2021, table 6
    "BERT uncased": (76.11, 89.25, 81.44, 85.67, 80.90, 77.69, 72.34, 71.86, 80.04, 80.41, 82.68, 80.20, 51.62, 70.36),
    "BERT cased": (75.86, 89.99, 79.92, 85.87, 81.23, 77.51, 71.70, 71.54, 79.34, 79.61, 81.40, 80.12, 49.96, 74.44),
    "RoBERTa": (76.46, 89.43, 80.65, 86.62, 80.90, 77.86, 73.02, 72.98, 79.52, 80.63, 81.25, 79.66, 52.84, 75.20),
    "BioBERT": (80.34, 92.85, 84.70, 89.13, 83.82, 78.55, 73.18, 76.14, 80.88, 82.36, 89.52, 81.54, 60.24, 84.14),
    "SciBERT unc.": (78.86, 92.49, 84.54, 88.10, 83.36, 78.68, 73.12, 75.24, 81.06, 82.38, 86.25, 80.66, 57.38, 78.86),
    "SciBERT cased": (78.14, 92.51, 84.70, 88.25, 83.36, 78.51, 73.06, 75.00, 81.22, 81.34, 87.15, 81.16, 51.40, 74.22),
    "ClinicalBERT": (77.29, 90.80, 83.04, 86.32, 81.71, 78.07, 72.06, 72.04, 78.20, 80.48, 91.23, 80.74, 49.08, 68.50),
    "BlueBERT": (76.27, 91.19, 83.69, 88.04, 81.87, 77.71, 72.54, 71.46, 77.78, 79.15, 85.38, 80.48, 48.44, 68.71),
    "PubMedBERT": (81.16, 93.33, 85.62, 87.82, 84.52, 79.10, 73.38, 77.24, 82.36, 83.96, 92.30, 82.32, 55.84, 87.56),
    # Yasunaga et al. 2022 (LinkBERT), table 7
    "BioLinkBERT-base": (
        83.39, 93.75, 86.10, 88.18, 84.90, 79.03, 73.97, 77.57, 82.72, 84.39, 93.25, 84.35, 70.20, 91.43,
    ),
    "BioLinkBERT-large": (
        84.30, 94.04, 86.39, 88.76, 85.18, 80.06, 74.19, 79.98, 83.35, 84.90, 93.63, 84.87, 72.18, 94.82,
    ),
}  # fmt: skip


def make(name, group):
    return Task(name=name, title="", kind="ner", group=group, version="1", terms="", folder=name)


BLURB = {name: make(name, group) for name, group in TASKS.items()} | {"sample-chem": make("sample-chem", None)}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_totals_follow_from_the_published_rows(model):
    total, *row = PUBLISHED[model]
    found = blurb_score(dict(zip(TASKS, row, strict=True)), BLURB)
    assert found["score"] == pytest.approx(total, abs=0.005)
    assert found["missing"] == [] and list(found["groups"]) == list(GROUP_SIZES)


def test_tasks_outside_blurb_do_not_count():
    means = dict.fromkeys(TASKS, 0.5)
    assert blurb_score(means | {"sample-chem": 1.0}, BLURB) == blurb_score(means, BLURB)


def test_with_missing_tasks_there_is_a_partial_score_that_names_them():
    found = blurb_score({"PubMedQA": 0.6, "BioASQ": 0.8, "HoC": 0.9, "DDI": 0.1, "BC2GM": 0.1}, BLURB)
    assert found["score"] is None
    assert found["groups"] == pytest.approx({"document classification": 0.9, QA: 0.7})
    assert found["partial_score"] == pytest.approx(0.8)
    there = {"PubMedQA", "BioASQ", "HoC", "DDI", "BC2GM"}
    assert found["missing"] == [name for name in TASKS if name not in there]


def test_without_a_complete_group_there_is_no_score():
    found = blurb_score({"BioASQ": 0.8}, BLURB)
    assert (found["score"], found["partial_score"], found["groups"]) == (None, None, {})
    assert len(found["missing"]) == 12


def test_your_own_task_in_a_group_of_blurb_is_refused():
    with pytest.raises(
        ValueError, match=r"question answering has 2 task\(s\), not 3 \(PubMedQA, BioASQ, my-questions\)"
    ):
        blurb_score({}, BLURB | {"my-questions": make("my-questions", QA)})
    with pytest.raises(ValueError, match="PICO has 1"):
        blurb_score({}, {name: task for name, task in BLURB.items() if name != "EBM-PICO"})


# The files of the benchmark

# Examples in train, dev and test: sentences, pairs, documents, questions.
EXAMPLES = {
    "BC5CDR-chem": (4560, 4581, 4797),
    "BC5CDR-disease": (4560, 4581, 4797),
    "NCBI-disease": (5424, 923, 940),
    "BC2GM": (12574, 2519, 5038),
    "JNLPBA": (16807, 1739, 3856),
    "EBM-PICO": (None, 10386, 2076),
    "ChemProt": (None, 11268, None),
    "DDI": (25296, 2496, 5716),
    "GAD": (4261, 535, 534),
    "BIOSSES": (64, 16, 20),
    "HoC": (1295, 186, 371),
    "PubMedQA": (450, 50, 500),
    "BioASQ": (670, 75, 140),
}


def file_of(name: str, split: str) -> Path:
    task = find_task(name)
    path = split_files(task, task_folder(task, None, Path()))[split]
    if not path.is_file():
        pytest.skip(f"{path} is not available")
    return path


@needs_real_data
@pytest.mark.parametrize(
    ("name", "split", "num_examples"),
    [
        (name, split, count)
        for name, counts in EXAMPLES.items()
        for split, count in zip(SPLITS, counts, strict=True)
        if count is not None
    ],
)
def test_a_split_has_the_size_and_hash_that_its_task_states(name, split, num_examples):
    task, path = find_task(name), file_of(name, split)
    stated = getattr(task.splits, split)
    examples = read_split(task, path)
    assert (len(examples), size(task, examples)) == (num_examples, stated.size)
    assert cached_digest(path) == stated.sha256 or (not stated.sha256 and (name, split) == ("DDI", "train"))
    assert len({example.id for example in examples}) == num_examples


@needs_real_data
def test_sentences_that_are_also_in_train_are_counted(tmp_path):
    for split in SPLITS:
        file_of("BC5CDR-chem", split)
    task = find_task("BC5CDR-chem")
    data = read_task(task, task_folder(task, None, tmp_path))
    assert {split: data.files[split]["also_in_train"] for split in ("dev", "test")} == {"dev": 19, "test": 16}


@needs_real_data
def test_documents_of_ebm_pico_are_named():
    examples = read_split(find_task("EBM-PICO"), file_of("EBM-PICO", "test"))
    assert len({example.id.rpartition(":")[0] for example in examples}) == 191
    assert isinstance(examples[0], Sentence) and not examples[0].tokens[0].startswith("-DOCSTART-")


@needs_real_data
def test_labels_are_distributed_as_in_the_corpora():
    """The order of HoC's flags: by the corpus's paper (Baker et al. 2016), the rarest is cellular energetics and the
    most frequent sustaining proliferative signaling; and only one of DDI's pairs has no type."""
    documents = read_split(find_task("HoC"), file_of("HoC", "train"))
    counts = {label: sum(label in text.label for text in documents) for label in find_task("HoC").labels}
    assert max(counts, key=counts.__getitem__) == "sustaining proliferative signaling"
    assert min(counts, key=counts.__getitem__) == "cellular energetics"
    about_vessels = [text.label for text in documents if "angiogen" in text.parts[0].lower()]
    assert sum("inducing angiogenesis" in labels for labels in about_vessels) > len(about_vessels) / 2
    pairs = read_split(find_task("DDI"), file_of("DDI", "train"))
    assert sum(pair.label == "DDI-false" for pair in pairs) == 21745


# Trivial answers (all yes, all positive) on the published test sets

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
