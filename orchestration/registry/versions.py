"""Register checkpoints that passed every gate as versions of a model in MLflow's registry.

A version is a fill-mask model (logged_models.py) with its scores and lineage as tags and its card as description. The
alias `candidate` points to the newest version; champion.py decides about `champion`. Snapshots of the training
(pretrain.snapshot_every) become logged models without a version.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from bert_pipeline.core.printable import plain
from bert_pipeline.data.corpus.card import PAGE
from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.recipe import Recipe
from bert_pipeline.report.model_card import model_card, text_of
from bert_pipeline.stages import EVALUATION
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from orchestration.registry.champion import compare_with, current_champion, section, version_or_none
from orchestration.registry.logged_models import SEAL, Pages, changed_files, log_model
from orchestration.tracking.metadata import measured
from orchestration.tracking.mlflow_runs import DESCRIPTION, Mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "candidate"
RECIPE_DESCRIPTION = "recipe.description"
"""Tag of a registered model: the recipe's description unescaped. MLflow renders the model's own as Markdown."""
CODE_VERSION = "4"

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


def model_name(recipe: str) -> str:
    return f"bert-{recipe}"


def register(
    mlflow: Mlflow, recipe: Recipe, artifacts: Mapping[str, Artifact], tags: Mapping[str, str]
) -> "ModelVersion":
    """Return the version built from these artifacts; log and register it if it does not exist yet."""
    client, name = mlflow.client(), model_name(recipe.name)
    made_from = {kind: made.fingerprint for kind, made in artifacts.items()}
    fingerprint = artifact.fingerprint({"made_from": made_from, "code_version": CODE_VERSION})
    if known := client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{fingerprint}'"):
        version = known[0]
        log.info("registered_model: %s version %s exists already", name, version.version)
    else:
        tags = {**tags, **made_from, "fingerprint": fingerprint, "recipe": recipe.name}
        version = _log_and_register(mlflow, recipe, artifacts, tags)
        log.info("registered_model: %s version %s", name, version.version)
    client.set_registered_model_alias(name, ALIAS, version.version)
    return version


def _log_and_register(
    mlflow: Mlflow, recipe: Recipe, artifacts: Mapping[str, Artifact], tags: Mapping[str, str]
) -> "ModelVersion":
    from mlflow import set_tracking_uri

    # MLflow's SQL registry looks up logged models at the global tracking URI, not at its client's.
    set_tracking_uri(mlflow.tracking_uri)
    client, name = mlflow.client(), model_name(recipe.name)
    checkpoint, evaluations = artifacts["pretrained_checkpoint"], artifacts["evaluations"]
    card = model_card(
        name, recipe.model_dump(mode="json", exclude={"name"}), {kind: made.facts for kind, made in artifacts.items()}
    )
    champion, store = current_champion(client, name), evaluations.path.parents[1]
    compared, faults = compare_with(champion, tags, store) if champion else ({}, [])
    for fault in faults:
        log.warning("no comparison with the champion (version %s): %s", champion and champion.version, fault)
    if champion and compared:
        card += "\n" + section(champion, compared)
    [training, *_] = mlflow.runs(checkpoint.fingerprint, "FINISHED")
    pages = Pages(card, artifacts["raw_corpus"].path / PAGE)
    model = log_model(mlflow, training, name, checkpoint.path, checkpoint.facts["num_steps"], tags, pages)
    _log_snapshots(mlflow, training, name, artifacts, pages)
    differences = {
        f"champion/{task}/{name}": value for task, found in compared.items() for name, value in asdict(found).items()
    }
    _attach_scores(mlflow, client, model, evaluations, differences)
    tasks = {task: scores["pretrained"]["score_mean"] for task, scores in evaluations.facts["tasks"].items()}

    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, {RECIPE_DESCRIPTION: recipe.description}, plain(recipe.description))
    return client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=training.info.run_id,
        tags={**tags, "scores": json.dumps(tasks | evaluations.facts["heldout"]), SEAL: model.tags[SEAL]},
        description=f"{tags[DESCRIPTION]}\n\n{text_of(card)}",
        model_id=model.model_id,
    )


def _log_snapshots(mlflow: Mlflow, training: "Run", name: str, artifacts: Mapping[str, Artifact], pages: Pages) -> None:
    """Log the snapshots of the training (pretrain.snapshot_every), each with the metrics measured at its step."""
    checkpoint, client = artifacts["pretrained_checkpoint"], mlflow.client()
    [evaluation, *_] = mlflow.runs(artifacts["evaluations"].fingerprint, "FINISHED")
    measured = {row["step"]: row for row in read_rows(checkpoint.path / "metrics.jsonl") if "heldout_mlm_loss" in row}
    for path in sorted(checkpoint.path.glob("snapshots/step-????????")):
        step = int(path.name.removeprefix("step-"))
        tags = {checkpoint.kind: checkpoint.fingerprint, "recipe": name.removeprefix("bert-")}
        model = log_model(mlflow, training, f"{name}-{path.name}", path, step, tags, pages)
        scores = {
            f"{kind}/snapshot_score": made.facts["snapshots"][str(step)]
            for kind, made in artifacts.items()
            if kind.startswith(EVALUATION)
        }
        scores |= {each: value for each, value in measured.get(step, {}).items() if each.startswith("heldout_")}
        for each, value in scores.items():
            client.log_metric(evaluation.info.run_id, each, value, step=step, model_id=model.model_id)


def _attach_scores(
    mlflow: Mlflow, client: "MlflowClient", model: "LoggedModel", evaluations: Artifact, differences: dict[str, float]
) -> None:
    """Log each score and each difference from the champion as a metric of the model and of the evaluations' run."""
    [evaluation, *_] = mlflow.runs(evaluations.fingerprint, "FINISHED")
    scores = {f"{evaluations.kind}/{name}": value for name, value in measured(evaluations.facts).items()} | differences
    for name, value in scores.items():
        client.log_metric(evaluation.info.run_id, name, value, model_id=model.model_id)


def faults_of_run(client: "MlflowClient", version: "ModelVersion") -> Iterator[str]:
    """Yield a fault if the run that trained a version was deleted from MLflow."""
    from mlflow.exceptions import MlflowException

    here, run_id = f"version {version.version}", version.run_id or ""
    try:
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            yield f"{here}: its run {run_id} was deleted in MLflow; remedy: mlflow runs restore --run-id {run_id}"
    except MlflowException as error:
        yield f"{here}: its run {run_id} is gone from MLflow: {error}; remedy: delete the version and register it again"


def faults_of_files(client: "MlflowClient", version: "ModelVersion") -> Iterator[str]:
    """Yield a fault if the files of a version differ from the registered ones. Downloads and hashes all of them."""
    from mlflow.exceptions import MlflowException

    here, source = f"version {version.version}", version.source or ""
    try:
        changed = changed_files(client, version)
    except (MlflowException, OSError) as error:
        yield f"{here}: {source} cannot be read: {error}; remedy: delete the version and register it again"
        return
    if changed:
        yield (
            f"{here}: {', '.join(changed)} of {source} changed since registration; remedy: check who can write there, "
            "delete the version and register it again"
        )


def faults_of_champion(client: "MlflowClient", name: str, champion: str) -> Iterator[str]:
    """Yield the faults of the version that the alias `champion` points to: deleted, or its files changed."""
    if version := version_or_none(client, name, champion):
        yield from faults_of_files(client, version)
    else:
        yield f"the alias champion points to version {champion}, which is deleted; remedy: bert-pipeline promote"
