"""Log a Hugging Face directory as an MLflow model, with two flavours on the same weights.

`mlflow.transformers.load_model` returns a fill-mask pipeline. `mlflow.pyfunc.load_model` and `mlflow models serve` run
the service in fill_mask.py, which is stored as source code: the model contains no pickle.
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
"""File beside the weights with the SHA-256 of every other file; fill_mask.py reads it and repeats this name.

Its own SHA-256 is the tag of this name on the logged model and its versions. The tag is in MLflow's database, so write
access to the artifact store alone is not enough to change a model unnoticed.
"""


@dataclass(frozen=True)
class Pages:
    """Documents to store beside the weights."""

    card: str
    data_card: Path


def log_model(
    mlflow: Mlflow, training: "Run", name: str, path: Path, step: int, tags: Mapping[str, str], pages: Pages
) -> "LoggedModel":
    """Log a Hugging Face directory with all its files as a model of the run that trained it, at `step`."""
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
    """Return the files of a version that were changed, removed or added since registration. Downloads all files.

    Raises MlflowException or OSError if they cannot be downloaded.
    """
    from mlflow.artifacts import download_artifacts

    location = client.get_logged_model((version.source or "").removeprefix("models:/")).artifact_location
    with tempfile.TemporaryDirectory() as folder:
        path = Path(download_artifacts(location, dst_path=folder, tracking_uri=client.tracking_uri))
        if location.startswith("file:"):  # models are loaded in place from there, and loading writes these files
            shutil.rmtree(path / "__pycache__", ignore_errors=True)
            (path / "registered_model_meta").unlink(missing_ok=True)
        if not (path / SEAL).is_file() or file_digest(path / SEAL) != version.tags.get(SEAL):
            return [SEAL]  # its digests cannot be trusted
        sealed = (path / SEAL).read_text(encoding="utf-8")
        return sorted({line.partition("  ")[2] for line in {*sealed.splitlines()} ^ {*_digests(path)}})


def _save(path: Path, model: "LoggedModel", checkpoint: Path, pages: Pages) -> None:
    """Write the checkpoint in MLflow's transformers flavour, with its card, its plots and the data card of its corpus;
    add the pyfunc flavour, the service in fill_mask.py, on the same files.
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
    params = [ParamSpec("top_k", "long", 5), ParamSpec("return_embeddings", "boolean", False)]
    mlflow.transformers.save_model(
        {
            "model": BertForMaskedLM.from_pretrained(checkpoint, use_safetensors=True),
            "tokenizer": AutoTokenizer.from_pretrained(checkpoint),
        },
        str(path),
        task="fill-mask",
        model_card=ModelCard(pages.card),
        signature=ModelSignature(Schema([ColSpec("string")]), Schema(answer), ParamSchema(params)),
        # Explicit, because MLflow would load the model in another process to infer them.
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
    (path / "LICENSE.txt").unlink(missing_ok=True)  # MLflow guesses it: a link to a page of the Hub that does not exist
    for shown in (*checkpoint.glob("*.png"), pages.data_card):
        (path / shown.name).write_bytes(shown.read_bytes())
    _seal(path)


def _seal(path: Path) -> None:
    """Write the digests that the service verifies before it loads anything."""
    (path / SEAL).write_text("".join(f"{line}\n" for line in _digests(path)), encoding="utf-8")


def _digests(path: Path) -> list[str]:
    """The digest and the name of every file but the seal, in the format of sha256sum."""
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return [f"{file_digest(path / name)}  {name}" for name in files if name != SEAL]


def _released(package: str) -> str:
    """The installed version without its local part, as package indexes list it: 2.13.0 for 2.13.0+cpu."""
    return installed_version(package).partition("+")[0]
