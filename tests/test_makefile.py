"""The Makefile in a clone whose path has blanks: installation, the commands it calls, the processes of `make ui`."""

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


@pytest.fixture
def clone(tmp_path):
    """The Makefile and what it reads, and programs that print what they are given."""
    folder = tmp_path / "a clone of mine"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("bert-pipeline", "python"):
        write_program(programs / name, f'echo {name} "$BERT_PIPELINE_HOME|$VIRTUAL_ENV|$*"')
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
"""Set by `make test`; a make below another one prints the folders that it enters."""


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [*MAKE.split(), *arguments]
    own = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return subprocess.run(command, cwd=folder, env=own | environment, capture_output=True, text=True)


def output_of(folder: Path, *arguments: str, **environment: str) -> str:
    done = make(folder, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("given", "home"),
    [(None, "workspace"), ("other home", "other home"), ("../my home", "../my home"), ("/", None)],
)
@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["demo"], "bert-pipeline {}run demo"),
        (["run", "RECIPE=mine"], "bert-pipeline {}run mine"),
        (["ui"], "bert-pipeline {}ui"),
        (["home"], "python {}-m orchestration.local.home"),
    ],
)
def test_commands_get_the_paths_whole(clone, tmp_path, given, home, arguments, called):
    path = f"{clone}/{home}" if home else f"{tmp_path}/an absolute home"
    environment = {"BERT_PIPELINE_HOME": path if given == "/" else given or ""}
    more = [] if given else ["BERT_PIPELINE_HOME=workspace"]
    assert output_of(clone, *more, *arguments, **environment) == called.format(f"{path}|{clone}/.venv|")


INSTALL = ["-W", "pyproject.toml", ".venv/installed-test"]


def test_installation_is_one_line_and_a_log(clone):
    done = make(clone, *INSTALL, PATH="/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "Installing into .venv (log: .venv/install.log)\n"
    log = (clone / ".venv" / "install.log").read_text()
    assert log.endswith("|-m pip install --no-compile -c constraints.txt -e .[test]\n")
    assert (clone / ".venv" / "installed-test").exists()


@pytest.mark.parametrize("works", [True, False])
def test_uv_installs_where_it_is_and_works(clone, tmp_path, works):
    """uv ignores the settings of pip, such as another package index, and may not reach PyTorch's."""
    write_program(tmp_path / "uv", f'echo "uv $*"; exit {0 if works else 1}')
    assert make(clone, *INSTALL, PATH=f"{tmp_path}:/usr/bin:/bin").returncode == 0
    log = (clone / ".venv" / "install.log").read_text()
    assert "uv pip install --torch-backend auto --python .venv/bin/python -c constraints.txt -e .[test]\n" in log
    assert ("|-m pip install" in log) is not works


def test_a_failed_installation_shows_the_end_of_its_log(clone):
    write_program(clone / ".venv" / "bin" / "python", "seq 100; echo no such package; exit 1")
    done = make(clone, *INSTALL, PATH="/usr/bin:/bin")
    assert done.returncode and "no such package" in done.stderr and "\n1\n" not in done.stderr
    assert not (clone / ".venv" / "installed-test").exists()


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
    ports = f"bert-pipeline ui --dagster-port {dagster} --mlflow-port {mlflow}"
    (copy / "Makefile").write_text(changed((copy / "Makefile").read_text(), **{"bert-pipeline ui\n": f"{ports}\n"}))
    home = copy / "workspace"
    environment = {"BERT_PIPELINE_HOME": str(home), "PYTHONPATH": str(copy)}
    servers = Servers(tmp_path)
    try:
        command = ["env", "-u", "PYTEST_CURRENT_TEST", *MAKE.split(), "-C", str(copy), "ui"]
        process = servers.start("ui", command, **environment)
        addresses = {f"Dagster: http://127.0.0.1:{dagster}", f"MLflow: http://127.0.0.1:{mlflow}"}
        servers.wait("ui", lambda: addresses <= set((tmp_path / "ui.log").read_text().splitlines()), 240)
        assert answers(dagster, "/server_info")() and answers(mlflow, "/health")()
        assert json.loads(ask(mlflow, "GET", "/ajax-api/3.0/mlflow/ui-telemetry")[1])["disable_ui_telemetry"] is True
        assert (home / "mlflow.db").is_file() and (home / "dagster" / "schedules" / "schedules.db").is_file()
        running = processes_with(f"BERT_PIPELINE_HOME={home}")
        assert len(running) > 6, "make, bert-pipeline, mlflow, dg, web server, daemon, code server"
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
