"""Register task models (bert_pipeline/evaluation/task_models/build.py) as models of their own in MLflow's registry.

The tags of a version name its task and what it was fine-tuned from: the version of the pretrained model, with that
version's checkpoint and evaluation on the task. So `lineage` follows it to the text, and the promotion rule compares
two task models by the evaluations of the models below them, over all seeds.
"""

import atexit
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pipeline.core.printable import plain
from bert_pipeline.report.model_card import text_of
from bert_pipeline.stages import EVALUATION
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from orchestration.registry.ledger import PromotionError
from orchestration.registry.logged_models import SEAL, Pages, download, log_model
from orchestration.registry.versions import ALIAS
from orchestration.tracking.metadata import numbers
from orchestration.tracking.mlflow_runs import Mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KIND = "task_model"
TASK, PRETRAINED = "task", "pretrained_model"
"""Tags of a version: the name of the task, and the version that was fine-tuned, as models:/NAME/VERSION."""

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


def register_task_model(mlflow: Mlflow, directory: Path, name: str | None) -> "ModelVersion":
    """Return the version of a task model; log and register it if it does not exist yet.

    `name`: by default that of the pretrained model with the task, or bert-TASK if no registered model was fine-tuned.
    """
    from mlflow import set_tracking_uri

    made, client = artifact.load(directory, KIND), mlflow.client()
    # MLflow's SQL registry looks up logged models at the global tracking URI, not at its client's.
    set_tracking_uri(mlflow.tracking_uri)
    pretrained, task = _pretrained(client, made), made.facts["task"]
    name = name or f"{pretrained.name if pretrained else 'bert'}-{task}"
    known = client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{made.fingerprint}'")
    version = known[0] if known else _log_and_register(mlflow, made, name, pretrained)
    log.info("%s version %s%s", name, version.version, " exists already" if known else "")
    client.set_registered_model_alias(name, ALIAS, version.version)
    return version


def task_model_directory(mlflow: Mlflow, version: "ModelVersion") -> Path:
    """Download a registered task model; return its directory, which lasts as long as this process.

    Raises PromotionError if it is no task model, or its files changed since registration.
    """
    here = f"models:/{version.name}/{version.version}"
    if TASK not in version.tags:
        raise PromotionError(f"{here} is not fine-tuned on a task; remedy: bert-pipeline finetune --model {here}")
    folder = tempfile.mkdtemp(prefix="bert-pipeline-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path, changed = download(mlflow.client(), version, Path(folder))
    if changed:
        raise PromotionError(
            f"{here}: {', '.join(changed)} changed since registration; remedy: check who can write to "
            f"{version.source}, and register it again"
        )
    return path / "model"


def _pretrained(client: "MlflowClient", made: Artifact) -> "ModelVersion | None":
    """The newest version of the checkpoint that was fine-tuned, preferably one evaluated on the task."""
    if not (checkpoint := made.record["origin"]["inputs"].get("pretrained_checkpoint")):
        return None
    versions = client.search_model_versions(f"tags.pretrained_checkpoint = '{checkpoint}'")
    found = [each for each in versions if TASK not in each.tags]
    kind = EVALUATION + made.facts["task"]
    return max(found, key=lambda each: (kind in each.tags, int(each.version)), default=None)


def _log_and_register(mlflow: Mlflow, made: Artifact, name: str, pretrained: "ModelVersion | None") -> "ModelVersion":
    client, task = mlflow.client(), made.facts["task"]
    inputs = made.record["origin"]["inputs"]
    tags = {TASK: task, KIND: made.fingerprint, "fingerprint": made.fingerprint}
    if checkpoint := inputs.get("pretrained_checkpoint"):
        tags["pretrained_checkpoint"] = checkpoint
    if pretrained:
        tags[PRETRAINED] = f"models:/{pretrained.name}/{pretrained.version}"
        kept = ("recipe", "evaluations", EVALUATION + task)
        tags |= {kind: pretrained.tags[kind] for kind in kept if kind in pretrained.tags}
    card = (made.path / "README.md").read_text(encoding="utf-8")
    run = _run(mlflow, made, name, tags, pretrained)
    model = log_model(mlflow, run, name, made.path, 0, tags, Pages(card))
    for metric, value in run.data.metrics.items():
        client.log_metric(run.info.run_id, metric, value, model_id=model.model_id)
    client.set_terminated(run.info.run_id)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=f"Fine-tuned on {plain(task)}: {plain(made.facts['title'])}")
    scores = {split: made.facts[split]["score"] for split in ("dev", "test")}
    return client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=run.info.run_id,
        tags={**tags, "scores": json.dumps(scores), SEAL: model.tags[SEAL]},
        description=text_of(card),
        model_id=model.model_id,
    )


def _run(mlflow: Mlflow, made: Artifact, name: str, tags: dict[str, str], pretrained: "ModelVersion | None") -> "Run":
    """An MLflow run with the settings and scores of the fine-tuning, below the pretraining; it is still open."""
    from mlflow.entities import LoggedModelInput, Metric, Param

    client, facts = mlflow.client(), made.facts
    parent = {"mlflow.parentRunId": pretrained.run_id} if pretrained and pretrained.run_id else {}
    run_id = client.create_run(mlflow.experiment_id(), tags={**tags, **parent}, run_name=f"finetune {name}").info.run_id
    settings = ("task", "learning_rate", "batch_size", "num_epochs", "seed", "max_seq_length")
    now, scores = round(time.time() * 1000), numbers({split: facts[split] for split in ("dev", "test")})
    losses = [Metric("epoch_loss", value, now, epoch) for epoch, value in enumerate(facts["epoch_losses"], start=1)]
    metrics = [*(Metric(each, value, now, 0) for each, value in scores.items()), *losses]
    client.log_batch(run_id, metrics, [Param(each, str(facts[each])) for each in settings])
    if pretrained and (source := pretrained.source or "").startswith("models:/"):
        client.log_inputs(run_id, models=[LoggedModelInput(source.removeprefix("models:/"))])
    return client.get_run(run_id)
