"""Several models in one call: folders, tables, paired tests, a picture; and how models are named."""

import json

import pytest
import torch
from transformers import BertForPreTraining

from bert_pipeline.cli import main, models
from bert_pipeline.cli.models import model_directory, short_names
from bert_pipeline.evaluation.plan import TaskPlan, plan_table, plan_task
from bert_pipeline.evaluation.scoring.compare import compare_evaluations
from bert_pipeline.recipe import TaskRecipe

pytestmark = pytest.mark.usefixtures("evaluation_in_this_process")

SHORT = ("--num-epochs", "8", "--learning-rate", "3e-3", "--max-seq-length", "32")


@pytest.fixture(scope="module")
def untrained(model_dir, tmp_path_factory):
    """A model with the tokenizer of `model_dir` whose layers pass nothing on, so that it learns little."""
    folder = tmp_path_factory.mktemp("untrained")
    for path in model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = BertForPreTraining.from_pretrained(model_dir)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
    model.save_pretrained(folder)
    return folder


def test_several_models_share_a_table_and_are_compared_pairwise(model_dir, untrained, small_tasks, tmp_path, capsys):
    arguments = ["evaluate", "--model", model_dir, untrained, "--task", "small-relation", "small-qa", "--out", tmp_path]
    assert main([*map(str, arguments), *SHORT]) == 0
    shown = capsys.readouterr().out
    one, other = model_dir.name, untrained.name
    for name in (one, other):
        for task in ("small-relation", "small-qa"):
            facts = json.loads((tmp_path / name / task / "scores.json").read_text())
            assert f"{100 * facts['pretrained']['score_mean']:.2f}" in shown
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [(each["task"], each["model"], each["compared_with"]) for each in written] == [
        ("small-relation", one, other),
        ("small-qa", one, other),
    ]
    for each in written:
        found = compare_evaluations(tmp_path / one / each["task"], tmp_path / other / each["task"])
        assert (each["difference"], each["p_value"]) == (found.difference, found.p_value)
        assert each["significant"] == found.significant
        assert f"{100 * found.difference:+.2f}" in shown and f"{found.p_value:.4f}" in shown
    assert any(each["significant"] for each in written), "else the tests would show nothing"
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "comparison.md").read_text()
    assert f"| {one} |" in page and "| difference |" in page

    assert main([*map(str, arguments), *SHORT, "--json"]) == 0  # nothing is run again
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["models"]) == [one, other] and printed["comparisons"] == written


def test_models_are_named_by_the_parts_of_their_paths_that_differ():
    assert short_names(["out/a/pretrained_checkpoint"]) == ["pretrained_checkpoint"]
    assert short_names(["out/a/model", "out/b/model", "c"]) == ["a-model", "b-model", "c"]
    assert short_names(["models:/bert/3", "models:/bert@champion", "bert"]) == ["bert-3", "bert@champion", "bert"]
    assert "/" not in short_names([".", "/a b/c"])[0]
    with pytest.raises(ValueError, match=r"names one model twice: a, \./a; remedy"):
        short_names(["a", "b", "./a"])


def test_a_registered_model_needs_a_registry(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "_resolvers", {})
    with pytest.raises(ValueError, match=r"models:/x@champion: no model registry is installed; remedy"):
        model_directory("models:/x@champion")
    models.resolve_models("models:/", lambda name, kind, task: tmp_path / kind / name.removeprefix("models:/"))
    assert model_directory("models:/x@champion") == tmp_path / "pretrained_checkpoint" / "x@champion"
    assert model_directory("x").name == "x"


@pytest.mark.slow
def test_a_plan_counts_what_is_left_and_times_it(model_dir, small_tasks, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")
    settings = TaskRecipe(
        name="small-qa", learning_rate=(1e-3, 2e-3), num_epochs=(1, 2), max_seq_length=32, seeds=(1, 2, 3)
    )
    plan = plan_task(settings, model_dir, None, tmp_path, True)
    # A grid of 4 runs of 5 and 10 steps; then 6 runs of 10 steps, of which one is in the grid.
    assert (plan.num_runs, plan.num_steps, plan.side_by_side) == (4 + 5, 2 * 15 + 5 * 10, 2)
    assert 0.05 < plan.seconds < 600
    assert not list((tmp_path / "runs").glob("*")), "nothing is run"
    rows = plan_table([("m", plan), ("n", TaskPlan("x", 1, 20, 1, 3_600.0))]).rows
    assert rows[1] == ("n", "x", "1", "20", "1", "1:00:00") and rows[2][:4] == ("all", "", "10", "100")
