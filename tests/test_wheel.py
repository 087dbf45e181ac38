"""A release: `make dist` builds it, and its wheel trains, evaluates and serves without the repository."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import MAKE, ROOT
from conftest import TINY
from servers import Servers, answers, free_port

PACKAGES = ("bert_pipeline", "orchestration")
BESIDE = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
SET_BY_USERS = ("BERT_PIPELINE_", "DAGSTER_", "MLFLOW_", "PYTHONPATH")


class Release(NamedTuple):
    """What `make dist` built, and the commit that it was built from."""

    source: Path
    wheel: Path
    commit: str


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    """Of a tagged commit in a repository of its own, so that the build leaves nothing in this one."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (*BESIDE, "Makefile", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    (folder / "tests" / "test_something.py").touch()
    for command in (
        *("init -q", "add .", "-c user.name=x -c user.email=x@y commit -q -m first"),
        "-c user.name=x -c user.email=x@y tag --annotate --message release v1",
    ):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    (folder / ".venv").symlink_to(sys.prefix)
    run([*MAKE.split(), "dist"], folder, os.environ)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=folder, text=True)[:12]
    [source, wheel] = sorted((folder / "dist").iterdir(), key=lambda path: path.suffix == ".whl")
    return Release(source, wheel, commit)


@pytest.fixture(scope="module")
def environment(release, tmp_path_factory) -> Path:
    """A virtual environment with the wheel; the packages that it requires are those of this one, by a .pth file."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder, os.environ)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    run([*pip, "install", "--no-deps", "--no-compile", str(release.wheel)], folder, os.environ)
    return folder


def variables() -> dict[str, str]:
    """None that a user would have to set."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SET_BY_USERS)}


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Return the output. `PWD` is set as a shell sets it."""
    done = subprocess.run(command, cwd=folder, env={**environment, "PWD": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_has_the_files_of_the_packages_and_the_commit(release):
    """It was built from the source distribution, which therefore has them as well."""
    files = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"bert_pipeline/recipes/demo.toml", "bert_pipeline/training/launch/accelerate/cpu.yaml"} <= files.keys()
    wheel = zipfile.ZipFile(release.wheel)
    packed = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files | {"bert_pipeline/COMMIT": f"{release.commit}\n".encode()}


def test_the_source_distribution_has_what_a_build_needs(release):
    with tarfile.open(release.source) as archive:
        names = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert names == {*BESIDE, *PACKAGES, "PKG-INFO", "setup.cfg", "bert_pipeline.egg-info"}


def test_changelog_and_images_have_the_version():
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert dated[0] == VERSION
    for path in (path for path in (ROOT / "infra").rglob("*") if path.is_file()):
        tags = re.findall(r"(?:bert-pipeline:|^VERSION=|^ +tag: )(\d+\.\d+\.\d+)", path.read_text(), re.M)
        assert set(tags) <= {VERSION}, path


def test_the_installed_command_writes_a_project_and_reads_its_text(release, environment, tmp_path):
    """In any folder, with no variable set; the graph loads, too."""
    sentences = "Aspirin relieved pain in group {}. It was well tolerated by {} patients. Atenolol lowered the rate."
    (tmp_path / "text.txt").write_text("\n\n".join(sentences.format(n, n % 9) for n in range(200)))
    program, project = str(environment / "bin" / "bert-pipeline"), tmp_path / "notes"
    assert run([program, "--version"], tmp_path, variables()) == f"bert-pipeline {VERSION}, commit {release.commit}\n"
    run([program, "init", "notes", "--text", "text.txt", "--hardware", "L4"], tmp_path, variables())
    run([program, "raw-corpus", "--recipe", "notes", "--out", "corpus"], project, variables())
    assert json.loads((project / "corpus" / "record.json").read_text())["made"]["commit"] == release.commit
    load = "import orchestration.definitions as graph; print(graph.__file__)"
    assert str(environment) in run([str(environment / "bin" / "python"), "-c", load], project, variables())


@pytest.mark.slow
def test_each_stage_runs_from_the_wheel(release, environment, tmp_path):
    """In a folder without the repository: the graph's stages, from the text to a score."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(TINY)
    recipes = {"BERT_PIPELINE_RECIPES": str(tmp_path / "recipes")}

    def command(*arguments: str) -> str:
        return run([str(environment / "bin" / "bert-pipeline"), *arguments], tmp_path, variables() | recipes)

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
        command(stage, "--recipe", "tiny", *given, "--out", inputs[stage])
    evaluation = ("--task", "sample-chem", "--max-seq-length", "64", "--num-epochs", "1", "--seeds", "1")
    made = json.loads((tmp_path / "pretrain" / "record.json").read_text())["made"]
    assert (made["commit"], made["version"]) == (release.commit, VERSION) and len(made["wheel"]) == 64
    out = command("evaluate", "--model", inputs["pretrain"], *evaluation, "--out", str(tmp_path / "evaluation"))
    assert "entity F1" in out and "this model" in out


@pytest.mark.slow
def test_a_project_from_the_wheel(environment, tmp_path):
    """From `init` to the pages, in an empty folder with a blank in its path, with no variable set. Then the project is
    moved: its commands, and Dagster's own, find everything at the new place.
    """
    python, given = str(environment / "bin" / "python"), variables() | {"PATH": "/usr/bin:/bin"}

    def module(folder: Path, *arguments: str) -> str:
        return run([python, "-m", *arguments], folder, given)

    cli, dg, dagster = "bert_pipeline.cli", "dagster_dg_cli.cli.entrypoint", "dagster"
    folder = tmp_path / "two words"
    folder.mkdir()
    module(folder, cli, "init", "notes")
    project = folder / "notes"
    task = '\n[[evaluation.tasks]]\nname = "sample-chem"\nmax_seq_length = 64\nnum_epochs = 1\nseeds = [1]\n'
    (project / "recipes" / "tiny.toml").write_text(TINY + task)
    first = module(project / "recipes", cli, "run")
    assert "pretrained_checkpoint: done in" in first and "yes: there was no champion" in first
    assert f"{project}/workspace/artifacts/tokenizer" in first

    moved = Path(shutil.move(project, tmp_path / "moved here"))
    assert "yes: there was no champion" in module(moved, cli, "run")
    assert "built by this run: nothing" in sorted((moved / "workspace" / "logs").iterdir())[-1].read_text()
    module(moved, dg, "check", "defs")
    module(moved, dg, "launch", "--assets", "raw_corpus", "--partition", "tiny")
    assert "orchestration.launcher" in module(moved, dagster, "instance", "info")
    assert sorted(path.name for path in moved.iterdir() if path.name.startswith(".")) == [".env", ".gitignore"]

    ports, servers = (free_port(), free_port()), Servers(tmp_path)
    try:
        command = [python, "-m", cli, "ui", "--dagster-port", str(ports[0]), "--mlflow-port", str(ports[1])]
        servers.folder = moved
        process = servers.start("ui", command, **given, PYTHONPATH="")
        servers.wait("ui", answers(ports[0], "/server_info"))
        servers.wait("ui", answers(ports[1], "/health"))
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert not answers(ports[0])() and not answers(ports[1])()
    finally:
        servers.stop()
