"""Training runs for tests: as processes of their own, or by the hundred as forks of one that has imported torch.

With one process or several; undisturbed, or with a fault injected into one of them (sabotaged.py).
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PATIENCE_SECONDS, commands
from safetensors.torch import load_file

from bert_pipeline.formats.metrics import Row, read_rows
from bert_pipeline.recipe import PretrainRecipe
from bert_pipeline.training.batches.dataset import PairDataset, open_masker
from bert_pipeline.training.job import Job
from bert_pipeline.training.launch.budget import Pace
from bert_pipeline.training.launch.build import TrainingFailed

ROOT = Path(__file__).parents[2]
SABOTAGED = Path(__file__).with_name("sabotaged.py")
NOTHING = "none none 0 none"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Without dropout, whose noise each process draws for itself."""
CLOCKED = {"tokens_per_second", "data_wait_fraction", "model_flops_utilization", "peak_raised"}


def job_for(
    tiny: dict,
    recipe,
    out: Path,
    *,
    per_device_tokens: int = 256,
    model: dict | None = None,
    first_phase: dict | None = None,
    **section: Any,
) -> Path:
    """Write the file of a job into `out`; the keyword arguments change the recipe."""
    (out / "work").mkdir(parents=True, exist_ok=True)
    changed = recipe.pretrain.model_dump(mode="json") | section
    changed["phases"][0] |= first_phase or {}
    job = Job(
        section=PretrainRecipe.model_validate_json(json.dumps(changed)),
        model=recipe.model.model_copy(update=model or {}),
        masking=recipe.masking,
        **{kind: tiny[kind].path for kind in ("tokenizer", "nsp_dataset", "masked_dataset")},
        out=out,
        identity="test",
        per_device_tokens=per_device_tokens,
    )
    job.write(out / "work" / "job.json")
    return out / "work" / "job.json"


def open_dataset(tiny: dict, recipe, max_seq_length: int, split: str = "train") -> PairDataset:
    """A split as training opens it."""
    paths = (tiny[kind].path for kind in ("nsp_dataset", "masked_dataset"))
    return PairDataset(*paths, max_seq_length, split, open_masker(recipe.masking, tiny["tokenizer"].path))


def start(command: Sequence[object], **environment: str) -> subprocess.Popen:
    """Start a process in a session of its own; `finish` kills what is left of the session."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    """Wait for the process and return its output."""
    try:
        said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == expected, said
    return said


def trainers_of(folder: Path) -> list[int]:
    """Process ids of the training processes, without their launchers, of jobs below the folder."""
    module = ["-m", "bert_pipeline.training.pretrain"]
    found = commands().items()
    return [number for number, command in found if command[1:3] == module and command[3].startswith(str(folder))]


def trace(out: Path) -> list[Row]:
    """The metrics of a run, without those that depend on the clock."""
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in read_rows(out / "metrics.jsonl")]


def assert_identical(found, expected):
    assert trace(found) == trace(expected)
    weights = [load_file(out / "model.safetensors") for out in (expected, found)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def fork(function: Callable[..., None], *arguments: Any, log: Path) -> ForkServerProcess:
    """Call a function in a fork of a server that has imported torch but started no thread; append its output to `log`.

    The import takes seconds, a fork milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "pytest", "training.preloaded", "training.runs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)  # the server is not given sys.path
        forkserver.ensure_running()
    process = context.Process(target=_say_to, args=(log, dict(os.environ), function, *arguments), daemon=True)
    process.start()
    return process


def _say_to(log: Path, environment: dict[str, str], function: Callable[..., None], *arguments: Any) -> None:
    assert "training.preloaded" in sys.modules, "the server passes over what it cannot import"
    os.environ.clear()  # of the server's beginning
    os.environ |= environment
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    function(*arguments)


def train_and_witness(
    job_file: Path, attempt: int = 0, before_step: Callable[[int], None] = lambda number: None
) -> None:
    """Train on one core, and write a digest of each step's batch to a file beside the job."""
    from bert_pipeline.training import pretrain, utilization

    class Witness(pretrain.StepReader):
        def read(self, first: int, end: int):
            for number, step, waited in super().read(first, end):
                digest = hashlib.sha256()
                for part in step.parts:
                    for name in sorted(part):
                        digest.update(name.encode() + part[name].numpy().tobytes())
                line = {"attempt": attempt, "step": number, "clock": time.monotonic()}
                line |= {"parts": len(step.parts), "sha256": digest.hexdigest()}
                with (job_file.parent / "samples.jsonl").open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                before_step(number)
                yield number, step, waited

    pretrain.StepReader = Witness
    utilization.matmul_peak = lambda device, dtype: 1e15  # measuring takes a second, and is no part of the trace
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pretrain.train(Job.read(job_file))


def fork_ranks(program, arguments, processes, log, sabotage=NOTHING, **given):
    """Start a Python file in several processes, with the environment that torchrun would set."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    group |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [group | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]
    if processes == 1:
        ranks = [{"ACCELERATE_USE_CPU": "true"}]
    given["SABOTAGE"] = sabotage
    return [fork(run_main, str(program), [str(a) for a in arguments], rank | given, log=log) for rank in ranks]


def run_main(program, arguments, environment):
    os.environ |= environment
    sys.argv[:] = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def exit_code(process):
    """Negative after a signal."""
    process.join(PATIENCE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def train(job, processes, expected=0, **how):
    """Train to the end and return the output of the processes."""
    log = job.parents[1] / f"said-{time.monotonic_ns()}"
    codes = [exit_code(process) for process in fork_ranks(SABOTAGED, [job], processes, log, **how)]
    said = log.read_text()
    assert expected is None or set(codes) == {expected}, (codes, said)
    return said


def train_in_a_fork(
    command: Sequence[str], environment: Mapping[str, str], log_file: Path, follow: Callable[[], None]
) -> None:
    """Replaces `launch._run`: runs the training process directly, on the job that the command names."""
    process = fork(run_main, str(SABOTAGED), [command[-1]], dict(environment), log=log_file)
    try:
        while process.is_alive():
            process.join(0.05)
            follow()
        follow()
    finally:
        process.terminate()
        code = exit_code(process)
    if code:
        raise TrainingFailed(f"training ended with exit code {code}:\n{log_file.read_text()}")


def measure_pace_in_a_fork(job: Job, folder: Path, environment: Mapping[str, str]) -> Pace:
    """Replaces `budget.measure_pace`: measures each figure for a tenth of the time."""
    job.write(folder / "probe-job.json")
    process = fork(
        _probe, folder / "probe-job.json", folder / "probe.json", dict(environment), log=folder / "probe.log"
    )
    assert exit_code(process) == 0, (folder / "probe.log").read_text()
    return Pace(**json.loads((folder / "probe.json").read_text()))


def _probe(job_file: Path, pace_file: Path, environment: dict[str, str]) -> None:
    from bert_pipeline.training.launch import probe

    os.environ |= environment
    probe.TIMED_SECONDS = 0.1
    pace_file.write_text(json.dumps(asdict(probe.Probe(Job.read(job_file)).pace())))


def torchrun(job, sabotage, *, restarts, expected, **environment):
    """Train two processes under torchrun and return their output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(SABOTAGED), str(job)]
    return finish(start(command, SABOTAGE=sabotage, **environment), expected)
