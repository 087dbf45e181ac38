"""What init's choice is compared with, and how."""

import json

import pytest

from benchmarks import choice
from bert_pipeline.fitting.shapes import scaled
from bert_pipeline.recipe_files import load_recipe, recipe_files

SMALL = load_recipe(recipe_files()["small"])


def test_the_grid_is_the_choice_and_the_widths_beside_it_for_the_whole_time():
    around = choice.recipes_around(SMALL, 7)
    assert list(around) == ["choice", "192", "256", "320"] and around["choice"] == SMALL
    wider = around["320"]
    assert wider.model == scaled(SMALL, 320).model and wider.pretrain.budget_minutes == 7
    [phase], [of_choice] = wider.pretrain.phases, SMALL.pretrain.phases
    assert (phase.num_steps, phase.budget_fraction) == (0, 1.0)
    assert phase.warmup_fraction == pytest.approx(of_choice.warmup_steps / of_choice.num_steps)
    assert list(choice.recipes_around(scaled(SMALL, 128), 7)) == ["choice", "128", "192"]


def test_the_choice_is_compared_with_the_lowest_loss_of_its_text_and_time():
    numbers = {"steps": 1000, "tokens": 3.6e6, "seconds": 120.0, "predicted": None}

    def run(name, width, loss, minutes=2.0):
        return {"megabytes": 6.0, "minutes": minutes, "run": name, "width": width, "mlm_loss": loss} | numbers

    runs = [run("choice", 192, 4.2), run("128", 128, 4.4), run("192", 192, 4.2), run("256", 256, 4.0)]
    runs[0] |= {"predicted": [3.9, 4.7]}
    assert choice.ratio(runs) == pytest.approx(1.05)
    assert choice.ratio([run("choice", 192, 4.0), run("128", 128, 4.4)]) == 1
    shown = choice.table([*runs, run("choice", 256, 3.6, 10.0), run("192", 192, 4.0, 10.0)]).splitlines()
    first = "6 2 192 (choice) 1,000 3.6 2.0 3.90 to 4.70 4.200 1.050"
    assert shown[2].split() == first.split()
    assert shown[6].endswith("1.000") and len(shown) == 8


def test_a_choice_that_takes_the_whole_time_is_not_trained_twice():
    def run(name, seconds=100.0):
        return {"run": name, "width": 256, "seconds": seconds}

    whole, half = run("choice", seconds=100.0), run("choice", seconds=60.0)
    assert not choice.is_complete([run("192"), run("320")], 2)
    assert not choice.is_complete([whole, run("192")], 2)
    assert choice.is_complete([whole, run("192"), run("320")], 2)
    assert not choice.is_complete([half, run("192"), run("320")], 2)
    assert choice.is_complete([half, run("192"), run("256"), run("320")], 2)


@pytest.mark.slow
def test_a_choice_and_its_grid_are_trained_and_not_repeated(run_python, tmp_path):
    runs = tmp_path / "runs.jsonl"
    made = run_python("-m", "benchmarks.scripts", "korean", "--megabytes", "1", PYTHONIOENCODING="utf-8").stdout
    (tmp_path / "text.txt").write_text(made, encoding="utf-8")
    options = ["--text", str(tmp_path / "text.txt"), "--runs", str(runs), "--megabytes", "1", "--minutes", "0.3"]
    command = ["-m", "benchmarks.choice", *options, "--json"]
    finished = run_python(*command, BERT_PIPELINE_HOME=str(tmp_path / "home"))
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)["runs"]
    assert found[0]["run"] == "choice" and len(found) in (3, 4)
    assert all(run["steps"] > 0 and 0 < run["mlm_loss"] < 11 for run in found)
    again = run_python(*command, BERT_PIPELINE_HOME=str(tmp_path / "home"))
    assert json.loads(again.stdout)["runs"] == found and "init chooses" not in again.stderr
