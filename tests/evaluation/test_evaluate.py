"""Evaluation end to end: the reported scores are those of the written files."""

import hashlib
import json
import shutil
import statistics
import subprocess
import sys

import pytest
from seqeval.metrics import f1_score

from bert_pipeline.cli import main
from bert_pipeline.evaluation import evaluate
from bert_pipeline.evaluation.evaluate import evaluate_checkpoint, evaluate_task
from bert_pipeline.evaluation.finetuning import workers
from bert_pipeline.evaluation.scoring.scores import interval
from bert_pipeline.evaluation.scoring.scores import statistics as sums_of
from bert_pipeline.evaluation.scoring.table import show_scores
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.evaluation.tasks.task import TaskError, find_task, load_task, task_files
from bert_pipeline.recipe import TaskRecipe

SETTINGS = TaskRecipe(
    name="small-ner", learning_rate=(1e-5, 3e-3), batch_size=16, num_epochs=2, max_seq_length=32, seeds=(1, 2)
)
ENCODERS = ("pretrained", "random_init")


pytestmark = pytest.mark.usefixtures("evaluation_in_this_process")


def read_predictions(path):
    blocks = path.read_text().strip("\n").split("\n\n")
    return [[line.split("\t") for line in block.split("\n")] for block in blocks]


@pytest.fixture(scope="module")
def evaluated(model_dir, small_tasks, tmp_path_factory, evaluation_in_this_process):
    out = tmp_path_factory.mktemp("evaluations") / "small-ner"
    rows: list[dict] = []
    facts = evaluate_task(SETTINGS, model_dir, None, out, rows.append, baseline=True)
    return facts, rows, out


def test_scores_are_those_of_the_written_predictions(evaluated, small_task):
    facts, _, out = evaluated
    task, data = small_task("small-ner")
    scores = json.loads((out / "scores.json").read_text())
    assert [(run["encoder"], run["seed"]) for run in scores["runs"]] == [(e, seed) for e in ENCODERS for seed in (1, 2)]
    for run in scores["runs"]:
        for split in ("dev", "test"):
            sentences = read_predictions(out / "predictions" / f"{run['encoder']}-seed{run['seed']}-{split}.tsv")
            assert [tuple(token for token, _, _ in s) for s in sentences] == [s.tokens for s in data.splits[split]]
            assert [tuple(gold for _, gold, _ in s) for s in sentences] == [s.tags for s in data.splits[split]]
            # seqeval wants a type in each tag
            truth, guess = (
                [[line[column] + "-X" * (line[column] != "O") for line in s] for s in sentences] for column in (1, 2)
            )
            assert run[split]["score"] == pytest.approx(f1_score(truth, guess))
    for encoder in ENCODERS:
        tests = [run["test"] for run in scores["runs"] if run["encoder"] == encoder]
        found = [test["score"] for test in tests]
        assert facts[encoder]["score_mean"] == pytest.approx(sum(found) / 2)
        assert facts[encoder]["score_sd"] == pytest.approx(statistics.stdev(found))
        assert facts[encoder]["strict_f1_mean"] == pytest.approx(sum(test["strict_f1"] for test in tests) / 2)
        rows = []
        for seed in (1, 2):
            sentences = read_predictions(out / "predictions" / f"{encoder}-seed{seed}-test.tsv")
            rows.append(sums_of(task, *([tuple(line[c] for line in s) for s in sentences] for c in (1, 2))))
        low, high = interval(task, rows, evaluate.BOOTSTRAP_SEED)
        assert (facts[encoder]["low"], facts[encoder]["high"]) == (low, high)
        assert low <= facts[encoder]["score_mean"] <= high


def test_the_grid_is_run_once_and_its_best_on_dev_with_every_seed(evaluated):
    facts, rows, out = evaluated
    scores = json.loads((out / "scores.json").read_text())
    assert [each["learning_rate"] for each in scores["grid"]] == [1e-5, 3e-3]
    devs = [each["dev"] for each in scores["grid"]]
    assert devs[0] < devs[1], "else there is nothing to choose"
    assert facts["setting"] == {"learning_rate": 3e-3, "batch_size": 16, "num_epochs": 2}
    assert scores["runs"][0]["dev"]["score"] == devs[1]
    names = {path.name for path in (out / "runs").iterdir() if path.is_dir()}
    assert names == {"pretrained-lr1e-05-bs16-ep2-seed1"} | {
        f"{encoder}-lr0.003-bs16-ep2-seed{seed}" for encoder in ENCODERS for seed in (1, 2)
    }
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    by_run = {(row["encoder"], row["learning_rate"], row["seed"]): row for row in rows}
    assert len(by_run) == 5
    for run in scores["runs"]:
        row = by_run[run["encoder"], 3e-3, run["seed"]]
        assert (row["score"], row["dev_score"]) == (run["test"]["score"], run["dev"]["score"])


def test_facts_and_files_describe_what_was_scored(evaluated, small_tasks):
    facts, _, out = evaluated
    scores = json.loads((out / "scores.json").read_text())
    test = (small_tasks / "small-ner" / "test.tsv").read_bytes()
    assert facts["gold_size"] == test.count(b"\tB\n") == scores["files"]["test"]["size"]
    assert scores["files"]["test"]["sha256"] == hashlib.sha256(test).hexdigest()
    assert facts["words_out_of_input"]["test"] > 0, "32 pieces are too few for the longest sentence"
    assert 0 < facts["gold_out_of_input"]["test"] < facts["gold_size"]
    assert (facts["kind"], facts["metric"], facts["unit"]) == ("ner", "entity F1", "entities")
    assert facts["seeds"] == [1, 2] and facts["max_seq_length"] == 32 and facts["fresh_pooler"] is False
    run = scores["runs"][0]
    assert run["threads"] >= 1 and set(run["versions"]) == {"torch", "transformers"} and len(run["epoch_losses"]) == 2
    assert facts == {key: scores[key] for key in facts}


def test_a_second_start_runs_nothing_and_reports_the_same(evaluated, model_dir, monkeypatch):
    facts, rows, out = evaluated
    monkeypatch.setattr(evaluate, "Workers", workers.Workers)
    monkeypatch.setattr(workers.subprocess, "Popen", None)  # no process is started
    again: list[dict] = []
    assert evaluate_task(SETTINGS, model_dir, None, out, again.append, baseline=True) == facts
    assert sorted(map(str, ({**row, "step": 0} for row in again))) == sorted(
        map(str, ({**row, "step": 0} for row in rows))
    )


def test_one_seed_has_no_standard_deviation_and_the_baseline_is_optional(evaluated, model_dir):
    _, _, out = evaluated
    settings = SETTINGS.model_copy(update={"seeds": (1,), "learning_rate": 3e-3})
    facts = evaluate_task(settings, model_dir, None, out, lambda row: None, baseline=False)
    assert facts["pretrained"]["score_sd"] is None and "random_init" not in facts
    assert sorted(path.name for path in (out / "predictions").iterdir()) == [
        "pretrained-seed1-dev.tsv",
        "pretrained-seed1-test.tsv",
    ]
    json.dumps(facts, allow_nan=False)


def test_the_command_prints_scores_beside_published_ones(model_dir, small_tasks, tmp_path, capsys):
    arguments = ["evaluate", "--model", str(model_dir), "--out", str(tmp_path), "--num-epochs", "1"]
    tasks = ["--task", "small-qa", "--task", "small-similarity", "--max-seq-length", "32"]
    assert main([*arguments, *tasks]) == 0
    out = capsys.readouterr().out
    facts = {
        name: json.loads((tmp_path / name / "scores.json").read_text()) for name in ("small-qa", "small-similarity")
    }
    for name in facts:
        assert f"{100 * facts[name]['pretrained']['score_mean']:.2f}" in out
    assert "95 % interval" in out and "accuracy" in out and "learning_rate 5e-05" in out and "BLURB" not in out
    assert main([*arguments, *tasks, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: {key: facts[name][key] for key in printed[name]} for name in facts}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "m", "--task", "x"], "--out missing; remedy"),
        (
            ["--model", "m", "--task", "small-qa", "--task", "small-ner", "--data", "d", "--out", "o"],
            "files of one task",
        ),
        (["--model", "m", "--task", "small-qb", "--out", "o"], "did you mean small-qa?"),
        (["--model", "m", "--task", "small-qa", "--task", "small-qa", "--out", "o"], "names a task twice"),
        (["--model", "m", "--task", "small-qa", "--data", "nowhere", "--out", "o"], "nowhere has no train.tsv"),
        (["--model", "nowhere", "--task", "small-qa", "--out", "o"], "nowhere has no config.json; remedy"),
        (["--model", "m", "--task", "small-qa", "--seeds", "0", "--out", "o"], "seeds"),
    ],
)
def test_invalid_arguments_are_refused_without_a_traceback(
    small_tasks, tmp_path, monkeypatch, capsys, arguments, expected
):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 1
    err = capsys.readouterr().err
    assert expected in err and "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_invalid_data_of_the_last_task_is_reported_before_the_first_is_run(
    model_dir, small_tasks, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(shutil.copytree(small_tasks, tmp_path / "data")))
    faulty = tmp_path / "data" / "small-qa" / "test.tsv"
    faulty.write_text(faulty.read_text() + "one more\twhy\tnobody knows\tperhaps\n")
    tasks = ["--task", "small-ner", "--task", "small-qa"]
    assert main(["evaluate", "--model", str(model_dir), "--out", str(tmp_path / "out"), *tasks]) == 1
    assert f"{faulty}:41: label 'perhaps' is unknown to small-qa; remedy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_caveat_about_the_data_is_logged_once(model_dir, small_tasks, tmp_path, caplog):
    folder = shutil.copytree(small_tasks / "small-relation", tmp_path / "data")
    shutil.copy(folder / "train.tsv", folder / "test.tsv")
    settings = TaskRecipe(name="small-relation", num_epochs=1, max_seq_length=16, seeds=(1, 2))
    evaluate_task(settings, model_dir, folder, tmp_path / "out", lambda row: None, baseline=False)
    logged = [record.getMessage() for record in caplog.records]
    assert logged.count("small-relation: 160 of 160 examples of test are also in train") == 1


def test_inputs_longer_than_the_models_positions_are_refused(model_dir, small_tasks, tmp_path):
    settings = TaskRecipe(name="small-qa", max_seq_length=65)
    with pytest.raises(TaskError, match=r"max_seq_length is 65, but the model has 64 positions"):
        evaluate_task(settings, model_dir, None, tmp_path, print, baseline=False)


def blurb_facts(score: float, published: dict[str, float]) -> dict:
    of_model = {"score_mean": score, "score_sd": None, "low": score - 0.01, "high": score + 0.01}
    setting = {"learning_rate": 5e-5, "batch_size": 32, "num_epochs": 10}
    return {
        "metric": "F1",
        "seeds": [1],
        "setting": setting,
        "pretrained": of_model,
        "published": published,
        "measured": {},
    }


def test_the_tables_show_our_scores_published_scores_and_the_blurb_score():
    tasks = {name: load_task(path) for name, path in task_files().items() if load_task(path).group}
    some = {
        name: blurb_facts(score, tasks[name].published_scores) for name, score in {"BIOSSES": 0.9, "HoC": 0.8}.items()
    }
    shown = show_scores(some, tasks).splitlines()
    [pubmedbert] = [line for line in shown if line.startswith("PubMedBERT")]
    assert pubmedbert.split()[1:] == ["92.30", "82.32"]
    assert shown[0].split() == ["model", "BIOSSES", "HoC"]
    [ours] = [line for line in shown if line.startswith("this model")]
    assert ours.split()[2:] == ["90.00", "80.00"]
    [how] = [line for line in shown if line.startswith("HoC ")]
    assert how.split() == [
        "HoC",
        "F1",
        "79.00",
        "to",
        "81.00",
        "1",
        *["learning_rate", "5e-05,", "batch_size", "32,", "num_epochs", "10"],
    ]
    [partial] = [line for line in shown if line.startswith("Partial BLURB score")]
    assert partial.startswith("Partial BLURB score: 85.00 over sentence similarity, document classification; missing: ")
    assert "BC5CDR-chem" in partial
    alone = show_scores({"DDI": blurb_facts(0.8, {})}, tasks)
    assert "\nNo BLURB score: no group is whole; missing: " in alone
    whole = show_scores({name: blurb_facts(0.5, {}) for name in tasks}, tasks).splitlines()
    assert "BLURB score: 50.00" in whole


def test_generated_data_needs_no_folder(model_dir, tmp_path):
    task = find_task("sample-chem")
    settings = TaskRecipe(name="sample-chem", num_epochs=1, max_seq_length=16)
    facts = evaluate_task(settings, model_dir, None, tmp_path, lambda row: None, baseline=False)
    assert facts["gold_size"] == read_task(task, tmp_path / "data").files["test"]["size"]


def test_the_module_loads_without_torch_and_scikit_learn():
    code = "import sys, bert_pipeline.evaluation.evaluate; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_snapshots_are_scored_too(model_dir, small_tasks, tmp_path):
    """With the first seed, in the setting of the last model: here the same model, so the same score."""
    for name in ("", "snapshots/step-00000040"):
        shutil.copytree(model_dir, tmp_path / "checkpoint" / name, dirs_exist_ok=True)
    settings = TaskRecipe(name="small-relation", learning_rate=(1e-3, 2e-3), num_epochs=1, batch_size=8, seeds=(3, 4))
    rows = []
    facts = evaluate_checkpoint(settings, tmp_path / "checkpoint", tmp_path / "out", rows.append, baseline=False)
    assert "random_init" not in facts
    table = json.loads((tmp_path / "out" / "scores.json").read_text())
    [first] = [run for run in table["runs"] if run["encoder"] == "pretrained" and run["seed"] == 3]
    assert facts["snapshots"] == {"40": first["test"]["score"]}
    assert rows[-1] == {"step": 40, "task": "small-relation", "snapshot_score": first["test"]["score"]}


@pytest.mark.slow
def test_losing_settings_are_stopped_only_if_the_recipe_says_so(model_dir, small_tasks, tmp_path):
    """A rate of 1e-7 learns nothing. The other setting gives what it gives without the rule."""
    rates = (1e-7, 3e-3)
    settings = TaskRecipe(name="small-qa", learning_rate=rates, num_epochs=10, batch_size=16, max_seq_length=32)
    found = {}
    for stops in (False, True):
        out = tmp_path / str(stops)
        asked = settings.model_copy(update={"stop_losing_settings": stops})
        found[stops] = evaluate_task(asked, model_dir, None, out, lambda row: None, baseline=False)
    assert found[True] == found[False]
    grids = {stops: json.loads((tmp_path / str(stops) / "scores.json").read_text())["grid"] for stops in (False, True)}
    assert [each["dev"] for each in grids[True]] == [None, *(each["dev"] for each in grids[False][1:])]
    runs = {path.name: path for path in (tmp_path / "True" / "runs").iterdir() if path.is_dir()}
    stopped = runs.pop("pretrained-lr1e-07-bs16-ep10-seed1.partial")
    assert (stopped / "half-dev.tsv").exists() and not (stopped / "work").exists()
    assert all((path / "half-dev.tsv").exists() for path in runs.values()) and len(runs) == 1
    assert not list((tmp_path / "False" / "runs").rglob("half-dev.tsv"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "True" / "runs").rglob("*.tsv")}
    asked = settings.model_copy(update={"stop_losing_settings": True})
    assert evaluate_task(asked, model_dir, None, tmp_path / "True", lambda row: None, baseline=False) == found[True]
    assert {path: path.stat().st_mtime_ns for path in before} == before
