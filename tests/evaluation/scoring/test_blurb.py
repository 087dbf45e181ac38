import pytest

from bert_pipeline.evaluation.scoring.blurb import GROUP_SIZES, blurb_score
from bert_pipeline.evaluation.tasks.task import Task

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
