"""Training and evaluation on a machine that has torch and transformers, but no orchestrator, tracker or `datasets`."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from training.runs import ROOT, job_for

ABSENT = ("dagster", "mlflow", "datasets")


@pytest.fixture(scope="module")
def bare_packages(tmp_path_factory) -> Path:
    """The installed packages except ABSENT; `python -S` sees nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(ABSENT) and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def run_bare(packages: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(packages), "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(
        [sys.executable, "-S", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


TRAIN_AND_LOAD_EVALUATION = """
import runpy
runpy.run_module("bert_pipeline.training.pretrain", run_name="__main__")
import bert_pipeline.evaluation.finetuning.finetune, bert_pipeline.evaluation.evaluate
"""


def test_training_needs_no_orchestrator(bare_packages, tiny, tiny_recipe, tmp_path):
    missing = f"import importlib.util; print([importlib.util.find_spec(name) for name in {ABSENT}])"
    assert run_bare(bare_packages, "-c", missing).strip() == "[None, None, None]", "the test would prove nothing"
    job = job_for(tiny, tiny_recipe, tmp_path, first_phase={"num_steps": 2})
    run_bare(bare_packages, "-c", TRAIN_AND_LOAD_EVALUATION, str(job))
    assert (tmp_path / "model.safetensors").exists()
