"""Several processes: the results of one, and nothing lost if one of them is killed, hangs or is stopped."""

import json
import subprocess

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training.runs import (
    NOTHING,
    SABOTAGED,
    STILL,
    assert_identical,
    exit_code,
    fork_ranks,
    torchrun,
    trace,
    train,
)

from bert_pipeline import settings
from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.training.pretrain import EXIT_RESUME


def assert_close(found, expected, rel=2e-6):
    for row, other in zip(trace(found), trace(expected), strict=True):
        assert row == pytest.approx(other, rel=rel, abs=1e-7)
    weights = [load_file(out / "model.safetensors") for out in (expected, found)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-6, rtol=1e-4)


def newest_step(out):
    return max(int(path.name[-8:]) for path in out.glob("work/checkpoints/step-????????"))


def test_three_processes_share_a_batch_that_they_do_not_divide(new_job, undisturbed_one, tmp_path):
    said = train(new_job(tmp_path, model=STILL), 3)
    assert (
        "pretrain.phases.1.global_batch_size 8 is not a multiple of the 3 processes: in each step 2 of them get 3 "
        "pairs and 1 get 2; this costs a little time, and no pair is left out" in said
    )
    assert_close(tmp_path, undisturbed_one)


def test_the_number_of_processes_changes_between_resumes(new_job, undisturbed_one, tmp_path):
    """1, then 2, then 3, then 1: one checkpoint format, one trace."""
    job = new_job(tmp_path, model=STILL)
    train(job, 1, EXIT_RESUME, sabotage="0 forward 2 TERM")
    train(job, 2, EXIT_RESUME, sabotage="1 forward 5 TERM")
    train(job, 3, EXIT_RESUME, sabotage="0 forward 8 TERM")
    assert newest_step(tmp_path) == 9
    train(job, 1)
    assert_close(tmp_path, undisturbed_one)


KILLED = ["1 backward 7 KILL"]
KILLED_MORE = ["0 save 5 KILL"] + [
    f"{rank} {phase} {step} KILL"
    for rank in (0, 1)
    for phase, steps in {"data": (0, 7, 11), "forward": (0, 7, 11), "backward": (0, 7, 11), "heldout": (7, 11)}.items()
    for step in steps
    if f"{rank} {phase} {step} KILL" not in KILLED
]


@pytest.mark.parametrize("sabotage", KILLED + [pytest.param(s, marks=pytest.mark.slow) for s in KILLED_MORE])
def test_a_killed_process_takes_the_group_with_it_and_torchrun_starts_it_again(
    new_job, undisturbed_two, tmp_path, sabotage
):
    said = torchrun(new_job(tmp_path), sabotage, restarts=1, expected=0)
    assert "SABOTAGE" in said, "the test would prove nothing"
    assert "lost another one" in said or any(phase in sabotage for phase in ("heldout", "save", " 0 KILL"))
    assert_identical(tmp_path, undisturbed_two)


@pytest.mark.parametrize(
    ("rank", "phase", "step"),
    [
        (1, "backward", 4),
        (0, "save", 5),
        pytest.param(0, "backward", 4, marks=pytest.mark.slow),
        pytest.param(0, "export", 11, marks=pytest.mark.slow),
        pytest.param(1, "open", 0, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_hangs_ends_the_group_in_time(new_job, tmp_path, rank, phase, step):
    job = new_job(tmp_path)
    log, sabotage = tmp_path / "said", f"{rank} {phase} {step} STOP"
    ranks = fork_ranks(SABOTAGED, [job], 2, log, sabotage, BERT_PIPELINE_TIMEOUT_SECONDS="8")
    assert exit_code(ranks[1 - rank]) == 1
    assert ranks[rank].is_alive(), "it still hangs"
    ranks[rank].kill()
    lost = "another one" if phase == "backward" else f"process {rank}{' or its machine' * (rank == 0)}"
    expected = f"process {1 - rank} of 2 lost {lost}, which ended or did not respond for 8 seconds"
    assert expected in log.read_text()


def test_compiling_saving_loading_and_exporting_may_take_longer_than_the_timeout(new_job, undisturbed_two, tmp_path):
    """Each pause is three times as long as the timeout, and only one of the processes makes it."""
    job, patience = new_job(tmp_path), {"BERT_PIPELINE_TIMEOUT_SECONDS": "3"}
    slow = "1 open 0 SLOW;1 forward 0 SLOW;0 backward 0 SLOW;0 save 5 SLOW"
    said = train(job, 2, EXIT_RESUME, sabotage=f"{slow};1 data 7 TERM", **patience)
    said += train(job, 2, sabotage="0 load 0 SLOW;0 export 11 SLOW", **patience)
    assert said.count("SLOW") == 6, "the test would prove nothing"
    assert_identical(tmp_path, undisturbed_two)


@pytest.mark.slow
def test_after_a_process_hung_torchrun_starts_the_group_again(new_job, undisturbed_two, tmp_path):
    """Most of the time is torchrun's 30 seconds; with our default timeout the group is gone within 60 seconds."""
    said = torchrun(new_job(tmp_path), "1 backward 4 STOP", restarts=1, expected=0, BERT_PIPELINE_TIMEOUT_SECONDS="4")
    assert "SABOTAGE" in said and "did not respond for 4 seconds" in said
    assert_identical(tmp_path, undisturbed_two)


LATE = """
import os, time
from torch import ones
from bert_pipeline.training.distributed import join_group
time.sleep(6 * int(os.environ["RANK"]))
accelerator = join_group()
os.write(1, b"together: %d\\n" % int(accelerator.reduce(ones(1))))  # one write: both append to one file
accelerator.end_training()
"""


def test_a_process_may_start_later_than_the_timeout(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    ranks = fork_ranks(tmp_path / "late.py", [], 2, tmp_path / "said", BERT_PIPELINE_TIMEOUT_SECONDS="4")
    assert {exit_code(rank) for rank in ranks} == {0}, (tmp_path / "said").read_text()
    assert (tmp_path / "said").read_text().count("together: 2") == 2


STOPPED = ["1 data 5 TERM", "0 heldout 7 TERM-LAUNCHER"]
STOPPED_MORE = [f"{rank} {phase} {step} {deed}" for phase, step in (("forward", 0), ("heldout", 7), ("save", 5))
                for rank, deed in ((0, "TERM"), (1, "TERM"), ("all", "TERM"), (0, "TERM-LAUNCHER"))
                if (rank, phase) != (1, "save")]  # fmt: skip


@pytest.mark.parametrize("sabotage", STOPPED + [pytest.param(s, marks=pytest.mark.slow) for s in STOPPED_MORE])
def test_stopped_processes_save_the_same_step_and_resume(new_job, undisturbed_two, tmp_path, sabotage):
    job = new_job(tmp_path)
    if "LAUNCHER" in sabotage:  # torchrun passes the signal on, and has its own exit code
        said = torchrun(job, sabotage, restarts=1, expected=1)
    else:
        said = train(job, 2, EXIT_RESUME, sabotage=sabotage)
    asked_at, saved = int(sabotage.split()[2]), newest_step(tmp_path)
    assert said.count(f"stopped after step {saved} of 12; run again to resume") == 2, said
    assert saved <= asked_at + 2, "each finishes its current step; one may be a step ahead"
    train(job, 2)
    assert_identical(tmp_path, undisturbed_two)


@pytest.mark.slow
def test_torchrun_starts_no_group_again_that_lost_its_launcher(new_job, undisturbed_two, tmp_path):
    job, gone = new_job(tmp_path), subprocess.Popen(["true"])
    gone.wait()
    said = torchrun(job, NOTHING, restarts=3, expected=1, BERT_PIPELINE_LAUNCHER=str(gone.pid))
    assert said.count("the launcher was killed") == 1 and said.count("run again to resume") == 2, said
    train(job, 2)
    assert_identical(tmp_path, undisturbed_two)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(new_job, tmp_path, processes):
    said = train(new_job(tmp_path), processes, sabotage=f"{processes - 1} backward 4 NAN")
    assert "SABOTAGE" in said, "the test would prove nothing"
    skipped = [row["skipped_steps"] for row in trace(tmp_path) if "skipped_steps" in row]
    assert skipped == [0] * 4 + [1] + [0] * 7
    [line] = read_rows(tmp_path / "skipped.jsonl")
    assert line["step"] == 5 and line["grad_norm"] == "nan"
    rows = [(name, row) for span in line["pairs"] for name, rows in span["rows"].items() for row in rows]
    assert len(set(rows)) == 16, "the pairs of all processes"
    for path in tmp_path.glob("work/checkpoints/step-????????/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path


LEAVING = """
import time
from torch import nn, ones
from bert_pipeline.training.distributed import join_group
def main():
    accelerator = join_group()
    loss = accelerator.prepare(nn.Linear(4, 4))
    loss(ones(2, 4)).sum().backward()
    accelerator.reduce(ones(1))
    time.sleep(0.02 * accelerator.is_main_process)
    accelerator.wait_for_everyone()
    accelerator.end_training()
main()
"""


@pytest.mark.slow
def test_processes_that_are_done_end(tmp_path):
    """With torch 2.13 one pair in twenty hung forever: gloo's threads and the interpreter deadlocked at exit."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    for _ in range(100):
        ranks = fork_ranks(tmp_path / "leaving.py", [], 2, tmp_path / "said")
        assert {exit_code(rank) for rank in ranks} == {0}, (tmp_path / "said").read_text()


CONFIGURED = """
import json, sys
from pathlib import Path
from bert_pipeline.training.distributed import join_group
from bert_pipeline.training.job import Job
from bert_pipeline.training.pretrain import as_this_machine_computes
job = as_this_machine_computes(Job.read(Path(sys.argv[1])))
accelerator = join_group()
plugin = accelerator.state.dynamo_plugin
said = [job.micro_batch_tokens, accelerator.mixed_precision, plugin.backend.value, plugin.dynamic]
(Path(sys.argv[2]) / f"rank-{accelerator.process_index}").write_text(json.dumps(said))
accelerator.wait_for_everyone()  # process 0 serves the store from which the other still learns addresses
accelerator.end_training()
"""


def test_on_several_machines_precision_compilation_and_micro_batch_are_the_machines_own(new_job, tmp_path):
    """As infra/train-node.sh starts them: by torchrun, with the accelerate config in the environment."""
    (tmp_path / "configured.py").write_text(CONFIGURED)
    config = yaml.safe_load((settings.ACCELERATE_CONFIGS / "ddp_multinode.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"use_cpu": True}))
    told = {"BERT_PIPELINE_ACCELERATE_CONFIG": str(tmp_path / "config.yaml"), "BERT_PIPELINE_PER_DEVICE_TOKENS": "512"}
    ranks = fork_ranks(tmp_path / "configured.py", [new_job(tmp_path), tmp_path], 2, tmp_path / "said", **told)
    assert {exit_code(rank) for rank in ranks} == {0}, (tmp_path / "said").read_text()
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank-{rank}").read_text()) == [512, "bf16", "INDUCTOR", True]


HELDOUT = """
import json, sys
from pathlib import Path
from bert_pipeline.training.batches.dataset import PairDataset
from bert_pipeline.training.distributed import join_group
from bert_pipeline.training.heldout import heldout_scores
from bert_pipeline.training.job import Job
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model
job = Job.read(Path(sys.argv[1]))
accelerator = join_group()
dataset = PairDataset(job.nsp_dataset, job.masked_dataset, 64, "heldout")
loss = PretrainingLoss(build_model(job.model, 800, 1))
scores = [heldout_scores(loss, dataset, n, 256, accelerator) for n in range(1, 18)]
if accelerator.is_main_process:
    Path(sys.argv[2]).write_text(json.dumps(scores))
"""


def test_held_out_scores_count_each_pair_once(new_job, tmp_path):
    """For 1 to 17 pairs on one process and two. Equal accuracies: the same counts of right guesses over all guesses."""
    job = new_job(tmp_path)
    (tmp_path / "scores.py").write_text(HELDOUT)
    for processes in (1, 2):
        arguments, log = [job, tmp_path / f"{processes}.json"], tmp_path / "said"
        ranks = fork_ranks(tmp_path / "scores.py", arguments, processes, log)
        assert {exit_code(rank) for rank in ranks} == {0}, log.read_text()
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2)]
    assert len(found[0]) == 17
    for alone, together in zip(*found, strict=True):
        for name, value in alone.items():
            assert together[name] == (value if name.endswith("accuracy") else pytest.approx(value, rel=1e-6)), name


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BERT_PIPELINE_WORLD_SIZE": "8"}, "sets 8 processes, but 1 were launched"),
        ({"BERT_PIPELINE_WORLD_SIZE": "8", "WORLD_SIZE": "4"}, "sets 8 processes, but 4 were launched"),
        ({"MASTER_ADDR": "10.0.0.1"}, "several processes were configured"),
        (
            {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"},
            "2 processes were expected, but this one is in",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, "the accelerate config shards the model (distributed_type FSDP)"),
    ],
)
def test_another_group_than_configured_or_a_sharded_model_is_an_error(new_job, tmp_path, environment, message):
    said = train(new_job(tmp_path), 1, expected=1, **environment)
    assert message in said and "remedy:" in said
    assert not list(tmp_path.glob("metrics.jsonl"))
