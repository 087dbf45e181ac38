"""Multi-node training: infra/train-node.sh twice on loopback, which torchrun treats as two machines."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from servers import BIN, INFRA, ROOT, free_port
from training.runs import job_for, trace

from bert_pipeline.training.pretrain import EXIT_RESUME

pytestmark = pytest.mark.slow

WOULD_RECUR = 78


def nodes(job: Path, port: int, **environment: str) -> list[subprocess.Popen]:
    """Start two nodes with one process each."""
    told = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    told |= {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    told |= {"ACCELERATE_USE_CPU": "true", "BERT_PIPELINE_TIMEOUT_SECONDS": "10"}
    told |= {"BERT_PIPELINE_ACCELERATE_CONFIG": "cpu_2"}
    told |= {"BERT_PIPELINE_PER_DEVICE_TOKENS": "256"} | environment
    return [
        subprocess.Popen(
            ["bash", INFRA / "train-node.sh", job],
            env=os.environ | told | {"PET_NODE_RANK": str(rank)},
            cwd=ROOT,
            stdout=(job.parent / f"node-{rank}.log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]


def wait_for(path: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while not any(path.parent.glob(path.name)):
        assert time.monotonic() < deadline and all(each.poll() is None for each in processes), path
        time.sleep(0.1)


def codes(processes: list[subprocess.Popen]) -> list[int]:
    return [each.wait(180) for each in processes]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGUSR1])
def test_two_machines_stop_save_and_resume(tiny, tiny_recipe, tmp_path, stop):
    full, interrupted = tmp_path / "full", tmp_path / "interrupted"
    assert codes(nodes(job_for(tiny, tiny_recipe, full, log_every=1), free_port())) == [0, 0]
    job = job_for(tiny, tiny_recipe, interrupted, log_every=1)
    running = nodes(job, free_port())
    wait_for(interrupted / "metrics.jsonl", running)
    for each in running:
        each.send_signal(stop)
    assert codes(running) == [EXIT_RESUME] * 2
    assert (interrupted / "work" / "stopped").exists()
    assert codes(nodes(job, free_port())) == [0, 0]
    assert trace(interrupted) == trace(full)


def test_after_losing_a_machine_all_end_and_resume_together(tiny, tiny_recipe, tmp_path):
    job = job_for(tiny, tiny_recipe, tmp_path, log_every=1, checkpoint_every=1)
    running = nodes(job, free_port())
    wait_for(tmp_path / "work" / "checkpoints" / "step-*", running)
    children = subprocess.run(["pgrep", "-P", str(running[1].pid)], capture_output=True, text=True).stdout.split()
    running[1].kill()
    for child in children:  # torchrun, in its own session
        os.killpg(int(child), signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/environ"):  # and its child processes
        with contextlib.suppress(OSError):
            if b"GROUP_RANK=1\0" in path.read_bytes() and str(job).encode() in (path.parent / "cmdline").read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
    first = codes(running)[0]
    assert first not in (0, EXIT_RESUME, WOULD_RECUR)
    assert codes(nodes(job, free_port())) == [0, 0]


def test_each_machine_measures_its_micro_batch(tiny, tiny_recipe, tmp_path):
    job = job_for(tiny, tiny_recipe, tmp_path, log_every=1)
    assert codes(nodes(job, free_port(), BERT_PIPELINE_PER_DEVICE_TOKENS="auto")) == [0, 0]
    for rank in (0, 1):
        assert "probe: micro-batches of" in (job.parent / f"node-{rank}.log").read_text()


def test_an_error_that_would_recur_has_its_own_exit_code(tiny, tiny_recipe, tmp_path):
    job = job_for(tiny, tiny_recipe, tmp_path, first_phase={"learning_rate": 1e30}, max_skipped_steps=0)
    assert WOULD_RECUR in codes(nodes(job, free_port()))
