"""The speed of training beside the Trainer."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import pretraining, training
from benchmarks.children import MeasurementError
from bert_pipeline.recipe_files import load_recipe, recipe_files

TINY = Path(__file__).with_name("tiny.toml")


@pytest.fixture(scope="module")
def trained(run_python, tmp_path_factory):
    """The whole command at a tiny size; peers with full rows get invalid arguments, so that they fail."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.toml").write_text(TINY.read_text())
    code = (
        "import sys; from benchmarks import training; training.ROUNDS['cpu'] = 1; training.FLOPS['cpu'] = 1.0; "
        "training.PEER_SETTINGS['cpu'] = {'whole batches': training.PEER_SETTINGS['cpu']['whole batches']}; "
        "run = training.Bench.run; training.Bench.run = lambda bench, *what, **arguments: run(bench, *what, "
        "**(arguments | ({'places': 'none'} if arguments.get('full_length') else {}))); "
        "sys.argv = ['training', '--recipe', 'tiny', '--precision', 'float32', '--megabytes', '0.3', '--json']; "
        "training.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(home), BERT_PIPELINE_RECIPES=str(home))
    assert finished.returncode == 0, finished.stderr
    assert "WARNING: using the generated sample" in finished.stderr
    assert not list(home.glob("benchmark-*")), "nothing is left behind"
    return json.loads(finished.stdout)


def test_training_has_a_row_for_each_peer(trained):
    """This model has no positions for 512 tokens, so there are only rows for 128."""
    assert [row["name"] for row in trained["rows"]] == ["tiny-128"] * 3
    works, fails, as_it_comes = trained["rows"]
    assert as_it_comes["peer_name"].endswith("Trainer, as it comes") and as_it_comes["ratio"] is None
    assert works["unit"] == "tokens/s" and works["ratio"] == works["ours"] / works["peer"]
    assert works["peer_name"].endswith("Trainer, padded to the longest row, whole batches")
    assert [len(works["measured"][side]["seconds"]) for side in ("ours", "peer")] == [1, 1]
    assert 0 < works["model_flops_utilization"]["peer"] < 1 and 0 < works["model_flops_utilization"]["ours"] < 1
    assert works["fill"] == works["mean_length"] / 128 and 0.2 < works["fill"] < 1
    assert (fails["ours"], fails["peer"], fails["ratio"]) == (works["ours"], None, None)
    assert "transformers_trainer trainer: TypeError: '>' not supported" in fails["reason"]
    shown = training.table(trained)
    assert "tiny-128" in shown and fails["reason"] in shown


def test_both_sides_trained_on_the_same_pairs_under_the_same_masks(trained):
    """With the same weights and without dropout, the first loss depends only on pairs and masks."""
    row = trained["rows"][0]
    assert row["first_loss"]["peer"] == pytest.approx(row["first_loss"]["ours"], abs=2e-5)
    assert len({*row["measured"]["ours"]["tokens"], *row["measured"]["peer"]["tokens"]}) == 1


@dataclass(frozen=True)
class Stopwatch(training.Bench):
    """Returns invented times: the Trainer is fastest with compiled micro-batches and fails with compiled batches."""

    def run(self, module, task, **arguments):
        seconds = 1.0
        if task == "trainer":
            if arguments["compiled"] and arguments["places"] > 4096:
                raise MeasurementError("no compiler")
            seconds = (4.0 - arguments["compiled"]) * (1 + arguments["full_length"])
        clocked = {"seconds": seconds, "process_seconds": seconds + 1}
        return {"tokens": 600, "first_loss": 6.0, "data_wait_fraction": 0.0, "reported_utilization": 0.5} | clocked


def test_the_peer_runs_with_its_fastest_settings(tmp_path):
    bench = Stopwatch(tmp_path, load_recipe(recipe_files()["small"]), "cpu", "float32", [0])
    stretch = {"max_seq_length": 128, "warm_up": 1, "num_steps": 4, "global_batch_size": 8, "tokens": 600}
    stretch |= {"flops": 6e9, "mean_length": 64.0, "fill": 0.5}
    made = training.compare(bench, stretch, peak=1e10)
    assert [row["ratio"] for row in made] == [3.0, 6.0, 8.0]
    assert [row["peer_name"].split("Trainer, ")[1] for row in made] == [
        "padded to the longest row, accumulating 4,096 places, compiled",
        "padded to the full length, accumulating 4,096 places, compiled",
        "as it comes",
    ]
    rounds = training.ROUNDS["cpu"]
    assert all(len(row["measured"][side]["seconds"]) == rounds for row in made for side in ("ours", "peer"))
    assert made[0]["model_flops_utilization"] == {"ours": 0.6, "peer": pytest.approx(0.2)}
    with pytest.raises(SystemExit, match="trained on other pairs"):
        training.compare(bench, stretch | {"tokens": 601}, peak=1e10)


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_can_be_cut_down(name):
    recipe = load_recipe(recipe_files()[name])
    cut = pretraining.cut_down(recipe, {"path": "text.jsonl"}, [8, recipe.model.max_position_embeddings])
    assert cut.pretrain.budget_minutes is None and not cut.pretrain.init_from and cut.nsp.dupe_factor == 1
    for phase in cut.pretrain.phases:
        assert phase.global_batch_size == recipe.pretrain.phases[0].global_batch_size and phase.learning_rate
