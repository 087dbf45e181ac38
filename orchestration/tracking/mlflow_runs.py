"""MLflow: one run for each training that really takes place, with a status that is true.

Through MlflowClient and explicit ids alone: MLflow's global "active run" is closed as FINISHED when a process
crashes. A training that was cut off and is gone on with stays one run, and each point of a curve is sent once.

A server that cannot be reached, or does not answer, stops no training: a thread sends, and what waits is sent when it
is back. A note beside the artifact says that MLflow does not know the end yet; outstanding.py reads it where the
process ended before it could tell.
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
from orchestration.tracking.metadata import flatten, measured, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

EXPERIMENT = "bert-pipeline"
DESCRIPTION = "mlflow.note.content"
SHOWN_AS = {
    "mlflow.experimentKind": "custom_model_development",
    DESCRIPTION: "Pretrainings, each with its evaluations below it. How a model was made stands in Dagster: "
    "every run and every version of a model has the link.",
}
"""Tags of the experiment."""
PAGES_OF_TRAINING = "?workflowType=machine_learning"
"""MLflow's pages have two faces, and show that of agents and prompts unless they are asked for this one."""
CURVES = "curves"
"""Before the names of metrics that have no words: MLflow charts sections by their names, and these come first."""
SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_AFTER_A_FAILURE = 60.0
SECONDS_TO_END = 90.0
"""How long the end of a training waits for a call under way; each gives up after 20 s, see __init__.py."""
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits for one call of log_batch
NOTE = ".mlflow.json"
"""After the name of an artifact: the note that MLflow is still to be told something of it."""

log = logging.getLogger("bert_pipeline.tracking")  # under the library's name, so that Dagster shows it


@dataclass(frozen=True)
class About:
    """What a run is about."""

    name: str
    kind: str
    fingerprint: str
    """Kind and fingerprint of the artifact that it makes."""
    destination: Path
    """Where that stands, or will stand."""
    inputs: Mapping[str, Artifact]
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    files: Sequence[Path] = ()
    """Of other artifacts, to lie beside its own: the data card of the corpus."""

    @property
    def note(self) -> Path:
        return self.destination.with_name(self.destination.name + NOTE)


class Point(NamedTuple):
    """Of a curve."""

    name: str
    value: float
    timestamp: int
    """Milliseconds. MLflow takes a point that comes twice, with the same one, for one."""
    step: int


class Mlflow(dg.ConfigurableResource):
    """Where runs and models are kept."""

    tracking_uri: str
    artifacts: str
    """Folder for artifacts where `tracking_uri` is a database; a server has a place of its own."""
    ui: str
    """Address of MLflow's pages, for links."""

    def client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri)

    def experiment_id(self) -> str:
        client = self.client()
        if experiment := client.get_experiment_by_name(EXPERIMENT):
            return experiment.experiment_id
        served = self.tracking_uri.startswith(("http://", "https://"))
        return client.create_experiment(EXPERIMENT, None if served else Path(self.artifacts).as_uri(), SHOWN_AS)

    def runs(self, fingerprint: str, status: str | None = None) -> list["Run"]:
        """The runs that made, or tried to make, an artifact; the newest first."""
        asked = f"tags.fingerprint = '{fingerprint}'" + (f" and attributes.status = '{status}'" if status else "")
        return self.client().search_runs([self.experiment_id()], asked, order_by=["attributes.start_time DESC"])

    def run_url(self, run: "Run") -> str:
        return f"{self.ui}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{PAGES_OF_TRAINING}"

    def model_url(self, name: str, version: str) -> str:
        return f"{self.ui}/#/models/{name}/versions/{version}{PAGES_OF_TRAINING}"

    @contextmanager
    def track(self, about: About) -> Iterator["Tracked"]:
        """A run that lasts as long as the block: FINISHED, FAILED, or KILLED where someone stopped it."""
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
    """What is told to MLflow of one training, and what still waits to be told."""

    def __init__(self, mlflow: Mlflow, about: About, points: Sequence[Point] = ()) -> None:
        self.mlflow, self.about = mlflow, about
        self._points = [*points]
        self._files = list(about.files)
        self._run_id: str | None = None
        self._told: set[tuple[str, int]] = set()
        """Name and step of the points that MLflow has."""
        self._is_down = False
        self._system_metrics: Any = None
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._keep_sending, name="mlflow", daemon=True)

    def begin(self) -> None:
        import mlflow.entities  # noqa: F401  here: two threads that import at once may find half a module

        self._leave_note(None)
        self._sender.start()

    def on_row(self, row: Mapping[str, Any]) -> None:
        """One row of metrics: its words name the curves, its numbers are their points at `step`."""
        words = [str(value) for value in row.values() if isinstance(value, str)]
        words += [f"seed-{row['seed']}"] if "seed" in row else []
        points = {name: value for name, value in numbers(row).items() if name not in ("step", "seed")}
        self._add("/".join([*(words or [CURVES]), ""]), points, row["step"])

    def report(self, facts: Facts, directory: Path) -> None:
        """What came out: facts as final values, and the pictures and texts of the directory."""
        self._add(f"{self.about.kind}/", measured(facts), step=0)
        self._files += [*sorted(directory.glob("*.png")), *sorted(directory.glob("*.md"))]

    def end(self, status: str) -> None:
        """Tell the rest. Where that fails, the note stays, for the next one who can."""
        self._ended.set()
        self._sender.join(SECONDS_TO_END)
        self._leave_note(status)
        if self._sender.is_alive() or not self._sent(lambda: self.close(status)):
            log.warning(
                "MLflow at %s does not know yet that %s is %s; Dagster's sensor mlflow_is_told tells it later, and so "
                "does the next run of this asset",
                *(self.mlflow.tracking_uri, self.about.name, status),
            )

    def close(self, status: str) -> None:
        """Send what waits, and set the status. Raises what MLflow's client raises."""
        self._end_system_metrics()
        run_id = self._send()
        self.mlflow.client().set_terminated(run_id, status)
        self.about.note.unlink(missing_ok=True)

    def _add(self, prefix: str, points: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        finite = {name: float(value) for name, value in points.items() if math.isfinite(value)}
        self._points += [Point(prefix + name, value, now, step) for name, value in finite.items()]

    def _leave_note(self, status: str | None) -> None:
        """`status`: how the training ended; None while it lasts."""
        content = {"about": asdict(self.about), "ended": status, "points": self._points if status else []}
        draft = self.about.note.with_suffix(".draft")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content, default=str), encoding="utf-8")
        draft.replace(self.about.note)

    def _keep_sending(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            sent = self._sent(self._send_and_watch)
            pause = SECONDS_BETWEEN_BATCHES if sent else SECONDS_AFTER_A_FAILURE

    def _sent(self, send: Callable[[], None]) -> bool:
        try:
            send()
        except Exception as error:  # whatever it is: the training goes on, and so does this thread
            if not self._is_down:
                reason = str(error).partition("\n")[0]
                log.warning("MLflow at %s: %s; what it is to be told waits", self.mlflow.tracking_uri, reason)
            self._is_down = True
            self._end_system_metrics()  # MLflow's monitor stops at the first failure
            return False
        if self._is_down:
            log.info("MLflow at %s answers again, and was told what had waited", self.mlflow.tracking_uri)
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
        """Send what waits; returns the run's id."""
        from mlflow.entities import Metric

        client = self.mlflow.client()
        run_id = self._run_id = self._run_id or self._run(client)
        while waiting := self._points[:METRICS_PER_BATCH]:
            new = {(point.name, point.step): point for point in reversed(waiting)}
            new = {key: point for key, point in new.items() if key not in self._told}
            if new:
                client.log_batch(run_id, metrics=[Metric(*point) for point in reversed(new.values())])
            self._told.update(new)
            del self._points[: len(waiting)]
        while self._files:
            client.log_artifact(run_id, str(self._files[0]))
            del self._files[0]
        return run_id

    def _run(self, client: "MlflowClient") -> str:
        """The run that was cut off, or else a new one, and in it what the training is made from. Returns its id."""
        from mlflow.entities import Param, RunTag

        about, found = self.about, self.mlflow.runs(self.about.fingerprint)  # we hold the artifact's lock
        tags = {**about.tags, "fingerprint": about.fingerprint, **self._parent()}
        params = dict(flatten(about.params, separator="."))
        if found and found[0].info.status != "FINISHED":
            run = found.pop(0)
            self._told = _told(client, run)
            params = {name: value for name, value in params.items() if name not in run.data.params}
            client.update_run(run.info.run_id, "RUNNING")
            client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        else:
            run = client.create_run(self.mlflow.experiment_id(), tags=tags, run_name=about.name)
        for other in found:
            if other.info.status == "RUNNING":  # of a call that was answered too late, or of an older version
                client.set_terminated(other.info.run_id, "KILLED")
        given = [Param(name, str(value)) for name, value in params.items()]
        for begin in range(0, len(given), PARAMS_PER_BATCH):
            client.log_batch(run.info.run_id, params=given[begin : begin + PARAMS_PER_BATCH])
        client.log_inputs(run.info.run_id, [_dataset(made) for made in about.inputs.values()])
        return run.info.run_id

    def _parent(self) -> dict[str, str]:
        """What is measured on a checkpoint stands below its training."""
        checkpoint = self.about.inputs.get("pretrained_checkpoint")
        trainings = self.mlflow.runs(checkpoint.fingerprint, "FINISHED") if checkpoint else []
        return {"mlflow.parentRunId": trainings[0].info.run_id} if trainings else {}


def _told(client: "MlflowClient", run: "Run") -> set[tuple[str, int]]:
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    return {(name, point.step) for name in names for point in client.get_metric_history(run.info.run_id, name)}


@contextmanager
def not_stopped_by(mlflow: Mlflow) -> Iterator[None]:
    """Turn MLflow's failures into warnings: the work that it should be told of goes on."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        log.warning("MLflow at %s: %s", mlflow.tracking_uri, str(error).partition("\n")[0])


def _dataset(made: Artifact) -> "DatasetInput":
    """An artifact as MLflow's dataset: where it lies, its fingerprint as the digest, its facts as the profile."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source, profile = json.dumps({"uri": str(made.path)}), json.dumps(numbers(made.facts))
    dataset = Dataset(made.kind, made.fingerprint, source_type="local", source=source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", made.kind)])
