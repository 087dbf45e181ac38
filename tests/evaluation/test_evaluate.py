import hashlib
import json
import statistics
import subprocess
import sys

import pytest
from seqeval.metrics import f1_score

from bert_pipeline.evaluation.evaluate import evaluate_model
from bert_pipeline.evaluation.tasks import read_ner
from bert_pipeline.recipe import TaskRecipe

SETTINGS = TaskRecipe(name="sample-chem", learning_rate=3e-3, num_epochs=2, max_seq_length=32, seeds=(1, 2))


def read_predictions(path):
    blocks = path.read_text().strip("\n").split("\n\n")
    return [[line.split("\t") for line in block.split("\n")] for block in blocks]


@pytest.fixture(scope="module")
def evaluated(model_dir, task_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluations")
    rows: list[dict] = []
    facts = evaluate_model(model_dir, SETTINGS, task_folder, out, rows.append, baseline=True)
    return facts, rows, out / "sample-chem"


def test_scores_are_those_of_the_written_predictions(evaluated, task_folder):
    facts, rows, out = evaluated
    scores = json.loads((out / "scores.json").read_text())
    gold = read_ner(task_folder / "test.tsv")
    assert [(run["seed"], run["encoder"]) for run in scores["runs"]] == [
        (seed, encoder) for seed in (1, 2) for encoder in ("pretrained", "random_init")
    ]
    for run, row in zip(scores["runs"], rows, strict=True):
        sentences = read_predictions(out / f"predictions-{run['encoder']}-seed{run['seed']}.tsv")
        assert [tuple(token for token, _, _ in sentence) for sentence in sentences] == [s.tokens for s in gold]
        truth, guess = ([[f"{line[column]}-X" for line in s] for s in sentences] for column in (1, 2))
        plain = [[[tag.replace("O-X", "O") for tag in tags] for tags in side] for side in (truth, guess)]
        assert run["test"]["f1"] == row["f1"] == pytest.approx(f1_score(*plain))
        assert row["step"] == rows.index(row) + 1
    for encoder in ("pretrained", "random_init"):
        f1 = [run["test"]["f1"] for run in scores["runs"] if run["encoder"] == encoder]
        assert facts[encoder]["f1_mean"] == pytest.approx(sum(f1) / 2)
        assert facts[encoder]["f1_sd"] == pytest.approx(statistics.stdev(f1))


def test_facts_and_files_tell_what_was_scored(evaluated, task_folder):
    facts, _, out = evaluated
    scores = json.loads((out / "scores.json").read_text())
    test = (task_folder / "test.tsv").read_bytes()
    assert facts["gold_entities"] == test.count(b"\tB\n") == scores["files"]["test"]["gold_entities"]
    assert scores["files"]["test"]["sha256"] == hashlib.sha256(test).hexdigest()
    assert scores["files"]["test"]["words_out_of_input"] > 0, "32 pieces are too few for the longest sentence"
    assert scores["settings"]["seeds"] == facts["seeds"] == [1, 2]
    assert facts == {key: scores[key] for key in facts}


def test_one_seed_has_no_standard_deviation_and_no_baseline_is_asked_for(model_dir, task_folder, tmp_path):
    settings = SETTINGS.model_copy(update={"seeds": (3,), "num_epochs": 1})
    facts = evaluate_model(model_dir, settings, task_folder, tmp_path, lambda row: None, baseline=False)
    assert facts["pretrained"]["f1_sd"] is None
    assert "random_init" not in facts


def test_the_module_loads_without_torch_and_scikit_learn():
    code = "import sys, bert_pipeline.evaluation.evaluate; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
