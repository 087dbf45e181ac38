"""Training under faults: killed anywhere, out of memory, out of disk; it ends as if nothing had happened."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from training.runs import exit_code, fork, job_for, open_dataset, trace, train_and_witness, trainers_of

from bert_pipeline.lineage import make_stage
from bert_pipeline.store import artifact
from bert_pipeline.training.checkpoint import CheckpointError, Checkpoints
from bert_pipeline.training.launch import build as launch
from bert_pipeline.training.pretrain import EXIT_RESUME

CHECKPOINT_EVERY = 5


def long_job(tiny, recipe, out: Path) -> Path:
    """A row of metrics for every step; an epoch ends in it, and a step has several micro-batches."""
    often = {"log_every": 1, "eval_every": 20, "checkpoint_every": CHECKPOINT_EVERY}
    return job_for(tiny, recipe, out, first_phase={"num_steps": 120}, **often)


def samples(out: Path) -> list[dict]:
    """What each step was given, redone steps and all; the last line may be cut short."""
    lines = (out / "work" / "samples.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def run(job: Path, log: Path) -> None:
    process = fork(train_and_witness, job, log=log)
    assert exit_code(process) == 0, log.read_text()


@pytest.fixture(scope="module")
def undisturbed(tiny, tiny_recipe, tmp_path_factory):
    """The run that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed")
    run(long_job(tiny, tiny_recipe, out), out / "log")
    return out


def check(out: Path, undisturbed: Path) -> None:
    """The trace (losses, rates, gradient norms: floats, digit for digit), the weights and the samples of every step,
    none lost and none repeated; no resume redid more than the steps since the last checkpoint.
    """
    assert trace(out) == trace(undisturbed)
    assert weights(out) == weights(undisturbed)
    expected = {line["step"]: line["sha256"] for line in samples(undisturbed)}
    done: list[int] = []
    attempt = 0
    for line in samples(out):
        assert line["sha256"] == expected[line["step"]]
        if line["attempt"] != attempt:
            attempt, first = line["attempt"], line["step"]
            assert first % CHECKPOINT_EVERY == 0
            assert 0 <= len(done) - first <= CHECKPOINT_EVERY
            del done[first:]
        done.append(line["step"])
    assert done == sorted(expected)


def wait_for_a_step(out: Path, process: BaseProcess) -> None:
    """Until the process has begun a step."""
    path = out / "work" / "samples.jsonl"
    before = path.stat().st_size if path.exists() else 0
    while process.exitcode is None and not (path.exists() and path.stat().st_size > before):
        time.sleep(0.001)


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_end_as_if_undisturbed(tiny, tiny_recipe, tmp_path, undisturbed, kills):
    """One kill in five comes within the time of a whole run, the others within that of its steps."""
    clock = [line["clock"] for line in samples(undisturbed)]
    seconds = clock[-1] - clock[0]
    random = np.random.default_rng(kills)
    killed, most, runs = 0, 0, 0
    resumed_from: Counter[int] = Counter()
    while killed < kills or most < 3:
        assert runs < 3 * kills, "runs end before they are killed, or do not resume"
        out = tmp_path / f"run-{runs}"
        job, log = long_job(tiny, tiny_recipe, out), out / "log"
        runs += 1
        for attempt in range(1000):
            process = fork(train_and_witness, job, attempt, log=log)
            if killed >= kills and most >= 3:
                exit_code(process)
            else:
                if random.random() < 0.8:
                    wait_for_a_step(out, process)
                process.join(random.uniform(0, 0.5) * seconds)
            process.kill()
            if exit_code(process) == 0:
                break
            assert process.exitcode == -signal.SIGKILL, log.read_text()
            killed += 1
        check(out, undisturbed)
        firsts = {line["attempt"]: line["step"] for line in reversed(samples(out))}
        resumed_from.update(first for attempt, first in firsts.items() if attempt > 0)
        most = max(most, sum(first > 0 for first in firsts.values()))
    print(f"{killed} kills in {runs} runs, at most {most} resumes in one; resumed from {sorted(resumed_from.items())}")


def test_the_killed_runs_pass_the_end_of_an_epoch_and_accumulate(tiny, tiny_recipe, undisturbed):
    """What the test above is to prove nothing without."""
    assert open_dataset(tiny, tiny_recipe, 32).num_rows(0) < 120 * 16
    assert max(line["parts"] for line in samples(undisturbed)) > 1
    losses = [row["loss"] for row in trace(undisturbed) if "loss" in row]
    assert len(set(losses)) == len(losses) == 124


def terminate_while_saving(job: Path) -> None:
    """SIGTERM, again and again, whenever the first save of a run has a file or a folder on its way to the disk."""
    from bert_pipeline.training import checkpoint

    flush = checkpoint.flush_to_disk

    def interrupted(*arguments, **options) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        flush(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    checkpoint.flush_to_disk = interrupted
    train_and_witness(job)


def test_sigterm_while_saving_again_and_again(tiny, tiny_recipe, tmp_path, undisturbed):
    job, log = long_job(tiny, tiny_recipe, tmp_path), tmp_path / "log"
    process = fork(terminate_while_saving, job, log=log)
    assert exit_code(process) == EXIT_RESUME, log.read_text()
    # Asked to stop in the save after step 5, it finds the request after step 6.
    assert [path.name for path in sorted((job.parent / "checkpoints").iterdir())] == ["step-00000005", "step-00000006"]
    process = fork(train_and_witness, job, log=log)
    assert exit_code(process) == 0, log.read_text()
    assert trace(tmp_path) == trace(undisturbed)
    assert weights(tmp_path) == weights(undisturbed)


def test_a_full_disk_stops_a_run_late_and_gently(tiny, tiny_recipe, tmp_path, small_disk, undisturbed):
    job, log = long_job(tiny, tiny_recipe, tmp_path), tmp_path / "log"
    checkpoints = job.parent / "checkpoints"
    checkpoints.symlink_to(small_disk)
    process = fork(train_and_witness, job, log=log)
    code, said = exit_code(process), log.read_text()
    assert code == 1 and said.count("could not be saved, training continues without it") == 2, said
    assert (
        "could not be saved, the third failure in a row" in said and "; remedy: repair or free the disk under" in said
    )
    saved = sorted(path.name for path in checkpoints.iterdir())
    assert saved and all(path.startswith("step-") and not path.endswith(".partial") for path in saved)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    run(job, log)
    assert f"resuming after step {int(saved[-1].removeprefix('step-'))}" in log.read_text()
    assert trace(tmp_path) == trace(undisturbed)
    assert weights(tmp_path) == weights(undisturbed)


def run_out_of_memory(at: int, number: int) -> None:
    if number == at:
        bytearray(b"x") * 2**30


def train_within(group: Path, job: Path, attempt: int, at: int) -> None:
    (group / "memory.limit_in_bytes").write_text(str(256 * 2**20))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    train_and_witness(job, attempt, partial(run_out_of_memory, at))


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_runs_killed_by_the_kernel_for_their_memory_go_on(
    tiny, tiny_recipe, tmp_path, memory_group, undisturbed, kills
):
    job, log = long_job(tiny, tiny_recipe, tmp_path), tmp_path / "log"
    for attempt, at in enumerate(np.linspace(0, 123, kills, dtype=int)):
        process = fork(train_within, memory_group, job, attempt, at, log=log)
        assert exit_code(process) == -signal.SIGKILL, log.read_text()
    assert f"oom_kill {kills}" in (memory_group / "memory.oom_control").read_text()
    process = fork(train_and_witness, job, kills, log=log)
    assert exit_code(process) == 0, log.read_text()
    check(tmp_path, undisturbed)


def test_a_training_process_that_is_killed_is_named_and_goes_on(tiny, tiny_recipe, tmp_path):
    """As the kernel does when memory runs out."""
    rows = []

    def kill_after_a_checkpoint(row):
        rows.append(row)
        if list(tmp_path.glob("*.partial/work/checkpoints/step-????????")) and not killed:
            killed.extend(trainers_of(tmp_path))
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    longer = tiny_recipe.pretrain.phases[0].model_copy(update={"num_steps": 400})
    section = tiny_recipe.pretrain.model_copy(update={"phases": (longer, tiny_recipe.pretrain.phases[1])})
    recipe = tiny_recipe.model_copy(update={"pretrain": section})
    with pytest.raises(launch.TrainingFailed, match="SIGKILL"):
        make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out", kill_after_a_checkpoint)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("out.partial/work/checkpoints/step-*")), "the checkpoint that the next run resumes from"


class ReadyToTrain(Exception):
    """All is prepared, and the training processes would start now."""


def altered(recipe, tiny: dict, root: Path, what: str) -> tuple:
    """The recipe and the inputs of a training run, with one thing changed."""
    if what in ("nothing", "own code"):
        return recipe, tiny
    if what == "section":
        return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"seed": 6})}), tiny
    if what == "model":
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"hidden_dropout_prob": 0.2})}), tiny
    kind, part, value = {
        "tokenizer": ("tokenizer", "section", {"vocab_size": 900}),
        "data": ("nsp_dataset", "inputs", {"raw_corpus": "another"}),
        "mask config": ("masked_dataset", "section", {"masked_lm_prob": 0.2}),
        "code of the masks": ("masked_dataset", "code_version", "another"),
    }[what]
    origin = dict(tiny[kind].record["origin"])
    origin[part] = value if part == "code_version" else origin[part] | value
    return recipe, tiny | {kind: artifact.make(root / "another", origin, lambda out: {})}


def test_a_run_of_changed_inputs_does_not_go_on(tiny, tiny_recipe, tmp_path, monkeypatch):
    """Neither one does after the other; both fingerprints are named."""
    monkeypatch.setattr(launch, "_run", Mock(side_effect=ReadyToTrain))
    identities, model = {}, nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for what in ("nothing", "section", "model", "tokenizer", "data", "mask config", "code of the masks", "own code"):
        out = tmp_path / what
        recipe, inputs = altered(tiny_recipe, tiny, out, what)
        paths = [inputs[kind].path for kind in ("tokenizer", "nsp_dataset", "masked_dataset")]
        sections = recipe.pretrain, recipe.model, recipe.masking
        build = partial(launch.build_pretrained_checkpoint, *sections, *paths, on_row=print)
        origin = artifact.origin("pretrained_checkpoint", {}, {}, "another" if what == "own code" else "1")
        with pytest.raises(ReadyToTrain):
            artifact.make(out / "pretrained", origin, lambda folder, build=build: build(out=folder))
        job = json.loads((out / "pretrained.partial" / "work" / "job.json").read_text())
        identities[what] = job["identity"]
    assert len(set(identities.values())) == 8
    Checkpoints(tmp_path / "checkpoints", identities.pop("nothing"), 2).save(1, model, optimizer, {})
    before = json.loads(next(tmp_path.glob("checkpoints/*/checkpoint.json")).read_text())["identity"]
    for now in identities.values():
        with pytest.raises(
            CheckpointError, match=rf"to another recipe, other data or other code \({before}, not {now}\); remedy"
        ):
            Checkpoints(tmp_path / "checkpoints", now, 2).load_newest(model, optimizer)
