"""MLflow: one run for each training that really takes place, with a status that is true.

Through MlflowClient and explicit ids alone: MLflow's global "active run" is closed as FINISHED when a process
crashes. A server that cannot be reached does not stop a training: values wait, and are sent when it is back.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from bert_pipeline.artifact import Artifact, Facts
from orchestration.metadata import flatten, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

EXPERIMENT = "bert-pipeline"
SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_AFTER_A_FAILURE = 60.0
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits for one call of log_batch

log = logging.getLogger("bert_pipeline.tracking")  # under the library's name, so that Dagster shows it


@dataclass(frozen=True)
class About:
    """What a run is about."""

    name: str
    kind: str
    fingerprint: str
    """Kind and fingerprint of the artifact that it makes."""
    inputs: Mapping[str, Artifact]
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    files: Sequence[Path] = ()
    """Of other artifacts, to lie beside its own: the data card of the corpus."""


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
        return client.create_experiment(EXPERIMENT, None if served else Path(self.artifacts).as_uri())

    def runs(self, fingerprint: str, status: str) -> list["Run"]:
        """The runs that made, or tried to make, an artifact; the newest first."""
        return self.client().search_runs(
            [self.experiment_id()],
            f"tags.fingerprint = '{fingerprint}' and attributes.status = '{status}'",
            order_by=["attributes.start_time DESC"],
        )

    def run_url(self, run: "Run") -> str:
        return f"{self.ui}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"

    def model_url(self, name: str, version: str) -> str:
        return f"{self.ui}/#/models/{name}/versions/{version}"

    @contextmanager
    def track(self, about: About) -> Iterator["Tracked"]:
        """A run that lasts as long as the block: FINISHED, FAILED, or KILLED where someone stopped it."""
        tracked = Tracked(self, about)
        try:
            tracked.send()
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

    def __init__(self, mlflow: Mlflow, about: About) -> None:
        self.mlflow, self.about = mlflow, about
        self.run_id: str | None = None
        self._described = False
        self._metrics: list[Metric] = []
        self._files = list(about.files)
        self._next_batch = 0.0
        self._system_metrics: Any = None

    def on_row(self, row: Mapping[str, Any]) -> None:
        """One row of metrics: its words name the curves, its numbers are their points at `step`."""
        words = [str(value) for value in row.values() if isinstance(value, str)]
        words += [f"seed-{row['seed']}"] if "seed" in row else []
        points = {name: value for name, value in numbers(row).items() if name not in ("step", "seed")}
        self._add("/".join([*words, ""]), points, row["step"])
        if time.monotonic() >= self._next_batch:
            self.send()

    def report(self, facts: Facts, directory: Path) -> None:
        """What came out: facts as final values, and the pictures and texts of the directory."""
        self._add(f"{self.about.kind}/", numbers(facts), step=0)
        self._files += [*sorted(directory.glob("*.png")), *sorted(directory.glob("*.md"))]

    def send(self) -> None:
        """Send what waits; where that fails, again after a minute."""
        self._next_batch = time.monotonic() + SECONDS_AFTER_A_FAILURE
        with not_stopped_by(self.mlflow):
            client, run_id = self.mlflow.client(), self._begin()
            while self._metrics:
                client.log_batch(run_id, metrics=self._metrics[:METRICS_PER_BATCH])
                del self._metrics[:METRICS_PER_BATCH]
            while self._files:
                client.log_artifact(run_id, str(self._files[0]))
                del self._files[0]
            self._next_batch = time.monotonic() + SECONDS_BETWEEN_BATCHES

    def end(self, status: str) -> None:
        if self._system_metrics:
            self._system_metrics.finish()
        self.send()
        with not_stopped_by(self.mlflow):
            if self.run_id:
                self.mlflow.client().set_terminated(self.run_id, status)

    def _add(self, prefix: str, points: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._metrics += [
            Metric(prefix + name, float(value), now, step) for name, value in points.items() if math.isfinite(value)
        ]

    def _begin(self) -> str:
        """Create the run and say what it is made from, unless that is done. Returns its id."""
        client, about = self.mlflow.client(), self.about
        if self.run_id is None:
            for crashed in self.mlflow.runs(about.fingerprint, "RUNNING"):  # the artifact's lock is ours
                client.set_terminated(crashed.info.run_id, "KILLED")
            tags = {**about.tags, "fingerprint": about.fingerprint}
            run = client.create_run(self.mlflow.experiment_id(), tags=tags, run_name=about.name)
            self.run_id = run.info.run_id
        if not self._described:
            self._describe(client, self.run_id)
            self._described = True
        return self.run_id

    def _describe(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Param
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        params = [Param(name, str(value)) for name, value in flatten(self.about.params, separator=".")]
        for begin in range(0, len(params), PARAMS_PER_BATCH):
            client.log_batch(run_id, params=params[begin : begin + PARAMS_PER_BATCH])
        client.log_inputs(run_id, [_dataset(made) for made in self.about.inputs.values()])
        self._system_metrics = SystemMetricsMonitor(run_id, tracking_uri=self.mlflow.tracking_uri)
        self._system_metrics.start()


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
