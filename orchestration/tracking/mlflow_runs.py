"""MLflow runs: one per training or evaluation that is really built, with a status that is true.

Runs are written through MlflowClient with explicit ids only: MLflow's global "active run" is closed as FINISHED when a
process crashes. A training that was interrupted and resumed stays one run, and each point of a curve is sent once.

An MLflow server that is unreachable or hangs does not stop a training: a thread sends, and keeps what is left to send
until the server is back. A note beside the artifact says that MLflow does not know the end yet; outstanding.py reads
it if the process ended before it could report.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg

from bert_pipeline.store.artifact import Artifact, Facts
from orchestration.tracking.database import open_client
from orchestration.tracking.metadata import flatten, measured, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

EXPERIMENT = "bert-pipeline"
DESCRIPTION = "mlflow.note.content"
SHOWN_AS = {
    "mlflow.experimentKind": "custom_model_development",
    DESCRIPTION: "Pretraining runs, each with its evaluations below it. Dagster shows how a model was built: "
    "every run and every model version links to it.",
}
"""Tags of the experiment."""
PAGES_OF_TRAINING = "?workflowType=machine_learning"
"""MLflow's UI opens its view for agents and prompts unless the link selects this one."""
CURVES = "curves"
"""Prefix for plain metrics, so that MLflow lists their section first."""
SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_AFTER_A_FAILURE = 60.0
SECONDS_TO_END = 90.0
"""How long the end of a training waits for a pending call. Each call times out after 20 s, see settings.py."""
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits for one call of log_batch
NOTE = ".mlflow.json"
"""Suffix of the note beside an artifact that MLflow does not know the end of."""

log = logging.getLogger("bert_pipeline.tracking")  # below the library's logger, so that Dagster shows it


@dataclass(frozen=True)
class About:
    """What a run trains or evaluates."""

    name: str
    kind: str
    fingerprint: str
    """Kind and fingerprint of the artifact that it builds."""
    destination: Path
    """The directory of that artifact, existing or not."""
    inputs: Mapping[str, Artifact]
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    files: Sequence[Path] = ()
    """Files of other artifacts to attach: the data card of the corpus."""

    @property
    def note(self) -> Path:
        return self.destination.with_name(self.destination.name + NOTE)


class Point(NamedTuple):
    """A point of a curve."""

    name: str
    value: float
    timestamp: int
    """Milliseconds. MLflow stores a point once if it is sent twice with the same timestamp."""
    step: int


class Mlflow(dg.ConfigurableResource):
    """The MLflow server or database for runs and models."""

    tracking_uri: str
    artifacts: str
    """Folder for artifacts if `tracking_uri` is a database; a server has its own."""
    ui: str
    """URL of MLflow's UI, for links."""

    def client(self) -> "MlflowClient":
        return open_client(self.tracking_uri)

    def experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        client = self.client()
        if experiment := client.get_experiment_by_name(EXPERIMENT):
            return experiment.experiment_id
        served = self.tracking_uri.startswith(("http://", "https://"))
        try:
            return client.create_experiment(EXPERIMENT, None if served else Path(self.artifacts).as_uri(), SHOWN_AS)
        except MlflowException:  # another process created it in the meantime
            if experiment := client.get_experiment_by_name(EXPERIMENT):
                return experiment.experiment_id
            raise

    def runs(self, fingerprint: str, status: str | None = None) -> list["Run"]:
        """The runs that built, or tried to build, an artifact; newest first."""
        query = f"tags.fingerprint = '{fingerprint}'" + (f" and attributes.status = '{status}'" if status else "")
        return self.client().search_runs([self.experiment_id()], query, order_by=["attributes.start_time DESC"])

    def run_url(self, run: "Run") -> str:
        return f"{self.ui}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{PAGES_OF_TRAINING}"

    def model_url(self, name: str, version: str) -> str:
        return f"{self.ui}/#/models/{name}/versions/{version}{PAGES_OF_TRAINING}"

    @contextmanager
    def track(self, about: About) -> Iterator["Tracked"]:
        """Keep a run open during the block; it ends as FINISHED, as FAILED, or as KILLED if someone stopped it."""
        tracked = Tracked(self, about)
        tracked.begin()
        try:
            yield tracked
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            tracked.end("KILLED")
            raise
        except BaseException:
            tracked.end("FAILED")
            raise
        tracked.end("FINISHED")


class Tracked:
    """Sends one training to MLflow, and keeps what is not sent yet."""

    def __init__(self, mlflow: Mlflow, about: About, points: Sequence[Point] = ()) -> None:
        self.mlflow, self.about = mlflow, about
        self._points = [*points]
        self._files = list(about.files)
        self._run_id: str | None = None
        self._sent_points: set[tuple[str, int]] = set()
        """Name and step of the points that MLflow has."""
        self._is_down = False
        self._system_metrics: Any = None
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._keep_sending, name="mlflow", daemon=True)

    def begin(self) -> None:
        import mlflow.entities  # noqa: F401  here: concurrent imports in two threads may see half a module

        self._leave_note(None)
        self._sender.start()

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Queue a row of metrics: its strings name the curves, its numbers are their points at `step`."""
        words = [str(value) for value in row.values() if isinstance(value, str)]
        words += [f"seed-{row['seed']}"] if "seed" in row else []
        points = {name: value for name, value in numbers(row).items() if name not in ("step", "seed")}
        self._add("/".join([*(words or [CURVES]), ""]), points, row["step"])

    def report(self, facts: Facts, directory: Path) -> None:
        """Queue the facts as final values, and the pictures and texts of the directory."""
        self._add(f"{self.about.kind}/", measured(facts), step=0)
        self._files += [*sorted(directory.glob("*.png")), *sorted(directory.glob("*.md"))]

    def end(self, status: str) -> None:
        """Send the rest and set the status. If that fails, the note stays for `mlflow_is_told` or the next run."""
        self._ended.set()
        self._sender.join(SECONDS_TO_END)
        self._leave_note(status)
        if self._sender.is_alive() or not self._try(lambda: self.close(status)):
            log.warning(
                "MLflow at %s does not know yet that %s is %s; Dagster's sensor mlflow_is_told, or the next run of "
                "this asset, will report it",
                *(self.mlflow.tracking_uri, self.about.name, status),
            )

    def close(self, status: str) -> None:
        """Send what is queued, and set the status. Raises what MLflow's client raises."""
        self._end_system_metrics()
        run_id = self._send()
        self.mlflow.client().set_terminated(run_id, status)
        self.about.note.unlink(missing_ok=True)

    def _add(self, prefix: str, points: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        finite = {name: float(value) for name, value in points.items() if math.isfinite(value)}
        self._points += [Point(prefix + name, value, now, step) for name, value in finite.items()]

    def _leave_note(self, status: str | None) -> None:
        """Write the note. `status` is how the training ended, None while it runs."""
        content = {"about": asdict(self.about), "ended": status, "points": self._points if status else []}
        draft = self.about.note.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content, default=str), encoding="utf-8")
        draft.replace(self.about.note)

    def _keep_sending(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            sent = self._try(self._send_and_watch)
            pause = SECONDS_BETWEEN_BATCHES if sent else SECONDS_AFTER_A_FAILURE

    def _try(self, send: Callable[[], None]) -> bool:
        """Call `send`; return whether it worked."""
        try:
            send()
        except Exception as error:  # no failure of MLflow may stop the training or this thread
            if not self._is_down:
                reason = str(error).partition("\n")[0]
                log.warning("MLflow at %s: %s; metrics are kept until it answers", self.mlflow.tracking_uri, reason)
            self._is_down = True
            self._end_system_metrics()  # MLflow's monitor stops at the first failure
            return False
        if self._is_down:
            log.info("MLflow at %s answers again and has received all metrics", self.mlflow.tracking_uri)
        self._is_down = False
        return True

    def _send_and_watch(self) -> None:
        run_id = self._send()
        if self._system_metrics is None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            uri = self.mlflow.tracking_uri
            self._system_metrics = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
            self._system_metrics.start()

    def _end_system_metrics(self) -> None:
        if self._system_metrics:
            self._system_metrics.finish()
            self._system_metrics = None

    def _send(self) -> str:
        """Send what is queued; return the run's id."""
        from mlflow.entities import Metric

        client = self.mlflow.client()
        run_id = self._run_id = self._run_id or self._open_run(client)
        while waiting := self._points[:METRICS_PER_BATCH]:
            new = {(point.name, point.step): point for point in reversed(waiting)}
            new = {key: point for key, point in new.items() if key not in self._sent_points}
            if new:
                client.log_batch(run_id, metrics=[Metric(*point) for point in reversed(new.values())])
            self._sent_points.update(new)
            del self._points[: len(waiting)]
        while self._files:
            client.log_artifact(run_id, str(self._files[0]))
            del self._files[0]
        return run_id

    def _open_run(self, client: "MlflowClient") -> str:
        """Reopen the interrupted run, or create one; log its parameters, tags and inputs. Return its id."""
        from mlflow.entities import Param, RunTag

        about, found = self.about, self.mlflow.runs(self.about.fingerprint)  # the caller holds the artifact's lock
        tags = {**about.tags, "fingerprint": about.fingerprint, **self._parent()}
        params = dict(flatten(about.params, separator="."))
        if found and found[0].info.status != "FINISHED":
            run = found.pop(0)
            self._sent_points = _points_of(client, run)
            params = {name: value for name, value in params.items() if name not in run.data.params}
            client.update_run(run.info.run_id, "RUNNING")
            client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        else:
            run = client.create_run(self.mlflow.experiment_id(), tags=tags, run_name=about.name)
        for other in found:
            if other.info.status == "RUNNING":  # its creation was answered too late, or it is of an older version
                client.set_terminated(other.info.run_id, "KILLED")
        entries = [Param(name, str(value)) for name, value in params.items()]
        for begin in range(0, len(entries), PARAMS_PER_BATCH):
            client.log_batch(run.info.run_id, params=entries[begin : begin + PARAMS_PER_BATCH])
        client.log_inputs(run.info.run_id, [_dataset(made) for made in about.inputs.values()])
        return run.info.run_id

    def _parent(self) -> dict[str, str]:
        """The tag that nests an evaluation below the training of its checkpoint."""
        checkpoint = self.about.inputs.get("pretrained_checkpoint")
        trainings = self.mlflow.runs(checkpoint.fingerprint, "FINISHED") if checkpoint else []
        return {"mlflow.parentRunId": trainings[0].info.run_id} if trainings else {}


def _points_of(client: "MlflowClient", run: "Run") -> set[tuple[str, int]]:
    """Name and step of the points that a run has."""
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    return {(name, point.step) for name in names for point in client.get_metric_history(run.info.run_id, name)}


@contextmanager
def failures_as_warnings(mlflow: Mlflow) -> Iterator[None]:
    """Turn MLflow's failures into warnings, so that they do not stop the work inside the block."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        log.warning("MLflow at %s: %s", mlflow.tracking_uri, str(error).partition("\n")[0])


def _dataset(made: Artifact) -> "DatasetInput":
    """An artifact as an MLflow dataset: its path, its fingerprint as the digest, its facts as the profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"uri": str(made.path)}), json.dumps(numbers(made.facts))
    dataset = Dataset(made.kind, made.fingerprint, source_type="local", source=source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", made.kind)])
