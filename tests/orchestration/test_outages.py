"""MLflow fails during tracking: a real server behind a proxy that refuses, hangs or answers 503."""

import random
import time
from pathlib import Path

import pytest
from outage import Outage
from servers import Servers

from orchestration.tracking import mlflow_runs
from orchestration.tracking.mlflow_runs import About, Mlflow
from orchestration.tracking.outstanding import deliver_all

pytestmark = pytest.mark.slow

ROWS = 400


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of MLflow's server."""
    folder = tmp_path_factory.mktemp("mlflow")
    running = Servers(folder)
    try:
        yield running.start_mlflow(f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a"))
    finally:
        running.stop()


@pytest.fixture
def impatient(monkeypatch):
    """Shorten the sender's intervals."""
    monkeypatch.setattr(mlflow_runs, "SECONDS_BETWEEN_BATCHES", 0.2)
    monkeypatch.setattr(mlflow_runs, "SECONDS_AFTER_A_FAILURE", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


def about(folder: Path, fingerprint: str) -> About:
    return About(
        name=fingerprint,
        kind="pretrained_checkpoint",
        fingerprint=fingerprint,
        destination=folder / "pretrained_checkpoint" / fingerprint,
        inputs={},
        params={"model": {"hidden_size": 32}},
        tags={"dagster.run_id": "r"},
    )


def assert_sent_once(server: int, fingerprint: str, steps: int) -> None:
    mlflow = Mlflow(tracking_uri=f"http://127.0.0.1:{server}", artifacts="", ui="")
    [run] = mlflow.runs(fingerprint)
    assert run.info.status == "FINISHED" and run.data.params == {"model.hidden_size": "32"}
    for name in ("curves/loss", "curves/learning_rate"):
        points = [(point.step, point.value) for point in mlflow.client().get_metric_history(run.info.run_id, name)]
        assert sorted(points) == [(step, step / 2) for step in range(steps)]


@pytest.mark.parametrize("seed", range(6))
def test_no_point_is_lost_or_doubled_whatever_the_server_does(server, impatient, tmp_path, seed):
    """Includes the worst case: MLflow stores a point, and its answer is lost."""
    chance, slowest, modes = random.Random(seed), 0.0, []
    outage = Outage(server, "refuse")
    mlflow = Mlflow(tracking_uri=outage.uri, artifacts="", ui="")
    run_about = about(tmp_path, f"schedule-{seed}-{time.time_ns()}")
    with mlflow.track(run_about) as tracked:
        for step in range(ROWS):
            if step % 40 == 39:
                modes.append(chance.choice(("pass", "pass", "hang", "503", "refuse")))
                outage.become(modes[-1])
            begun = time.perf_counter()
            tracked.on_row({"step": step, "loss": step / 2, "learning_rate": step / 2})
            slowest = max(slowest, time.perf_counter() - begun)
            time.sleep(0.05)
        outage.become("pass")
    deadline = time.monotonic() + 120
    while run_about.note.exists():
        deliver_all(mlflow, tmp_path)
        assert time.monotonic() < deadline
    outage.stop()
    assert_sent_once(server, run_about.fingerprint, ROWS)
    print(f"seed {seed}: {' '.join(modes)}; slowest row {1000 * slowest:.1f} ms")


@pytest.mark.parametrize("mode", ["refuse", "hang", "503"])
def test_a_server_that_is_down_until_the_process_has_ended(server, tmp_path, mode):
    """With the production intervals: the work is not delayed, and another process delivers the rest."""
    outage = Outage(server, mode)
    mlflow = Mlflow(tracking_uri=outage.uri, artifacts="", ui="")
    run_about = about(tmp_path, f"away-{mode}-{time.time_ns()}")
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), mlflow.track(run_about) as tracked:
        for step in range(100):
            tracked.on_row({"step": step, "loss": step / 2, "learning_rate": step / 2})
        worked = time.monotonic() - begun
        raise KeyboardInterrupt
    ended = time.monotonic() - begun
    assert worked < 5 and run_about.note.exists()
    outage.become("pass")
    assert deliver_all(mlflow, tmp_path) == [run_about.name]
    assert deliver_all(mlflow, tmp_path) == []
    [run] = mlflow.runs(run_about.fingerprint)
    assert (
        run.info.status == "KILLED" and len(mlflow.client().get_metric_history(run.info.run_id, "curves/loss")) == 100
    )
    outage.stop()
    print(f"{mode}: 100 rows after {worked:.2f} s, ended after {ended:.1f} s")
