"""Training with Muon and a structured start: resumed = uninterrupted, one process = two."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from training.runs import SABOTAGED, assert_identical, exit_code, fork_ranks, job_for, trace, train

from bert_pipeline.formats.metrics import read_rows


def test_a_killed_run_resumes_bit_for_bit(tiny, muon_recipe, tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    train(job_for(tiny, muon_recipe, uninterrupted, log_every=1), 1)
    job = job_for(tiny, muon_recipe, killed, log_every=1)
    [process] = fork_ranks(SABOTAGED, [job], 1, tmp_path / "said")
    while not list(killed.glob("work/checkpoints/step-????????")):
        assert process.is_alive(), (tmp_path / "said").read_text()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    exit_code(process)
    if not (killed / "work" / "result.json").exists():
        state = load_file(max(killed.glob("work/checkpoints/step-????????")) / "optimizer.safetensors")
        kept = {name.rpartition("/")[2] for name in state if name.startswith("bert.encoder") and "dense.weight" in name}
        assert kept == {"momentum_buffer"}
        train(job, 1)
    assert_identical(killed, uninterrupted)
    losses = [row["loss"] for row in read_rows(killed / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]


def test_one_process_and_two_give_the_same_numbers(tiny, muon_recipe, tmp_path):
    """Each process orthogonalises half of the matrices. bfloat16 there rounds sums of other orders differently."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(job_for(tiny, muon_recipe, one), 1)
    train(job_for(tiny, muon_recipe, two), 2)
    for expected, found in zip(trace(one), trace(two), strict=True):
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-5)
    weights = [load_file(out / "model.safetensors") for out in (one, two)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-3, rtol=1e-2)
