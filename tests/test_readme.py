"""Run every command of the README and of docs/operate/stages.md.

.ci/run runs the others (`make demo`, `make test`, `make lint`, `make docs`).
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from commands import MAKE, ROOT, blocks, check_out, environment_of, run, smaller

from orchestration.local import servers

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)
STAGES = blocks((ROOT / "docs" / "operate" / "stages.md").read_text(encoding="utf-8"))
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def block(start: str) -> str:
    [found] = [text for text in BLOCKS + STAGES if text.startswith(start)]
    return found


@pytest.fixture(scope="module")
def working_copy(tmp_path_factory):
    """A copy of the checkout, shared by all commands, like a user's."""
    return check_out(tmp_path_factory.mktemp("checkout"))


def test_every_block_is_run_by_a_test_here_or_by_ci():
    commands = {line for text in BLOCKS for line in text.splitlines() if line.startswith("make ")}
    assert commands == {"make demo", "make ui", "make test", "make lint", "make docs"}
    assert {"make demo", "make test", "make lint", "make docs"} <= set(CI)  # `make ui` is run below
    assert (len(BLOCKS), len(STAGES)) == (3, 2)


def test_results_are_those_of_the_page_on_performance():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    scores = re.findall(r"\d\.\d{3} ± \d\.\d{3}", README)
    assert scores and scores == re.findall(r"\d\.\d{3} ± \d\.\d{3}", page)
    table = page.partition("\n## Data stages\n")[2].partition("\n## ")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| sentences to masked pairs")]
    pubmed, korean = (sorted(float(row[column].partition("=")[2]) for row in rows) for column in (3, 6))
    claims = (
        f"the data stages are {pubmed[0]:.0f} to {pubmed[-1]:.0f} times as fast as other tools on 25 MB of PubMed",
        f"{korean[0]} to {korean[-1]} times on 5 MB of Korean text",
    )
    assert len(rows) == 3 and all(claim in " ".join(README.split()) for claim in claims)


def test_stage_by_stage(working_copy):
    script = block(". .venv/bin/activate").partition("\n")[2]
    output = run(script, working_copy, **environment_of(working_copy))
    assert "asked_for" in output and "heldout_after" in output
    assert re.search(r"\bsample-chem +entity F1 ", output)


def test_dagsters_own_commands(working_copy):
    """`dg launch` of the whole graph, from the text to the registered model."""
    environment = environment_of(working_copy)
    run(block("dg check defs"), working_copy, **environment)
    with contextlib.closing(sqlite3.connect(working_copy / "workspace" / "mlflow.db")) as database:
        registered = database.execute("SELECT name, alias, version FROM registered_model_aliases").fetchall()
    assert ("bert-demo", "candidate", 1) in registered


@pytest.mark.slow
def test_a_project_of_ones_own(working_copy):
    """The commands of a project, with no variable set: the recipe that `init` writes, made smaller."""
    environment = {name: "" for name in os.environ if name.startswith("BERT_PIPELINE_")} | {"DAGSTER_HOME": ""}
    environment["PYTHONPATH"] = str(working_copy)
    init, *others = block("bert-pipeline init").splitlines(keepends=True)
    run(init, working_copy, **environment)
    recipe = working_copy / "notes" / "recipes" / "notes.toml"
    recipe.write_text(smaller(recipe.read_text(encoding="utf-8")).replace("vocab_size = 800", "vocab_size = 100"))
    output = run("".join(others), working_copy, **environment)
    assert re.search(r"^MLM loss +\d.* \(expected: \d.* to \d.*\)", output, re.MULTILINE)
    assert re.search(r"^bert-notes +1 +none +yes: there was no champion", output, re.MULTILINE)
    assert (working_copy / "notes" / "workspace" / "mlflow.db").exists()


def test_make_ui_serves_both_pages_on_loopback_and_stops(working_copy):
    for port in (3000, 5000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is in use")
    assert servers.HOST == "127.0.0.1"
    environment = os.environ | environment_of(working_copy)
    command = shlex.split(f"{MAKE} ui")
    process = subprocess.Popen(
        command,
        cwd=working_copy,
        env=environment,
        start_new_session=True,
        # A shell ignores SIGINT in its background jobs; restore the default in case this test is one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for url in ("http://127.0.0.1:3000/server_info", "http://127.0.0.1:5000/health"):
            wait_for(url, process)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(300)
    for url in ("http://127.0.0.1:3000/server_info", "http://127.0.0.1:5000/health"):
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(url, timeout=10)


def wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        assert process.poll() is None, "make ui exited"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.status == 200
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")
