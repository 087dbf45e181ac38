"""A Hugging Face directory as a logged model of MLflow: what lies in it, and what it can be loaded as.

`mlflow.transformers.load_model` gives the fill-mask pipeline. `mlflow.pyfunc.load_model` and `mlflow models serve` give
the service of fill_mask.py, on the same weights; its code is kept as code, there is no pickle in it.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pipeline.core.files import file_digest
from orchestration.tracking.mlflow_runs import Mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

SERVICE = Path(__file__).with_name("fill_mask.py")
SEAL = "SHA256SUMS"
"""Beside the weights: the SHA-256 of every file. fill_mask.py, which must import nothing from here, reads it.

Its own SHA-256 is the tag of this name, of the logged model and of its versions: it lies in MLflow's database, and who
can change files of the store alone cannot change both.
"""


@dataclass(frozen=True)
class Pages:
    """What lies beside the weights, for people."""

    card: str
    data_card: Path


def log_model(
    mlflow: Mlflow, training: "Run", name: str, path: Path, step: int, tags: Mapping[str, str], pages: Pages
) -> "LoggedModel":
    """A Hugging Face directory as a logged model of the run that trained it, with all its files."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client, run_id = mlflow.client(), training.info.run_id
    model = client.create_logged_model(
        mlflow.experiment_id(), name, run_id, {**tags, "step": str(step)}, training.data.params, model_type="bert"
    )
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder, "model"), model, path, pages)
        client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
        client.set_logged_model_tags(model.model_id, {SEAL: file_digest(Path(folder, "model", SEAL))})
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    return client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def changed_files(client: "MlflowClient", version: "ModelVersion") -> list[str]:
    """The files of a version that are not what was registered: changed, gone or added. All of them are fetched.

    Raises MlflowException or OSError where they cannot be fetched.
    """
    from mlflow.artifacts import download_artifacts

    place = client.get_logged_model((version.source or "").removeprefix("models:/")).artifact_location
    with tempfile.TemporaryDirectory() as folder:
        path = Path(download_artifacts(place, dst_path=folder, tracking_uri=client.tracking_uri))
        if place.startswith("file:"):  # a model is loaded from there as it lies, and these are written beside it
            shutil.rmtree(path / "__pycache__", ignore_errors=True)
            (path / "registered_model_meta").unlink(missing_ok=True)
        if not (path / SEAL).is_file() or file_digest(path / SEAL) != version.tags.get(SEAL):
            return [SEAL]  # so nothing that it says counts
        sealed = (path / SEAL).read_text(encoding="utf-8")
        return sorted({line.partition("  ")[2] for line in {*sealed.splitlines()} ^ {*_digests(path)}})


def _save(path: Path, model: "LoggedModel", checkpoint: Path, pages: Pages) -> None:
    """The checkpoint in MLflow's transformers flavour, with its card, its plots and the data card of its corpus; and
    as the service of fill_mask.py on the same files.
    """
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, Object, Property
    from transformers import AutoTokenizer, BertForMaskedLM

    fill = Object([Property("token", DataType.string), Property("score", DataType.double)])
    answer: list[ColSpec | TensorSpec] = [
        ColSpec(Array(Array(fill)), "fills"),
        ColSpec(Array(DataType.double), "embedding", required=False),
    ]
    asked = [ParamSpec("top_k", "long", 5), ParamSpec("return_embeddings", "boolean", False)]
    mlflow.transformers.save_model(
        {
            "model": BertForMaskedLM.from_pretrained(checkpoint, use_safetensors=True),
            "tokenizer": AutoTokenizer.from_pretrained(checkpoint),
        },
        str(path),
        task="fill-mask",
        model_card=ModelCard(pages.card),
        signature=ModelSignature(Schema([ColSpec("string")]), Schema(answer), ParamSchema(asked)),
        # Given, because MLflow would load the model in a process of its own to find them.
        pip_requirements=[f"{name}=={_released(name)}" for name in ("torch", "transformers")],
        mlflow_model=Model(model.artifact_location, model.source_run_id, model_id=model.model_id),
    )
    shutil.copy(SERVICE, path)
    saved = Model.load(str(path))
    mlflow.pyfunc.add_to_model(
        saved,
        loader_module="mlflow.pyfunc.loaders.code_model",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_code_path=SERVICE.name,
        artifacts={"model": {"path": "model"}, "tokenizer": {"path": "components/tokenizer"}},
    )
    saved.save(str(path / "MLmodel"))
    (path / "LICENSE.txt").unlink(missing_ok=True)  # MLflow's guess: a page of the Hub that does not exist
    for shown in (*checkpoint.glob("*.png"), pages.data_card):
        (path / shown.name).write_bytes(shown.read_bytes())
    _seal(path)


def _seal(path: Path) -> None:
    """Write the digests that the service compares with before it loads anything."""
    (path / SEAL).write_text("".join(f"{line}\n" for line in _digests(path)), encoding="utf-8")


def _digests(path: Path) -> list[str]:
    """Of every file but the seal, as sha256sum tells it."""
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return [f"{file_digest(path / name)}  {name}" for name in files if name != SEAL]


def _released(package: str) -> str:
    """The version that is installed, as package indexes know it: 2.13.0 of 2.13.0+cpu."""
    return installed_version(package).partition("+")[0]
