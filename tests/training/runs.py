"""Training runs for tests: as processes of their own, or by the hundred as forks of one that has imported torch."""

import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bert_pipeline.metrics import Row, read_rows
from bert_pipeline.training.pretrain import Job

ROOT = Path(__file__).parents[2]
CLOCKED = {"tokens_per_second", "data_wait_fraction", "model_flops_utilization"}


def job_for(tiny: dict, recipe, out: Path, *, per_device_tokens: int = 256, **changed: Any) -> Path:
    (out / "work").mkdir(parents=True, exist_ok=True)
    section = recipe.pretrain.model_dump(mode="json")
    section["phases"][0] |= changed.pop("first_phase", {})
    job = Job(
        section=section | changed,
        model=recipe.model.model_dump(mode="json"),
        **{kind: str(tiny[kind].path) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")},
        out=str(out),
        identity="test",
        per_device_tokens=per_device_tokens,
    )
    job.write(out / "work" / "job.json")
    return out / "work" / "job.json"


def start(job_file: Path, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "bert_pipeline.training.pretrain", str(job_file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == expected, said
    return said


def trace(out: Path) -> list[Row]:
    """The numbers of a run, without its clock."""
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in read_rows(out / "metrics.jsonl")]


def fork(function: Callable[..., None], *arguments: Any, log: Path) -> ForkServerProcess:
    """Call a function in a fork of a server that has imported torch, but has started no thread; what it says is
    added to `log`. The import takes seconds, a fork milliseconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "pytest", "bert_pipeline.training.pretrain"])
    process = context.Process(target=_say_to, args=(log, function, *arguments), daemon=True)
    process.start()
    return process


def _say_to(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), sys.stdout.fileno())
        os.dup2(stream.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    function(*arguments)


def train_and_witness(
    job_file: Path, attempt: int = 0, before_step: Callable[[int], None] = lambda number: None
) -> None:
    """Train on one core, and write what each step is about to train on to a file beside the job."""
    from bert_pipeline.training import pretrain

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
    pretrain.matmul_peak = lambda device, dtype: 1e9  # a second of every start, and no part of the trace
    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pretrain.train(Job(**json.loads(job_file.read_text())))
