"""The model registry: a checkpoint that passed every gate becomes a version that anyone can load.

The version is a fill-mask model (BertForMaskedLM and its tokenizer). Its evaluations, its lineage and its card
hang on it; the alias `candidate` follows the newest.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pipeline import artifact
from bert_pipeline.artifact import Artifact
from bert_pipeline.data.card import PAGE
from bert_pipeline.model_card import model_card
from bert_pipeline.recipe import Recipe
from orchestration.champion import compare_with, find_champion, section
from orchestration.metadata import numbers
from orchestration.tracking import Mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "candidate"
CODE_VERSION = "2"

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


def model_name(recipe: str) -> str:
    return f"bert-{recipe}"


def register(
    mlflow: Mlflow, recipe: Recipe, artifacts: Mapping[str, Artifact], tags: Mapping[str, str]
) -> "ModelVersion":
    """The version made of these artifacts; logged only if it is not registered yet."""
    client, name = mlflow.client(), model_name(recipe.name)
    made_from = {kind: made.fingerprint for kind, made in artifacts.items()}
    fingerprint = artifact.fingerprint({"made_from": made_from, "code_version": CODE_VERSION})
    if known := client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{fingerprint}'"):
        version = known[0]
        log.info("registered_model: %s version %s stands already", name, version.version)
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
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    # MLflow's SQL registry looks a logged model up at the global address, not at its client's.
    set_tracking_uri(mlflow.tracking_uri)
    client, name = mlflow.client(), model_name(recipe.name)
    checkpoint, evaluations = artifacts["pretrained_checkpoint"], artifacts["evaluations"]
    card = model_card(
        name, recipe.model_dump(mode="json", exclude={"name"}), {kind: made.facts for kind, made in artifacts.items()}
    )
    champion = find_champion(client, name)
    compared = compare_with(champion, artifacts) if champion else {}
    if champion and compared:
        card += "\n" + section(champion, compared)
    [training, *_] = mlflow.runs(checkpoint.fingerprint, "FINISHED")
    model = client.create_logged_model(
        mlflow.experiment_id(), name, training.info.run_id, dict(tags), training.data.params, model_type="bert"
    )
    with tempfile.TemporaryDirectory() as folder:
        data_card = artifacts["raw_corpus"].path / PAGE
        _save(Path(folder, "model"), model, checkpoint, card, data_card)
        client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(training.info.run_id, [LoggedModelOutput(model.model_id, checkpoint.facts["num_steps"])])
    differences = {
        f"champion/{task}/{name}": value for task, found in compared.items() for name, value in asdict(found).items()
    }
    scores = _attach_scores(mlflow, client, model, evaluations, differences)

    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description=recipe.description)
    return client.create_model_version(
        name,
        source=f"models:/{model.model_id}",
        run_id=training.info.run_id,
        tags={**tags, "scores": json.dumps(scores)},
        description=card,
        model_id=model.model_id,
    )


def _save(path: Path, model: "LoggedModel", checkpoint: Artifact, card: str, data_card: Path) -> None:
    """The checkpoint in MLflow's transformers flavour, with its card, its plots and the data card of its corpus."""
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema
    from transformers import AutoTokenizer, BertForMaskedLM

    text = Schema([ColSpec("string")])
    mlflow.transformers.save_model(
        {
            "model": BertForMaskedLM.from_pretrained(checkpoint.path),
            "tokenizer": AutoTokenizer.from_pretrained(checkpoint.path),
        },
        str(path),
        task="fill-mask",
        model_card=ModelCard(card),
        signature=ModelSignature(inputs=text, outputs=text),
        # Given, because MLflow would load the model in a process of its own to find them.
        pip_requirements=[f"{name}=={installed_version(name)}" for name in ("torch", "transformers")],
        mlflow_model=Model(model.artifact_location, model.source_run_id, model_id=model.model_id),
    )
    (path / "LICENSE.txt").unlink(missing_ok=True)  # MLflow's guess: a page of the Hub that does not exist
    for shown in (*checkpoint.path.glob("*.png"), data_card):
        (path / shown.name).write_bytes(shown.read_bytes())


def _attach_scores(
    mlflow: Mlflow, client: "MlflowClient", model: "LoggedModel", evaluations: Artifact, differences: dict[str, float]
) -> dict[str, float]:
    """Each score of the evaluations, and each difference from the champion, as a metric of the model and their run."""
    [evaluation, *_] = mlflow.runs(evaluations.fingerprint, "FINISHED")
    scores = {f"{evaluations.kind}/{name}": value for name, value in numbers(evaluations.facts).items()} | differences
    for name, value in scores.items():
        client.log_metric(evaluation.info.run_id, name, value, model_id=model.model_id)
    return scores
