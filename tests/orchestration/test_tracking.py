import logging
import time

import dagster as dg
import pytest
from mlflow.utils.validation import _validate_metric_name

from bert_pipeline.artifact import Artifact
from orchestration.metadata import numbers
from orchestration.tracking import About, Mlflow


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
        inputs={"tokenizer": Artifact(tmp_path, record)},
        files=sorted(tmp_path.glob("data_card.html")),
        params={"model": {"hidden_size": 32}, "pretrain": {"phases": [{"num_steps": 20}]}},
        tags={"dagster.run_id": "r"},
    )


def the_run(mlflow: Mlflow, fingerprint: str, status: str):
    [run] = mlflow.runs(fingerprint, status)
    return run


def test_a_run_tells_everything(mlflow, tmp_path):
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
        "loss": 3.0,
        "chem/pretrained/seed-7/f1": 0.5,
        "pretrained_checkpoint/num_steps": 2.0,
        "pretrained_checkpoint/heldout_after/mlm_loss": 3.0,
    }
    history = mlflow.client().get_metric_history(run.info.run_id, "loss")
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
    assert run.data.metrics["loss"] == 4.0, "what was measured before the end is kept"


def test_a_run_that_a_crash_left_open_is_closed_by_the_next(mlflow, tmp_path):
    crashed = mlflow.client().create_run(mlflow.experiment_id(), tags={"fingerprint": "crash"})
    with mlflow.track(about(tmp_path, "crash")):
        pass
    assert the_run(mlflow, "crash", "KILLED").info.run_id == crashed.info.run_id
    assert the_run(mlflow, "crash", "FINISHED")


def test_system_metrics_are_logged(mlflow, tmp_path):
    with mlflow.track(about(tmp_path, "system")):
        while "system/cpu_utilization_percentage" not in the_run(mlflow, "system", "RUNNING").data.metrics:
            time.sleep(0.1)
    assert the_run(mlflow, "system", "FINISHED")


def test_a_server_that_is_down_stops_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nowhere = Mlflow(tracking_uri="http://127.0.0.1:9", artifacts="", ui="")
    worked = []
    with caplog.at_level(logging.WARNING), nowhere.track(about(tmp_path, "down")) as tracked:
        tracked.on_row({"step": 1, "loss": 4.0})
        worked.append("to the end")
    assert worked
    assert "127.0.0.1:9" in caplog.text


def test_what_waited_is_sent_when_the_server_is_back(mlflow, tmp_path, monkeypatch):
    tried = []

    def down(*arguments, **options):
        tried.append(1)
        raise OSError("connection refused")

    with mlflow.track(about(tmp_path, "back")) as tracked, monkeypatch.context() as outage:
        outage.setattr(type(mlflow), "client", down)
        for step in range(3):
            tracked._next_batch = 0.0  # as if the pause after a failure were over
            tracked.on_row({"step": step, "loss": float(step)})
    assert tried
    run = the_run(mlflow, "back", "FINISHED")
    assert len(mlflow.client().get_metric_history(run.info.run_id, "loss")) == 3


def test_any_name_of_a_label_or_a_model_becomes_one_of_a_metric():
    facts = {"f1_CPR:3": 0.5, "measured": {"MiniLM, quick (6)": 0.7}, "f1_naïve": 1, "words": "no number"}
    assert numbers(facts) == {"f1_CPR:3": 0.5, "measured/MiniLM_ quick _6_": 0.7, "f1_naïve": 1}
    for name in numbers(facts):
        _validate_metric_name(name)
