"""Folders that cannot be written: where numba keeps what it compiles."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CODE = """
from bert_pipeline.data.tokenizer import merges
import numba, os
print(os.environ.get("NUMBA_CACHE_DIR", ""))
"""


@pytest.fixture
def code(tmp_path):
    """A copy of the package whose compiled functions cannot be kept beside it: each `__pycache__` is a file."""
    shutil.copytree(
        ROOT / "bert_pipeline", tmp_path / "code" / "bert_pipeline", ignore=shutil.ignore_patterns("__pyc*")
    )
    for folder in (tmp_path / "code").rglob("*"):
        if folder.is_dir():
            (folder / "__pycache__").write_text("")
    return tmp_path / "code"


def cache_of(code: Path, home: Path, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    known |= {"PYTHONPATH": str(code), "HOME": "/dev/null", "BERT_PIPELINE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=home.parent, env=known | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_cache_is_below_the_home_where_no_other_folder_is_writable(code, tmp_path):
    home = tmp_path / "home"
    assert cache_of(code, home) == str(home / "numba")
    assert [path.name.partition("_")[0] for path in (home / "numba").iterdir()] == ["tokenizer"]


def test_a_folder_that_works_is_used(code, tmp_path):
    home = tmp_path / "home"
    assert cache_of(ROOT, home) == ""
    assert cache_of(code, home, XDG_CACHE_HOME=str(tmp_path / "cache")) == ""
    assert cache_of(code, home, NUMBA_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert not home.exists() and (tmp_path / "cache" / "numba").is_dir() and (tmp_path / "mine").is_dir()
