"""The recorded code is this project's, never that of another repository around the package."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from bert_pipeline.store import artifact, provenance
from bert_pipeline.store.provenance import code_of

ROOT = Path(__file__).parents[2]
OURS = '[project]\nname = "bert-pipeline"\n'
RECORD = """\
bert_pipeline/__init__.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0
bert_pipeline-0.1.0.dist-info/METADATA,sha256=abc,10
bert_pipeline-0.1.0.dist-info/RECORD,,
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder: Path, pyproject: str, package: str = "bert_pipeline") -> Path:
    """A repository that tracks a package of this name."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(pyproject)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder / package


def wheel_in(folder: Path, record: str = RECORD) -> Path:
    """Site-packages with the installed wheel."""
    package, info = folder / "bert_pipeline", folder / "bert_pipeline-0.1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: bert-pipeline\nVersion: 0.1.0\n")
    (info / "top_level.txt").write_text("bert_pipeline\norchestration\n")
    (info / "RECORD").write_text(record)
    return package


def test_a_clone_records_its_commit_and_whether_it_is_changed(tmp_path, monkeypatch):
    package = repository(tmp_path / "clone", OURS)
    commit = git(package, "rev-parse", "HEAD")[:12]
    assert code_of(package) == {"commit": commit, "version": None, "wheel": None}
    repository(tmp_path / "other", OURS)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as in a hook
    assert code_of(package)["commit"] == commit
    (package / "__init__.py").write_text("changed = True\n")
    assert code_of(package)["commit"] == f"{commit}-dirty"


def test_a_tagged_commit_and_a_worktree_record_their_own_commit(tmp_path):
    package = repository(tmp_path / "clone", OURS)
    git(package, "tag", "--annotate", "--message", "a release", "v1.0.0")
    git(package, "worktree", "add", "-q", str(tmp_path / "second"))
    git(tmp_path / "second", "commit", "-q", "--allow-empty", "-m", "second")
    assert code_of(package)["commit"] == git(package, "rev-parse", "HEAD")[:12]
    assert code_of(tmp_path / "second" / package.name)["commit"] == git(tmp_path / "second", "rev-parse", "HEAD")[:12]


@pytest.mark.parametrize("pyproject", ['[project]\nname = "other"\n', "[tool.x]\n", "no TOML", "project = 1\n"])
def test_another_project_that_tracks_a_copy_is_not_recorded(tmp_path, pyproject):
    assert code_of(repository(tmp_path, pyproject)) == {"commit": None, "version": None, "wheel": None}


def test_a_copy_below_another_clone_of_this_project_is_not_recorded(tmp_path):
    repository(tmp_path, OURS)
    copy = wheel_in(tmp_path / ".venv" / "site-packages")
    assert code_of(copy)["commit"] is None and code_of(copy)["version"] == "0.1.0"
    (tmp_path / "pyproject.toml").rename(tmp_path / ".venv" / "site-packages" / "pyproject.toml")
    assert code_of(copy)["commit"] is None
    untracked = tmp_path / "orchestration"
    untracked.mkdir()
    shutil.copy(tmp_path / ".venv" / "site-packages" / "pyproject.toml", tmp_path)
    assert code_of(untracked)["commit"] is None, "the repository does not track it"


def test_a_wheel_records_the_commit_that_it_was_built_from(tmp_path):
    package = wheel_in(tmp_path)
    (package / "COMMIT").write_text("0123456789ab\n")
    assert code_of(package)["commit"] == "0123456789ab" and code_of(package)["wheel"]


def test_the_digest_of_a_wheel_does_not_depend_on_what_pip_adds(tmp_path):
    added = RECORD + (
        "../../bin/bert-pipeline,sha256=def,200\n"
        "bert_pipeline/__pycache__/__init__.cpython-311.pyc,,\n"
        "bert_pipeline-0.1.0.dist-info/direct_url.json,sha256=ghi,90\n"
    )
    first, second = wheel_in(tmp_path / "a"), wheel_in(tmp_path / "b", added)
    other = wheel_in(tmp_path / "c", RECORD.replace("47DEQpj8", "57DEQpj8"))
    digests = [code_of(package)["wheel"] for package in (first, second, other)]
    assert digests[0] == digests[1] != digests[2] and len(digests[0] or "") == 64
    assert provenance._wheel_digest(PathDistribution(tmp_path)) is None


def test_the_package_in_a_foreign_repository_records_no_commit(tmp_path):
    """A real copy, run in a process of its own: the record of an artifact that it builds."""
    repository(tmp_path / "foreign", '[project]\nname = "foreign"\n', package="foreign")
    copied = tmp_path / "foreign" / "bert_pipeline"
    shutil.copytree(ROOT / "bert_pipeline", copied, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path / "foreign", "add", "-A")
    git(tmp_path / "foreign", "commit", "-q", "-m", "vendored")
    code = (
        "import pathlib; from bert_pipeline.store import artifact\n"
        "origin = artifact.origin('thing', {}, {}, '1')\n"
        f"artifact.make(pathlib.Path({str(tmp_path / 'made')!r}), origin, lambda path: {{}})"
    )
    environment = os.environ | {"PYTHONPATH": str(copied.parent)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    made = artifact.load(tmp_path / "made").record["made"]
    assert (made["commit"], made["version"], made["wheel"]) == (None, None, None)
    assert json.loads((tmp_path / "made" / "record.json").read_text())["check"]
