"""The Makefile in a clone whose path has blanks: the home that it prepares, and `make ui` with all of its processes."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import MAKE, ROOT, check_out
from servers import Servers, answers, ask, changed, free_port


def make(folder: Path, *arguments: str, **environment: str) -> str:
    command = [*MAKE.split(), *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path):
    """The Makefile and what it reads."""
    folder = tmp_path / "a clone of mine"
    shutil.copytree(ROOT / "infra" / "dagster", folder / "infra" / "dagster")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.parametrize(
    ("given", "home"),
    [(None, "workspace"), ("other home", "other home"), ("../my home", "../my home"), ("/", None)],
)
def test_the_home_is_where_the_programs_look_for_it(clone, tmp_path, given, home):
    home = clone / home if home else tmp_path / "an absolute home"
    environment = {"BERT_PIPELINE_HOME": str(home) if given == "/" else given} if given else {}
    if not given:
        environment = {"BERT_PIPELINE_HOME": ""}
    make(clone, *([] if given else ["BERT_PIPELINE_HOME=workspace"]), "home", **environment)
    assert (home / "dagster" / "dagster.yaml").read_bytes() == (ROOT / "infra/dagster/dagster.yaml").read_bytes()
    assert [path.name for path in (home / "dagster").iterdir()] == ["dagster.yaml"]


def test_a_changed_instance_file_is_kept_until_the_clone_has_a_newer_one(clone):
    make(clone, "home", "BERT_PIPELINE_HOME=h")
    file, ours = clone / "h" / "dagster" / "dagster.yaml", clone / "infra" / "dagster" / "dagster.yaml"
    file.write_text("# mine\n")
    make(clone, "home", "BERT_PIPELINE_HOME=h")
    assert file.read_text() == "# mine\n"
    newer = file.stat().st_mtime + 10
    os.utime(ours, (newer, newer))
    make(clone, "home", "BERT_PIPELINE_HOME=h")
    assert file.read_bytes() == ours.read_bytes()


def test_a_recipe_passes_the_paths_whole(clone):
    """`make run` with programs that print what they are given."""
    programs = clone / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("dg", "python"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$BERT_PIPELINE_HOME|$DAGSTER_HOME|$VIRTUAL_ENV|$#"\n')
        (programs / name).chmod(0o755)
    out = make(clone, "run", "RECIPE=mine", "BERT_PIPELINE_HOME=my home").splitlines()
    seen = f"{clone}/my home|{clone}/my home/dagster|{clone}/.venv"
    assert [line for line in out if "|" in line] == [f"dg {seen}|7", f"python {seen}|3"]


def processes_with(variable: str) -> list[int]:
    """The processes that have this in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def test_make_ui_ends_all_of_its_processes(tmp_path):
    """SIGTERM to make alone, as systemd or a script sends it. MLflow's and Dagster's telemetry is off."""
    (tmp_path / "two words").mkdir()
    copy = check_out(tmp_path / "two words")
    dagster, mlflow = free_port(), free_port()
    ports = {"--port 3000": f"--port {dagster}", "--port 5000": f"--port {mlflow}"}
    (copy / "Makefile").write_text(changed((copy / "Makefile").read_text(), **ports))
    home = copy / "workspace"
    environment = {"BERT_PIPELINE_HOME": str(home), "PYTHONPATH": str(copy)}
    servers = Servers(tmp_path)
    try:
        command = ["env", "-u", "PYTEST_CURRENT_TEST", *MAKE.split(), "-C", str(copy), "ui"]
        process = servers.start("ui", command, **environment)
        servers.wait("ui", answers(dagster, "/server_info"), 240)
        servers.wait("ui", answers(mlflow, "/health"), 240)
        assert json.loads(ask(mlflow, "GET", "/ajax-api/3.0/mlflow/ui-telemetry")[1])["disable_ui_telemetry"] is True
        assert (home / "mlflow.db").is_file() and (home / "dagster" / "schedules" / "schedules.db").is_file()
        running = processes_with(f"BERT_PIPELINE_HOME={home}")
        assert len(running) > 6, "make, sh, mlflow, dg, web server, daemon, code server"
        os.kill(process.pid, signal.SIGTERM)
        process.wait(60)  # it waits for its children
        deadline = time.monotonic() + 10
        while processes_with(f"BERT_PIPELINE_HOME={home}") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert processes_with(f"BERT_PIPELINE_HOME={home}") == []
    finally:
        servers.stop()
        for number in processes_with(f"BERT_PIPELINE_HOME={home}"):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
