"""Runs that are cancelled or killed, or lose MLflow, on the shipped SQLite instance. Daemon, code server, web server
and MLflow's server are separate processes.
"""

import http.server
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from outage import Outage
from processes import eventually
from servers import BIN, INFRA, ROOT
from stack import Stack

from bert_pipeline.formats.metrics import read_rows
from orchestration.tracking.mlflow_runs import Mlflow

pytestmark = pytest.mark.slow

STAGES = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset", "pretrained_checkpoint")
RECIPES = ("cancelled", "killed", "waiting", "abandoned", "restarted", "by-hand", "outage", "twice", "limited")
TINY = (ROOT / "tests" / "orchestration" / "recipes" / "tiny.toml").read_text()
SECRET = "the-token-of-the-webhook"
CANCELS, KILLS = 20, 10
LONG = {"cancelled": 2_000, "killed": 1_000, "limited": 100_000}
"""Steps of recipes that are interrupted; the others have 400."""


@pytest.fixture(scope="module")
def outage(servers, folder):
    """MLflow's server behind a proxy."""
    proxy = Outage(servers.start_mlflow(f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")))
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def mlflow(outage):
    return Mlflow(tracking_uri=outage.uri, artifacts="", ui="")


@pytest.fixture(scope="module")
def posts():
    """The webhook's port, and the path and body of each post."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500)  # must not affect runs
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], received
    server.shutdown()


@pytest.fixture(scope="module")
def stack(servers, folder, outage, posts):
    recipes = {}
    for seed, name in enumerate(RECIPES):
        text = TINY.replace("[pretrain]", f"[pretrain]\nseed = {seed}\ncheckpoint_every = 25")
        for setting in ("num_steps", "eval_every"):
            text = text.replace(f"{setting} = 20", f"{setting} = {LONG.get(name, 400)}")
        recipes[name] = text.replace("sample_documents = 200", "sample_documents = 210") if name == "twice" else text
    return Stack(
        *(servers, folder, (INFRA / "dagster" / "dagster.yaml").read_text(), recipes),
        MLFLOW_TRACKING_URI=outage.uri,
        BERT_PIPELINE_FAILURE_WEBHOOK=f"http://127.0.0.1:{posts[0]}/{SECRET}",
    )


def partial(stack) -> Path | None:
    """The metrics file of the running training; the pool allows one at a time."""
    found = (stack.home / "artifacts" / "pretrained_checkpoint").glob("*.partial/metrics.jsonl")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def progress(stack) -> int:
    path = partial(stack)
    return max((row["step"] for row in read_rows(path)), default=0) if path and stack.training() else 0


def train_until(stack, run_id: str, step: int) -> None:
    eventually(lambda: stack.status(run_id) in ("STARTED", "FAILURE"))
    eventually(lambda: progress(stack) >= step or stack.status(run_id) == "FAILURE")
    assert stack.status(run_id) == "STARTED", stack.said("code")[-3000:]


def mlflow_runs(mlflow, recipe: str) -> list:
    return mlflow.client().search_runs([mlflow.experiment_id()], f"tags.`dagster.partition` = '{recipe}'")


def assert_one_whole_run(stack, mlflow, recipe: str) -> None:
    """MLflow has one run, finished, with each point of metrics.jsonl once."""
    [run] = mlflow_runs(mlflow, recipe)
    assert run.info.status == "FINISHED"
    made = stack.home / "artifacts" / "pretrained_checkpoint" / run.data.tags["fingerprint"]
    for name in ("loss", "heldout_mlm_loss"):
        expected = [row["step"] for row in read_rows(made / "metrics.jsonl") if name in row]
        found = [point.step for point in mlflow.client().get_metric_history(run.info.run_id, f"curves/{name}")]
        assert expected and sorted(found) == expected, Counter(found) - Counter(expected)


def test_a_cancelled_training_saves_a_checkpoint_ends_and_resumes(stack, mlflow):
    """Twenty times; at the end MLflow has one run with each point once."""
    run, reached, seconds = stack.launch("cancelled", *STAGES), 0, []
    for _ in range(CANCELS):
        train_until(stack, run, reached + 30)
        stack.terminate(run)
        seconds.append(eventually(lambda run=run: stack.status(run) == "CANCELED"))
        assert not stack.training()
        last = reached
        reached = max(row["step"] for row in read_rows(partial(stack)))
        saved = sorted(path.name for path in partial(stack).parent.glob("work/checkpoints/step-????????"))
        assert last < reached < LONG["cancelled"] and last + 30 <= int(saved[-1][-8:])
        assert [each.info.status for each in mlflow_runs(mlflow, "cancelled")] == ["KILLED"]
        run = stack.launch("cancelled", "pretrained_checkpoint")
    assert stack.wait_for_end(run, 900) == "SUCCESS"
    assert_one_whole_run(stack, mlflow, "cancelled")
    assert not stack.training()
    took = f"{min(seconds):.1f} to {max(seconds):.1f} s until CANCELED"
    print(f"cancelled {CANCELS} times, last at step {reached}: {took}, no process left, resumed")


def test_a_killed_run_is_retried_resumes_and_frees_the_pool(stack, mlflow, posts):
    """Ten times, while another run waits for the pool."""
    run = stack.launch("killed", *STAGES, dagster_max_retries=str(KILLS))
    train_until(stack, run, 30)
    other = stack.launch("waiting", *STAGES)
    killed, reached = [], [0]
    for _ in range(KILLS):
        train_until(stack, run, reached[-1] + 30)
        assert stack.status(other) in ("QUEUED", "SUCCESS"), "one training at a time"
        reached.append(progress(stack))
        orphans = stack.training()
        os.kill(stack.run_worker(), signal.SIGKILL)
        detected = eventually(lambda run=run: stack.status(run) == "FAILURE")
        ended = detected + eventually(lambda orphans=orphans: not orphans.keys() & stack.training().keys())
        killed.append(run)
        eventually(lambda: stack.retry_of(killed[-1]))
        run = stack.retry_of(killed[-1])
        print(f"killed at step {reached[-1]}: detected after {detected:.1f} s, its training ended after {ended:.1f} s")
    assert stack.wait_for_end(run, 900) == "SUCCESS"
    assert stack.wait_for_end(other) == "SUCCESS", "the pool is free again"
    for recipe in ("killed", "waiting"):
        assert_one_whole_run(stack, mlflow, recipe)
    _, received = posts
    eventually(lambda: len(received) >= 2)
    told = [json.loads(body) for _, body in received]
    assert {each["run_id"] for each in told} >= set(killed)
    first = next(each for each in told if each["run_id"] == killed[0])
    assert first["recipe"] == "killed" and first["will_retry"] and first["failed"] == []
    assert "was lost: its process ended; Dagster retries it" in first["text"] and killed[0] in first["page"]
    for _, body in received:
        assert len(body) < 1000 and SECRET.encode() not in body
    assert SECRET not in stack.said("code") + stack.said("daemon")


def test_mlflow_learns_of_a_killed_run_that_is_not_retried(stack, mlflow):
    run = stack.launch("abandoned", *STAGES, dagster_max_retries="0")
    train_until(stack, run, 30)
    eventually(lambda: mlflow_runs(mlflow, "abandoned"))
    os.kill(stack.run_worker(), signal.SIGKILL)
    assert stack.wait_for_end(run) == "FAILURE"
    eventually(lambda: not stack.training())
    [told] = mlflow_runs(mlflow, "abandoned")
    took = eventually(lambda: mlflow_runs(mlflow, "abandoned")[0].info.status == "KILLED")
    expected = [row["step"] for row in read_rows(partial(stack)) if "loss" in row]
    found = [point.step for point in mlflow.client().get_metric_history(told.info.run_id, "curves/loss")]
    assert sorted(found) == expected
    print(f"abandoned: MLflow's status was true {took:.1f} s after the last process had ended")


def test_runs_are_retried_after_their_code_server_was_killed(stack, mlflow):
    run = stack.launch("restarted", *STAGES)
    train_until(stack, run, 30)
    stack.kill("code")
    eventually(lambda: not stack.training())
    stack.start("code")
    took = eventually(lambda: stack.status(run) == "FAILURE")
    eventually(lambda: stack.retry_of(run))
    assert stack.wait_for_end(stack.retry_of(run)) == "SUCCESS"
    assert_one_whole_run(stack, mlflow, "restarted")
    print(f"code server killed: its run detected {took:.1f} s after the server was back, retried, resumed")


def test_a_killed_dg_launch_frees_the_pool(stack, mlflow):
    """`make run` while the UI is open."""
    assets = ",".join(f"key:{name}" for name in STAGES).replace(",", " or ")
    command = [BIN / "dg", "launch", "--assets", assets, "--partition", "by-hand"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | stack.environment, start_new_session=True)
    try:
        eventually(lambda: progress(stack) >= 30)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    [run] = [each["runId"] for each in stack.runs() if each["status"] == "STARTED"]
    took = eventually(lambda: stack.status(run) == "FAILURE")
    eventually(lambda: not stack.training())
    again = stack.launch("by-hand", *STAGES)
    assert stack.wait_for_end(again) == "SUCCESS"
    assert_one_whole_run(stack, mlflow, "by-hand")
    print(f"dg launch killed: noticed after {took:.1f} s, the pool is free, resumed")


def test_mlflow_is_down_from_the_start_to_the_end(stack, mlflow, outage):
    outage.become("hang")
    run = stack.launch("outage", *STAGES)
    train_until(stack, run, 10)
    note = next((stack.home / "artifacts" / "pretrained_checkpoint").glob("*.mlflow.json"))
    launched = min(psutil.Process(number).create_time() for number in stack.training())
    held_up = launched - note.stat().st_mtime
    assert held_up < 15
    outage.become("refuse")
    assert stack.wait_for_end(run) == "SUCCESS"
    assert note.exists()
    outage.become("pass")
    took = eventually(lambda: not note.exists())
    assert_one_whole_run(stack, mlflow, "outage")
    print(f"outage: training launched {held_up:.2f} s after its note; MLflow complete {took:.0f} s after its return")


def test_a_run_that_reaches_its_time_limit_saves_and_ends(stack, mlflow):
    """The limit on retrainings that new text starts (retraining.hours_per_month)."""
    run = stack.launch("limited", *STAGES, dagster_max_runtime="40", dagster_max_retries="0")
    train_until(stack, run, 30)
    assert stack.wait_for_end(run) == "FAILURE"
    eventually(lambda: not stack.training(), 30)
    reached = max(row["step"] for row in read_rows(partial(stack)))
    [*_, newest] = sorted(path.name for path in partial(stack).parent.glob("work/checkpoints/step-????????"))
    assert reached <= int(newest[-8:]) < LONG["limited"], "saved when it was stopped, not some time before"
    eventually(lambda: [each.info.status for each in mlflow_runs(mlflow, "limited")] == ["KILLED"])
    lasted = stack.run(run)["endTime"] - stack.run(run)["startTime"]
    print(f"limited to 40 s: ended after {lasted:.0f} s at step {reached}, checkpoint {newest}")


def test_concurrent_runs_of_one_recipe_build_each_artifact_once(stack):
    """Data stages have no pool, so they run concurrently; the second training waits for its pool."""
    runs = [stack.launch("twice", *STAGES) for _ in range(2)]
    data = [stack.launch("twice", *STAGES[:4]) for _ in range(2)]
    assert [stack.wait_for_end(run) for run in runs + data] == ["SUCCESS"] * 4
    records = [json.loads(path.read_text()) for path in stack.home.glob("artifacts/*/*/record.json")]
    built = [record["origin"]["kind"] for record in records if record["made"]["dagster_run"] in runs + data]
    assert sorted(built) == sorted(STAGES) and not list(stack.home.glob("artifacts/*/*.partial"))


def test_nothing_is_left_running(stack):
    time.sleep(1)
    assert not stack.training()
    counted = Counter(run["status"] for run in stack.runs())
    print(f"runs: {dict(counted)}")
    assert set(counted) <= {"SUCCESS", "FAILURE", "CANCELED"}
