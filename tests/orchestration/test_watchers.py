"""Follow-up on runs: the failure webhook, MLflow's status, and the health check of a run's process."""

import http.server
import json
import os
import socket
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import WorkerStatus

from orchestration.automation import watchers
from orchestration.automation.watchers import WEBHOOK, failure_webhook, mlflow_is_told
from orchestration.tracking.mlflow_runs import About, Mlflow, Tracked
from orchestration.workshop import resources

TOKEN = "the-token-of-the-webhook"


@pytest.fixture
def instance(tmp_path):
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return resources(tmp_path)["workshop"]


@pytest.fixture
def webhook():
    """The webhook's port, and the bodies posted to it."""
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204 if self.path.startswith("/ok/") else 500)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_address[1], posted
    server.shutdown()
    server.server_close()


@contextmanager
def failed_run(instance: dg.DagsterInstance, workshop, **tags: str) -> Iterator[dg.RunFailureSensorContext]:
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["tiny"]))
    def pretrained_checkpoint() -> None:
        raise RuntimeError(f"no access with the key {TOKEN}")

    ended = dg.materialize(
        [pretrained_checkpoint], instance=instance, partition_key="tiny", tags=tags, raise_on_error=False
    )
    [event] = [each for each in ended.all_events if each.event_type_value == "PIPELINE_FAILURE"]
    run = instance.get_run_by_id(ended.run_id)
    given = {"resources": {"workshop": workshop}, "partition_key": "tiny"}
    with dg.build_run_status_sensor_context("failure_webhook", event, instance, run, **given) as context:
        yield context.for_run_failure()


def test_the_webhook_receives_what_failed_and_nothing_else(instance, workshop, webhook, monkeypatch):
    port, posted = webhook
    monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{port}/ok/{TOKEN}")
    with failed_run(instance, workshop, note=TOKEN) as context:
        failure_webhook(context)
    [body] = posted
    told, run_id = json.loads(body), context.dagster_run.run_id
    assert told.pop("text").startswith(f"bert-pipeline: run {run_id[:8]} of recipe tiny failed in ")
    assert told == {
        "run_id": run_id,
        "job": "__ephemeral_asset_job__",
        "recipe": "tiny",
        "failed": ["pretrained_checkpoint"],
        "will_retry": False,
        "page": f"http://127.0.0.1:3000/runs/{run_id}",
    }
    assert len(body) < 1000 and TOKEN.encode() not in body


def test_a_failing_webhook_is_reported_without_its_url(instance, workshop, webhook, monkeypatch):
    monkeypatch.setattr(watchers, "SECONDS", 0.2)
    port, _ = webhook
    with socket.create_server(("127.0.0.1", 0)) as silent, failed_run(instance, workshop) as context:
        for url, told in {
            f"http://127.0.0.1:{port}/{TOKEN}": "it answered 500",
            f"http://127.0.0.1:{silent.getsockname()[1]}/{TOKEN}": "TimeoutError",
            f"http://127.0.0.1:9/{TOKEN}": "URLError",
            f"http://127.0.0.1:x/{TOKEN}": "InvalidURL",
            f"file:///etc/{TOKEN}": "its value is not a URL",
        }.items():
            monkeypatch.setenv(WEBHOOK, url)
            with pytest.raises(
                RuntimeError, match=f"run {context.dagster_run.run_id} was not posted to {WEBHOOK}: {told}"
            ) as error:
                failure_webhook(context)
            assert TOKEN not in "".join(traceback.format_exception(error.value)), url
        monkeypatch.delenv(WEBHOOK)
        assert "is not set" in failure_webhook(context).skip_message


def test_the_sensor_reports_ended_trainings_to_mlflow(workshop, tmp_path):
    destination = tmp_path / "artifacts" / "pretrained_checkpoint" / "aaaa"
    told = About("a training", "pretrained_checkpoint", "aaaa", destination, {}, {}, {})
    killed = Tracked(workshop.mlflow, told)
    killed._leave_note(None)
    killed._send()
    nowhere = workshop.model_copy(update={"mlflow": Mlflow(tracking_uri="http://127.0.0.1:9", artifacts="", ui="")})
    said = []
    for each in (nowhere, workshop, workshop):
        with dg.build_sensor_context(resources={"workshop": each}) as context:
            said.append(mlflow_is_told(context).skip_message)
    assert "http://127.0.0.1:9 cannot be reached" in said[0]
    assert said[1:] == ["reported to MLflow: a training", "MLflow is up to date"]
    assert [run.info.status for run in workshop.mlflow.runs("aaaa")] == ["KILLED"]


def test_the_launcher_knows_whether_the_process_of_a_run_is_alive(tmp_path):
    """Runs on this machine, by `dg launch` or `dg dev`."""
    launcher = {"module": "orchestration.launcher", "class": "WatchedRunLauncher"}
    with dg.instance_for_test(temp_dir=str(tmp_path), overrides={"run_launcher": launcher}) as instance:

        @dg.asset
        def lives(context: dg.AssetExecutionContext) -> None:
            assert instance.run_launcher.check_run_worker_health(context.run).status == WorkerStatus.RUNNING

        ended = dg.materialize([lives], instance=instance)
        run = instance.get_run_by_id(ended.run_id)
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING, "this one"
        with subprocess.Popen(["sleep", "600"]) as process:
            told = EngineEventData(metadata={"pid": dg.MetadataValue.text(str(process.pid))})
            instance.report_engine_event("Executing steps in process", run, told)
            assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            found = instance.run_launcher.check_run_worker_health(run)
            assert found.status == WorkerStatus.FAILED and f"{process.pid} has ended" in found.msg, "a zombie"
        assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
