import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

import dagster as dg
import pytest
from filelock import FileLock
from mlflow.utils.validation import _validate_metric_name

from bert_pipeline.formats.metrics import append_row, read_rows
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from orchestration.tracking import mlflow_runs
from orchestration.tracking.metadata import numbers
from orchestration.tracking.mlflow_runs import About, Mlflow, Tracked
from orchestration.tracking.outstanding import deliver_all


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    home = tmp_path_factory.mktemp("mlflow")
    return Mlflow(tracking_uri=f"sqlite:///{home}/mlflow.db", artifacts=str(home / "artifacts"), ui="http://ui")


def about(tmp_path, fingerprint: str) -> About:
    record = {"origin": {"kind": "tokenizer"}, "fingerprint": "aaaa", "facts": {"vocab_size": 600, "example": "x"}}
    return About(
        name="a run",
        kind="pretrained_checkpoint",
        fingerprint=fingerprint,
        destination=tmp_path / "pretrained_checkpoint" / fingerprint,
        inputs={"tokenizer": Artifact(tmp_path, record)},
        files=sorted(tmp_path.glob("data_card.html")),
        params={"model": {"hidden_size": 32}, "pretrain": {"phases": [{"num_steps": 20}]}},
        tags={"dagster.run_id": "r"},
    )


def the_run(mlflow: Mlflow, fingerprint: str, status: str):
    [run] = mlflow.runs(fingerprint, status)
    return run


def test_a_run_has_everything(mlflow, tmp_path):
    (tmp_path / "data_card.html").write_text("the corpus")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "loss_curve.png").write_bytes(b"png")
    with mlflow.track(about(tmp_path, "f1")) as tracked:
        for step in (1, 2):
            tracked.on_row({"step": step, "loss": 5.0 - step, "mlm_loss": float("nan")})
        tracked.on_row({"step": 1, "task": "chem", "encoder": "pretrained", "seed": 7, "f1": 0.5})
        tracked.report({"num_steps": 2, "heldout_after": {"mlm_loss": 3.0}, "example": "text"}, tmp_path / "made")
    run = the_run(mlflow, "f1", "FINISHED")
    assert run.data.params == {"model.hidden_size": "32", "pretrain.phases.0.num_steps": "20"}
    assert run.data.tags["dagster.run_id"] == "r"
    assert run.data.metrics == {
        "curves/loss": 3.0,
        "chem/pretrained/seed-7/f1": 0.5,
        "pretrained_checkpoint/num_steps": 2.0,
        "pretrained_checkpoint/heldout_after/mlm_loss": 3.0,
    }
    history = mlflow.client().get_metric_history(run.info.run_id, "curves/loss")
    assert [(point.step, point.value) for point in history] == [(1, 4.0), (2, 3.0)]
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("tokenizer", "aaaa")
    files = [file.path for file in mlflow.client().list_artifacts(run.info.run_id)]
    assert files == ["data_card.html", "loss_curve.png"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("loss is nan"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (dg.DagsterExecutionInterruptedError(), "KILLED"),
    ],
)
def test_the_status_is_true(mlflow, tmp_path, error, status):
    fingerprint = type(error).__name__
    with pytest.raises(type(error)), mlflow.track(about(tmp_path, fingerprint)) as tracked:
        tracked.on_row({"step": 1, "loss": 4.0})
        raise error
    run = the_run(mlflow, fingerprint, status)
    assert run.info.end_time is not None
    assert run.data.metrics["curves/loss"] == 4.0, "what was measured before the end is kept"


def curve(mlflow: Mlflow, run, name: str = "curves/loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in mlflow.client().get_metric_history(run.info.run_id, name)]


def statuses(mlflow: Mlflow, fingerprint: str) -> list[str]:
    return [run.info.status for run in mlflow.runs(fingerprint)]


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_an_interrupted_training_stays_one_run_without_duplicate_points(mlflow, tmp_path, status):
    """The second attempt resumes before the interruption; its recipe has other settings for later stages."""
    run_about = about(tmp_path, f"cut-{status}")
    first = Tracked(mlflow, run_about)
    for step in (1, 2, 3):
        first.on_row({"step": step, "loss": 5.0 - step})
    first.close(status)
    with mlflow.track(replace(run_about, params={**run_about.params, "evaluation": {"seeds": 3}})) as again:
        for step in (2, 3, 4):
            again.on_row({"step": step, "loss": 5.0 - step})
    run = the_run(mlflow, run_about.fingerprint, "FINISHED")
    assert statuses(mlflow, run_about.fingerprint) == ["FINISHED"]
    assert curve(mlflow, run) == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert run.data.params["evaluation.seeds"] == "3" and run.data.params["model.hidden_size"] == "32"


def test_a_repeated_training_is_another_run(mlflow, tmp_path):
    for _ in range(2):
        with mlflow.track(about(tmp_path, "twice")) as tracked:
            tracked.on_row({"step": 1, "loss": 4.0})
    assert statuses(mlflow, "twice") == ["FINISHED", "FINISHED"]


def test_rows_that_restarted_processes_write_again_are_sent_once(mlflow, tmp_path):
    with mlflow.track(about(tmp_path, "restarted")) as tracked:
        for step in (1, 2, 3, 2, 3, 4):
            tracked.on_row({"step": step, "loss": float(step)})
    run = the_run(mlflow, "restarted", "FINISHED")
    assert [step for step, _ in curve(mlflow, run)] == [1, 2, 3, 4]


def test_the_note_of_a_killed_process_is_delivered(mlflow, tmp_path):
    """kill -9 after two of three rows were sent; the third is in metrics.jsonl."""
    run_about = about(tmp_path / "store", "killed")
    killed = Tracked(mlflow, run_about)
    killed._leave_note(None)
    partial = artifact.partial(run_about.destination)
    partial.mkdir()
    for step in (1, 2, 3):
        append_row(partial / "metrics.jsonl", {"step": step, "loss": float(step)})
    for row in read_rows(partial / "metrics.jsonl")[:2]:
        killed.on_row(row)
    killed._send()
    assert statuses(mlflow, "killed") == ["RUNNING"]
    with FileLock(f"{run_about.destination}.lock"):  # as if another process resumed the training
        assert deliver_all(mlflow, tmp_path / "store") == []
    assert statuses(mlflow, "killed") == ["RUNNING"]
    assert deliver_all(mlflow, tmp_path / "store") == ["a run"]
    assert curve(mlflow, the_run(mlflow, "killed", "KILLED")) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert deliver_all(mlflow, tmp_path / "store") == [] and not run_about.note.exists()


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), (RuntimeError("x"), "FAILED")])
def test_what_could_not_be_sent_before_the_process_ended_is_sent_later(tmp_path, monkeypatch, error, status):
    """Points of an evaluation are in no file; the note keeps them."""
    later = Mlflow(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifacts=str(tmp_path / "artifacts"), ui="")
    run_about, nowhere = (
        about(tmp_path / "store", "later"),
        Mlflow(tracking_uri="http://127.0.0.1:9", artifacts="", ui=""),
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with suppress(RuntimeError), nowhere.track(run_about) as tracked:
        tracked.on_row({"step": 1, "loss": 4.0})
        if error:
            raise error
    if not error:
        origin = artifact.origin("pretrained_checkpoint", {}, {}, "1")
        run_about.note.rename(tmp_path / "note")
        artifact.make(run_about.destination, origin, lambda out: {"num_steps": 1})
        (tmp_path / "note").rename(run_about.note)
    for _ in range(2):
        deliver_all(later, tmp_path / "store")
    run = the_run(later, "later", status)
    assert statuses(later, "later") == [status] and curve(later, run) == [(1, 4.0)]
    assert run.data.metrics.get("pretrained_checkpoint/num_steps") == (None if error else 1.0)


def test_system_metrics_are_logged(mlflow, tmp_path):
    with mlflow.track(about(tmp_path, "system")):
        while not any("system/cpu_utilization_percentage" in run.data.metrics for run in mlflow.runs("system")):
            time.sleep(0.1)
    assert the_run(mlflow, "system", "FINISHED")


def test_a_server_that_is_down_does_not_stop_the_work(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = Mlflow(tracking_uri="http://127.0.0.1:9", artifacts="", ui="")
    worked = []
    with caplog.at_level(logging.WARNING), nowhere.track(about(tmp_path, "down")) as tracked:
        tracked.on_row({"step": 1, "loss": 4.0})
        worked.append("to the end")
    assert worked
    assert "127.0.0.1:9" in caplog.text


def test_queued_points_are_sent_when_the_server_is_back(mlflow, tmp_path, monkeypatch, caplog):
    tried = threading.Event()
    monkeypatch.setattr(mlflow_runs, "SECONDS_AFTER_A_FAILURE", 0.05)

    def down(*arguments, **options):
        tried.set()
        raise OSError("connection refused")

    with caplog.at_level(logging.INFO), mlflow.track(about(tmp_path, "back")) as tracked:
        with monkeypatch.context() as outage:
            outage.setattr(type(mlflow), "client", down)
            for step in range(3):
                tracked.on_row({"step": step, "loss": float(step)})
            assert tried.wait(60)
        while not the_run_is_known(mlflow, "back"):
            time.sleep(0.05)
    run = the_run(mlflow, "back", "FINISHED")
    assert curve(mlflow, run) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    said = [record.getMessage() for record in caplog.records if record.name == "bert_pipeline.tracking"]
    assert len(said) == 2 and "refused; metrics are kept until it answers" in said[0] and "answers again" in said[1]


def the_run_is_known(mlflow: Mlflow, fingerprint: str) -> bool:
    return bool(mlflow.runs(fingerprint))


def test_a_hanging_server_does_not_delay_the_work(tmp_path):
    """It accepts connections and never answers: at the start, at each row and at the end."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        hanging = Mlflow(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}", artifacts="", ui="")
        begun = time.monotonic()
        with hanging.track(about(tmp_path, "hanging")) as tracked:
            for step in range(100):
                tracked.on_row({"step": step, "loss": 1.0})
            held_up = time.monotonic() - begun
        assert held_up < 4, "less than the timeout of one call"
        assert about(tmp_path, "hanging").note.exists()


def test_any_label_becomes_a_valid_metric_name():
    facts = {"f1_CPR:3": 0.5, "measured": {"MiniLM, quick (6)": 0.7}, "f1_naïve": 1, "words": "no number"}
    assert numbers(facts) == {"f1_CPR:3": 0.5, "measured/MiniLM_ quick _6_": 0.7, "f1_naïve": 1}
    for name in numbers(facts):
        _validate_metric_name(name)
