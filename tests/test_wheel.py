"""The wheel: it holds every file of both packages, and trains and evaluates without the repository."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import ROOT
from conftest import TINY
from servers import Servers, answers, free_port

PACKAGES = ("bert_pipeline", "orchestration")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_sources(folder)
    pip(folder, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder))
    [path] = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip(folder, "install", "--no-deps", "--no-compile", "--target", str(folder), str(wheel))
    return folder


def copy_sources(folder: Path) -> None:
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"bert_pipeline/recipes/demo.toml", "bert_pipeline/training/launch/accelerate/cpu.yaml"} <= files
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files


def test_a_wheel_from_the_source_distribution_has_the_commit(tmp_path):
    copy_sources(tmp_path)
    for command in ("init -q", "add .", "-c user.name=x -c user.email=x@y commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True)[:12]
    build = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    [source] = (tmp_path / "dist").glob("*.tar.gz")
    pip(tmp_path, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", str(source))
    [path] = (tmp_path / "wheels").glob("*.whl")
    assert zipfile.ZipFile(path).read("bert_pipeline/COMMIT").decode().strip() == commit


@pytest.mark.slow
def test_each_stage_runs_from_the_wheel(installed, tmp_path):
    """In a folder without the repository: the graph's stages, from the text to a score."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(TINY)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BERT_PIPELINE_")}
    environment |= {"PYTHONPATH": str(installed), "BERT_PIPELINE_RECIPES": str(tmp_path / "recipes")}

    def run(*arguments: str) -> str:
        code = "import sys, bert_pipeline.cli as cli; print(cli.__file__, file=sys.stderr); cli.main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr.startswith(str(installed))
        return done.stdout

    inputs: dict[str, str] = {}
    for stage, needs in {
        "raw-corpus": (),
        "tokenizer": ("raw-corpus",),
        "nsp-dataset": ("raw-corpus", "tokenizer"),
        "masked-dataset": ("tokenizer", "nsp-dataset"),
        "pretrain": ("tokenizer", "nsp-dataset", "masked-dataset"),
    }.items():
        given = [part for name in needs for part in (f"--{name}", inputs[name])]
        inputs[stage] = str(tmp_path / stage)
        run(stage, "--recipe", "tiny", *given, "--out", inputs[stage])
    evaluation = ("--task", "sample-chem", "--max-seq-length", "64", "--num-epochs", "1", "--seeds", "1")
    made = json.loads((tmp_path / "pretrain" / "record.json").read_text())["made"]
    assert made["commit"] is None and made["version"] == "0.1.0" and len(made["wheel"]) == 64
    out = run("evaluate", "--model", inputs["pretrain"], *evaluation, "--out", str(tmp_path / "evaluation"))
    assert "entity F1" in out and "this model" in out


@pytest.mark.slow
def test_a_project_from_the_wheel(installed, tmp_path):
    """From `init` to the pages, in an empty folder with a blank in its path, with no variable set. Then the project is
    moved: its commands, and Dagster's own, find everything at the new place.
    """
    removed = ("BERT_PIPELINE_", "DAGSTER_", "MLFLOW_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    environment |= {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}

    def run(folder: Path, *command: str) -> str:
        folder_variable = {"PWD": str(folder)}  # as a shell sets it
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment | folder_variable,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    cli, dg, dagster = "bert_pipeline.cli", "dagster_dg_cli.cli.entrypoint", "dagster"
    folder = tmp_path / "two words"
    folder.mkdir()
    run(folder, cli, "init", "notes")
    project = folder / "notes"
    task = '\n[[evaluation.tasks]]\nname = "sample-chem"\nmax_seq_length = 64\nnum_epochs = 1\nseeds = [1]\n'
    (project / "recipes" / "tiny.toml").write_text(TINY + task)
    first = run(project / "recipes", cli, "run")
    assert "pretrained_checkpoint: done in" in first and "yes: there was no champion" in first
    assert f"{project}/workspace/artifacts/tokenizer" in first

    moved = Path(shutil.move(project, tmp_path / "moved here"))
    assert "yes: there was no champion" in run(moved, cli, "run")
    assert "built by this run: nothing" in sorted((moved / "workspace" / "logs").iterdir())[-1].read_text()
    run(moved, dg, "check", "defs")
    run(moved, dg, "launch", "--assets", "raw_corpus", "--partition", "tiny")
    assert "orchestration.launcher" in run(moved, dagster, "instance", "info")
    assert sorted(path.name for path in moved.iterdir() if path.name.startswith(".")) == [".env", ".gitignore"]

    ports, servers = (free_port(), free_port()), Servers(tmp_path)
    try:
        command = [sys.executable, "-m", cli, "ui", "--dagster-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        servers.folder = moved
        process = servers.start("ui", command, **environment)
        servers.wait("ui", answers(ports[0], "/server_info"))
        servers.wait("ui", answers(ports[1], "/health"))
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert not answers(ports[0])() and not answers(ports[1])()
    finally:
        servers.stop()
