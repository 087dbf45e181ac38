"""The plan of a study: shared artifacts once, trainings once for each seed, and models that do not exist yet."""

import pytest

from bert_pipeline.cli import main
from bert_pipeline.experiments import expand, find_study
from bert_pipeline.planning.plan import DoesNotFit
from bert_pipeline.planning.studies import assert_study_fits, from_scratch, plan_study, show_study
from bert_pipeline.planning.survey import Survey
from bert_pipeline.recipe import Recipe

RECIPE = """
corpus = { source = "sample", sample_documents = 200, heldout_fraction = 0.1 }
tokenizer = { vocab_size = 600 }
nsp = { dupe_factor = 1 }
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 64 }
[[pretrain.phases]]
max_seq_length = 64
num_steps = 20
global_batch_size = 16
learning_rate = 5e-3
warmup_steps = 2
[[evaluation.tasks]]
name = "sample-chem"
"""
STUDY = """
question = "Which?"
base = "small-one"
equal = "steps"
reference = "usual"
pretraining_seeds = [1, 2, 3]
[[arms]]
name = "usual"
[[arms]]
name = "other"
[arms.changes]
pretrain.adam_beta2 = 0.98
[[arms]]
name = "extended"
continues = "usual"
[arms.changes]
tokenizer.extend = 40
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "small-one.toml").write_text(RECIPE)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "which.toml").write_text(STUDY)
    for name, folder in (("RECIPES", "."), ("STUDIES", "studies"), ("HOME", "home")):
        monkeypatch.setenv(f"BERT_PIPELINE_{name}", str(tmp_path / folder))
    return find_study("which")


def plan_of(recipe: Recipe, *_, found) -> dict:
    """A plan with easy numbers; the data stages of a larger vocabulary take longer."""
    slower = recipe.tokenizer.vocab_size / 600
    data = {"raw_corpus": 1.0, "tokenizer": 10 * slower, "nsp_dataset": 100 * slower, "masked_dataset": 1000 * slower}
    return {
        "seconds": data | {"pretrained_checkpoint": 1e4, "evaluations": 1e5},
        "disk": {"artifacts": dict.fromkeys(data, 1) | {"pretrained_checkpoint": 100}, "checkpoints": 5, "free": 10**6},
        "training": {"flops": 2.0, "steps": 20, "tokens": 300},
    }


def test_shared_artifacts_count_once_and_trainings_once_for_each_seed(study, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("bert_pipeline.planning.studies.make_plan", plan_of)
    monkeypatch.setattr("bert_pipeline.planning.studies.read_source", lambda section: read.append(section) or Survey())
    plan = plan_study(study, tmp_path)
    assert len(read) == 1, "the arms have the same text"
    larger = 640 / 600  # the first model's vocabulary and the pieces of `extended`
    assert plan["seconds"] == pytest.approx(1 + 1110 + larger * 1110 + 9 * 1.1e5)
    assert plan["disk"]["needed"] == 4 + 3 + 9 * 100 + 5 and plan["flops"] == 3 * 3 * 2.0
    table, sums = show_study(plan)
    assert [row[0] for row in table.rows] == ["usual", "other", "extended"]
    assert "All 9 recipes one after the other, with shared artifacts built once: 11 days, 11:3" in sums
    assert_study_fits(plan)
    with pytest.raises(DoesNotFit, match=r"study which needs 912 bytes, but only 10 are free .* pretraining_seeds"):
        assert_study_fits(plan | {"disk": plan["disk"] | {"free": 10}})


def test_an_arm_is_planned_with_the_sizes_of_a_first_model_that_does_not_exist_yet(study):
    recipes = {arm: recipe for (arm, seed), recipe in expand(study).items() if seed == 1}
    planned = from_scratch(study, "extended", recipes)
    assert planned.pretrain.init_from == "" and planned.model == recipes["usual"].model
    assert planned.tokenizer.vocab_size == 640
    assert from_scratch(study, "other", recipes) == recipes["other"]


@pytest.mark.slow
def test_the_command_plans_a_study(study, capsys):
    assert main(["plan", "which"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["usual", "other", "extended"]
    assert "on this machine" in out and "unknown" not in out
