"""The graph on one machine: the home that is prepared once, the display of a run, and the servers of the pages."""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import ROOT
from processes import eventually

from orchestration.local import pages, servers
from orchestration.local.display import BARS, Lines, Stages, sparkline
from orchestration.local.home import INSTANCE, environment, prepare


def written(home: Path) -> str:
    return (home / "dagster" / "dagster.yaml").read_text()


def test_infra_has_the_same_instance_file():
    assert (ROOT / "infra" / "dagster" / "dagster.yaml").resolve() == INSTANCE


def test_a_home_is_prepared_once(tmp_path):
    home = tmp_path / "a home"
    assert prepare(home) == home / "dagster"
    assert yaml.safe_load(written(home)) == yaml.safe_load(INSTANCE.read_text())
    before = (home / "dagster" / "dagster.yaml").stat()
    prepare(home)
    assert (home / "dagster" / "dagster.yaml").stat() == before


def test_an_edited_instance_file_is_kept_and_another_one_is_renewed(tmp_path, monkeypatch):
    prepare(tmp_path)
    newer = tmp_path / "newer.yaml"
    newer.write_text(INSTANCE.read_text() + "# newer\n")
    monkeypatch.setattr("orchestration.local.home.INSTANCE", newer)
    prepare(tmp_path)
    assert written(tmp_path).endswith("# newer\n")
    edited = written(tmp_path).replace("max_concurrent_runs: 2", "max_concurrent_runs: 5")
    (tmp_path / "dagster" / "dagster.yaml").write_text(edited)
    newer.write_text(INSTANCE.read_text())
    prepare(tmp_path)
    assert written(tmp_path) == edited


def test_many_processes_prepare_one_home(tmp_path):
    code = "import sys, time; from orchestration.local.home import prepare; from pathlib import Path\n"
    code += "time.sleep(max(0, float(sys.argv[2]) - time.time())); prepare(Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "home"), str(time.time() + 2)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    assert [(process.communicate()[1], process.returncode) for process in started] == [("", 0)] * 4
    assert yaml.safe_load(written(tmp_path / "home")) == yaml.safe_load(INSTANCE.read_text())


def test_what_the_user_set_wins_over_defaults_only(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "/elsewhere")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("BERT_PIPELINE_MLFLOW_URL", "http://mine")
    found = environment(
        tmp_path, {"BERT_PIPELINE_MLFLOW_URL": "http://default", "BERT_PIPELINE_DAGSTER_URL": "http://d"}
    )
    assert found["DAGSTER_HOME"] == str(tmp_path / "dagster") and found["BERT_PIPELINE_HOME"] == str(tmp_path)
    assert found["MALLOC_TOP_PAD_"] == "1" and found["MALLOC_MMAP_MAX_"] == "0"
    assert found["BERT_PIPELINE_MLFLOW_URL"] == "http://mine" and found["BERT_PIPELINE_DAGSTER_URL"] == "http://d"
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def row(
    step: str | None, message: str, seconds: float = 0.0, event: str | None = None, level: int = logging.INFO
) -> dict:
    return {"time": seconds, "step": step, "level": level, "event": event, "message": message}


ROWS = [
    row(None, "Started execution of run", event="RUN_START"),
    row("tokenizer", "Started", 1.0, "STEP_START", logging.DEBUG),
    row("tokenizer", "tokenizer: merging pairs: 5/10 pieces  2.0 pieces/s  ETA 0:00:02", 2.0),
    row("tokenizer", "Finished", 3.5, "STEP_SUCCESS", logging.DEBUG),
    row("pretrained_checkpoint", "Started", 4.0, "STEP_START", logging.DEBUG),
    row("pretrained_checkpoint", "pretrain: step 0/20  held-out: mlm_loss 6.7331", 5.0),
    row("pretrained_checkpoint", "pretrain: step 10/20  loss 6.5000  lr 1.00e-03  9 tokens/s  ETA 0:00:02", 6.0),
    row("pretrained_checkpoint", "pretrain: step 20/20  loss 4.0000  lr 0.00e+00  9 tokens/s  ETA 0:00:00", 7.0),
    row("pretrained_checkpoint", "a check\nwarns\x1b[2J", 7.0, level=logging.WARNING),
    row("pretrained_checkpoint", "ValueError: no", 70.0, "STEP_FAILURE", logging.ERROR),
]


def test_the_stages_follow_from_the_rows():
    stages = Stages()
    ended = [stage.name for each in ROWS if (stage := stages.add(each))]
    assert ended == ["tokenizer", "pretrained_checkpoint"] and list(stages.all) == ended
    assert stages.all["tokenizer"].seconds == 2.5 and stages.losses == [6.5, 4.0]
    assert [stage.failed for stage in stages.all.values()] == [False, True]


def test_few_lines_where_the_output_is_no_terminal(capsys):
    Lines()(ROWS)
    assert capsys.readouterr().err.splitlines() == [
        "tokenizer: done in 2.5 s",
        "pretrain: step 0/20  held-out: mlm_loss 6.7331",
        "a check",
        "  warns\\x1b[2J",
        "pretrained_checkpoint: failed in 0:01:06",
    ]


def test_a_long_stage_gets_a_line_each_minute_where_the_output_is_no_terminal(capsys):
    lines = Lines()
    for n in range(40):
        lines([row("evaluation", f"fine-tuning: {n}/40 steps", 1000.0 + 7 * n)])
    assert re.findall(r"(\d+)/40", capsys.readouterr().err) == ["9", "18", "27", "36"]


def test_a_terminal_shows_the_running_stage_and_the_loss(monkeypatch, capsys):
    from orchestration.local.display import Live

    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with Live() as live:
        live(ROWS[:-2])
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "✓ tokenizer" in shown and "▸ pretrained_checkpoint" in shown and "█▁  6.50 → 4.00" in shown
    assert "step 20/20" in shown and "merging pairs" not in shown


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [([3.0], 5, "▁"), ([2.0, 2.0], 5, "▁▁"), ([8.0, 4.0, 1.0], 5, "█▄▁"), ([9.0, 7.0, 1.0, 1.0], 2, "█▁")],
)
def test_sparklines(values, width, expected):
    assert sparkline(values, width) == expected
    assert len(sparkline(list(range(1000)))) == 48 and sparkline(list(range(8))) == BARS


def test_a_port_in_use_is_reported_before_anything_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(servers.ServerFailed, match=rf"port {port} for Dagster cannot be used .*--dagster-port"):
            pages.serve_pages(tmp_path, port, port, lambda name, address: None)
    assert not (tmp_path / "mlflow.db").exists()


def server(folder: Path, script: str) -> servers.Server:
    started = servers.Server("Any", ["bash", "-c", script], 1, "/", folder / "any.log", "--port")
    started.start(folder, dict(os.environ))
    return started


def test_a_server_that_ends_names_its_log(tmp_path):
    ended = server(tmp_path, "exit 3")
    eventually(lambda: not ended.is_running())
    with pytest.raises(servers.ServerFailed, match=r"Any ended with exit code 3; its log: .*any\.log"):
        ended.assert_it_runs()


def test_a_second_signal_kills_what_ignores_the_first(tmp_path):
    """Children of the server, too."""
    stubborn = server(tmp_path, "trap '' TERM; sleep 300 & echo ready; wait")
    eventually(lambda: stubborn.log.read_text() == "ready\n")
    servers._end([stubborn], [signal.SIGTERM, signal.SIGTERM])
    assert not stubborn.is_running()
