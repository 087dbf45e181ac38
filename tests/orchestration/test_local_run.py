"""`bert-pipeline run` as a process: a stage that fails, and a signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import ROOT
from conftest import TINY
from processes import eventually


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    from bert_pipeline.project import create_project

    root = create_project(tmp_path / "my project")
    (root / "recipes" / "tiny.toml").write_text(TINY)
    (root / "recipes" / "broken.toml").write_text('corpus = { path = "nowhere" }\n')
    return root


def start(project: Path, *arguments: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BERT_PIPELINE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "bert_pipeline.cli", "run", *arguments],
        cwd=project,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(project: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        home = (process.info["environ"] or {}).get("BERT_PIPELINE_HOME", "")
        found += [process.pid] if home == str(project / "workspace") else []
    return found


@pytest.mark.slow
def test_a_project_with_two_recipes_needs_a_name(project):
    process = start(project)
    assert process.communicate()[1].endswith("this project has 2 recipes; remedy: name one of broken, tiny\n")
    assert process.returncode == 1 and processes_of(project) == []


@pytest.mark.slow
def test_a_failed_stage_is_one_reason_and_a_log(project):
    process = start(project, "broken")
    lines = process.communicate()[1].splitlines()
    assert process.returncode == 1 and lines[0].startswith("raw_corpus: failed in ")
    assert lines[1].startswith("bert-pipeline run: SourceError: ") and "nowhere" in lines[1]
    log = Path(lines[-1].partition("log of the run: ")[2])
    assert log.parent == project / "workspace" / "logs" and "Stack Trace:" in log.read_text()


@pytest.mark.slow
def test_a_signal_ends_the_run_and_all_of_its_processes(project):
    process = start(project, "tiny")
    assert process.stderr and process.stderr.readline().startswith("raw_corpus: done in ")
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    rest = process.stderr.read()
    assert "stopping; a training saves a checkpoint first" in rest
    assert process.wait() == 1 and "bert-pipeline run: stopped; remedy: run again, and it resumes (log: " in rest
    eventually(lambda: not processes_of(project))
    print(f"stopped within {time.monotonic() - begun:.1f} s")
