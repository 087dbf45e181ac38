"""Whole training runs of a tiny model: exact, resumable, and what they leave behind."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from training.runs import SABOTAGED, exit_code, fork_ranks, job_for, trace, train
from transformers import AutoTokenizer, BertForMaskedLM, BertForPreTraining

from bert_pipeline.core.processor import has_bf16_units
from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.lineage import make_stage
from bert_pipeline.training.launch.build import TrainingFailed
from bert_pipeline.training.pretrain import EXIT_RESUME


@pytest.fixture(scope="module")
def undisturbed(tiny, tiny_recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(job_for(tiny, tiny_recipe, out), 1)
    return out


def test_training_reports_and_learns(undisturbed):
    rows = read_rows(undisturbed / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    heldout = [row for row in rows if "heldout_mlm_loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in heldout] == [0, 8, 12]
    assert losses[-1] < losses[0]
    assert heldout[-1]["heldout_mlm_loss"] < heldout[0]["heldout_mlm_loss"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tiny, tiny_recipe, tmp_path, undisturbed, sign):
    """The trace (losses, rates, gradient norms) and the weights equal those of the uninterrupted run."""
    job = job_for(tiny, tiny_recipe, tmp_path)
    [process] = fork_ranks(SABOTAGED, [job], 1, tmp_path / "said")
    while not list(tmp_path.glob("work/checkpoints/step-????????")):
        assert process.is_alive(), (tmp_path / "said").read_text()
        time.sleep(0.001)
    os.kill(process.pid, sign)
    code = exit_code(process)
    if not (tmp_path / "work" / "result.json").exists():
        assert code == (EXIT_RESUME if sign == signal.SIGTERM else -signal.SIGKILL)
        train(job, 1)
    assert trace(tmp_path) == trace(undisturbed)
    expected, found = (load_file(out / "model.safetensors") for out in (undisturbed, tmp_path))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.skipif(not has_bf16_units(), reason="this processor has no units for bfloat16")
def test_a_compiled_run_in_bfloat16_goes_on_bit_for_bit(tiny, tiny_recipe, tmp_path):
    """On two threads; each start compiles again, for the first batch that it sees."""
    settings = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    settings |= {"ACCELERATE_DYNAMO_USE_DYNAMIC": "true", "OMP_NUM_THREADS": "2"}
    outs = [tmp_path / name for name in ("once", "again", "killed")]
    jobs = [job_for(tiny, tiny_recipe, out, log_every=1) for out in outs]
    for job in jobs[:2]:
        train(job, 1, **settings)
    train(jobs[2], 1, expected=-signal.SIGKILL, sabotage="0 forward 7 KILL", **settings)
    assert "resuming after step" in train(jobs[2], 1, **settings)
    weights = [load_file(out / "model.safetensors") for out in outs]
    for out, found in zip(outs[1:], weights[1:], strict=True):
        assert trace(out) == trace(outs[0])
        assert all(torch.equal(found[name], expected) for name, expected in weights[0].items())


def test_a_run_whose_launcher_was_killed_saves_and_stops(tiny, tiny_recipe, tmp_path):
    """While it trains; and one that finds its launcher gone already stops after a step."""
    job = job_for(tiny, tiny_recipe, tmp_path)
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    [process] = fork_ranks(SABOTAGED, [job], 1, tmp_path / "said", BERT_PIPELINE_LAUNCHER=str(launcher.pid))
    while not list(tmp_path.glob("work/checkpoints/step-????????")):
        assert process.is_alive(), (tmp_path / "said").read_text()
        time.sleep(0.001)
    launcher.kill()
    assert exit_code(process) == EXIT_RESUME, "before anybody has waited for it"
    launcher.communicate()
    [again] = fork_ranks(SABOTAGED, [job], 1, tmp_path / "said", BERT_PIPELINE_LAUNCHER=str(launcher.pid))
    assert exit_code(again) == EXIT_RESUME
    said = (tmp_path / "said").read_text()
    stops = [int(step) for step in re.findall(r"stopped after step (\d+) of 12; run again to resume", said)]
    assert stops[0] >= 3 and stops[1] == stops[0] + 1 and said.count("the launcher was killed") == 2


def test_one_process_and_two_give_the_same_numbers(tiny, tiny_recipe, tmp_path):
    """Without dropout, whose noise each process draws for itself: losses and weights within float32's tolerance."""
    still = tiny_recipe.model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    recipe = tiny_recipe.model_copy(update={"model": still})
    one, two = tmp_path / "one", tmp_path / "two"
    train(job_for(tiny, recipe, one), 1)
    train(job_for(tiny, recipe, two), 2)
    assert json.loads((two / "work" / "result.json").read_text())["world_size"] == 2
    for expected, found in zip(trace(one), trace(two), strict=True):
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-6)
    weights = [load_file(out / "model.safetensors") for out in (one, two)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=2e-5, rtol=1e-3)


def test_damaged_checkpoints_are_passed_over_and_named(tiny, tiny_recipe, tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path / "run")
    job = job_for(tiny, tiny_recipe, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "work" / "checkpoints").glob("step-*"))[-1]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    said = train(job, 1)
    assert "model.safetensors is damaged: SHA-256" in said and "resuming after step 9" in said
    assert trace(tmp_path / "run") == trace(undisturbed)


def test_work_of_another_recipe_is_refused(tiny, tiny_recipe, tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path / "run")
    job = job_for(tiny, tiny_recipe, tmp_path / "run")
    job.write_text(job.read_text().replace('"identity": "test"', '"identity": "other"'))
    said = train(job, 1, expected=1)
    assert "belongs to another recipe" in said and f"remedy: remove {tmp_path / 'run'}" in said


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tiny, tiny_recipe, tmp_path):
    """Steps are skipped and counted, and the run stops when they do not end; what is saved meanwhile is finite."""
    job = job_for(tiny, tiny_recipe, tmp_path, first_phase={"learning_rate": 1e30}, max_skipped_steps=5)
    said = train(job, 1, expected=1)
    assert "step 2 is skipped: its loss or gradient is not finite" in said
    assert "step 7: the gradient is not finite" in said and "remedy: a lower pretrain.phases.learning_rate" in said
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["skipped_steps"] for row in rows if "skipped_steps" in row] == [0, 1, 2, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for path in tmp_path.glob("work/checkpoints/*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    told = (tmp_path / "skipped.jsonl").read_bytes()
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 5, 6, 7]
    for line in lines:
        assert sum(len(rows) for span in line["pairs"] for rows in span["rows"].values()) == 16
    train(job, 1, expected=1)  # step 7 comes again, and its line does
    assert (tmp_path / "skipped.jsonl").read_bytes() == told


def test_the_exported_directory_is_a_plain_hugging_face_model(trained):
    made, rows = trained
    assert rows == read_rows(made.path / "metrics.jsonl")
    assert {path.name for path in made.path.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
        *("metrics.jsonl", "README.md", "loss_curve.png", "record.json"),
    }
    assert made.facts["max_logit_difference"] < 1e-5
    assert all(0.1 < share < 0.9 for share in made.facts["active_units_by_layer"])
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    for kind in (BertForPreTraining, BertForMaskedLM):
        model, info = kind.from_pretrained(made.path, output_loading_info=True)
        assert not info["missing_keys"], kind
    batch = tokenizer("patients received the drug", "it was well tolerated", return_tensors="pt")
    assert model(**batch).logits.isfinite().all()


def test_the_facts_add_up(trained):
    facts = trained[0].facts
    assert facts["num_steps"] == 12
    assert facts["train_pairs_seen"] == 8 * 16 + 4 * 8
    assert facts["heldout_after"]["mlm_loss"] < facts["heldout_before"]["mlm_loss"]
    assert facts["world_size"] == 1


def test_a_failed_training_leaves_no_artifact_and_says_why(tiny, tiny_recipe, tmp_path, training_in_a_fork):
    phases = tiny_recipe.pretrain.phases
    hot = tiny_recipe.pretrain.model_copy(
        update={
            "phases": (phases[0].model_copy(update={"learning_rate": 1e30}), phases[1]),
            "max_skipped_steps": 0,
        }
    )
    recipe = tiny_recipe.model_copy(update={"pretrain": hot})
    with pytest.raises(TrainingFailed, match="the gradient is not finite"):
        make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_snapshots_stay_as_whole_models_and_disturb_nothing(tiny, tiny_recipe, tmp_path, undisturbed):
    """Each holds the weights that the checkpoint of its step holds."""
    job = job_for(tiny, tiny_recipe, tmp_path, snapshot_every=4, checkpoint_every=4, checkpoints_kept=5)
    train(job, 1)
    assert trace(tmp_path) == trace(undisturbed)
    names = ["step-00000004", "step-00000008"]
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == names
    for name in names:
        kept = load_file(tmp_path / "work" / "checkpoints" / name / "model.safetensors")
        model = BertForPreTraining.from_pretrained(tmp_path / "snapshots" / name)
        assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items() if key in kept)
        assert model.config._attn_implementation == "sdpa"
        assert AutoTokenizer.from_pretrained(tmp_path / "snapshots" / name).mask_token == "[MASK]"
