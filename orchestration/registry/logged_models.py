"""Log a Hugging Face directory as an MLflow model, with two flavours on the same weights.

`mlflow.transformers.load_model` returns a pipeline: fill-mask, or that of the task of a task model.
`mlflow.pyfunc.load_model` and `mlflow models serve` run the service in service.py, which is stored as source code: the
model contains no pickle.
"""

import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bert_pipeline.core.files import file_digest
from bert_pipeline.report.hub import hub_task
from orchestration.tracking.mlflow_runs import Mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

SERVICE = Path(__file__).with_name("service.py")
SEAL = "SHA256SUMS"
"""File beside the weights with the SHA-256 of every other file; service.py reads it and repeats this name.

Its own SHA-256 is the tag of this name on the logged model and its versions. The tag is in MLflow's database, so write
access to the artifact store alone is not enough to change a model unnoticed.
"""


class Pages(NamedTuple):
    """Documents to store beside the weights."""

    card: str
    data_card: Path | None = None


class Served(NamedTuple):
    """How a directory is loaded and served."""

    task: str
    """Of a pipeline of transformers."""
    model: Any
    signature: "ModelSignature"
    code: tuple[Path, ...]
    """The service, and the file that it imports."""


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
    with tempfile.TemporaryDirectory() as folder:
        return download(client, version, Path(folder))[1]


def download(client: "MlflowClient", version: "ModelVersion", folder: Path) -> tuple[Path, list[str]]:
    """Download a version into `folder`; return its path and its files that changed since registration.

    Raises MlflowException or OSError if they cannot be downloaded.
    """
    from mlflow.artifacts import download_artifacts

    location = client.get_logged_model((version.source or "").removeprefix("models:/")).artifact_location
    path = Path(download_artifacts(location, dst_path=str(folder), tracking_uri=client.tracking_uri))
    if location.startswith("file:"):  # models are loaded in place from there, and loading writes these files
        shutil.rmtree(path / "__pycache__", ignore_errors=True)
        (path / "registered_model_meta").unlink(missing_ok=True)
    if not (path / SEAL).is_file() or file_digest(path / SEAL) != version.tags.get(SEAL):
        return path, [SEAL]  # its digests cannot be trusted
    sealed = (path / SEAL).read_text(encoding="utf-8")
    return path, sorted({line.partition("  ")[2] for line in {*sealed.splitlines()} ^ {*_digests(path)}})


def _save(path: Path, model: "LoggedModel", checkpoint: Path, pages: Pages) -> None:
    """Write the checkpoint in MLflow's transformers flavour, with its cards and plots; add the pyfunc flavour, the
    service, on the same files. `model` becomes a whole directory of transformers, with tokenizer and README.md.
    """
    import mlflow.transformers
    from huggingface_hub import ModelCard
    from mlflow.models import Model
    from transformers import AutoConfig, AutoTokenizer

    task = getattr(AutoConfig.from_pretrained(checkpoint), "task", None)
    served = _task_model(checkpoint, task["kind"]) if task else _pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    mlflow.transformers.save_model(
        {"model": served.model, "tokenizer": tokenizer},
        str(path),
        task=served.task,
        model_card=ModelCard(pages.card),
        signature=served.signature,
        # Explicit, because MLflow would load the model in another process to infer them.
        pip_requirements=[f"{name}=={_released(name)}" for name in ("torch", "transformers")],
        mlflow_model=Model(model.artifact_location, model.source_run_id, model_id=model.model_id),
    )
    tokenizer.save_pretrained(path / "model")
    (path / "model" / "README.md").write_text(pages.card, encoding="utf-8")
    for code in served.code:
        shutil.copy(code, path)
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
    for shown in (*checkpoint.glob("*.png"), *filter(None, [pages.data_card])):
        (path / shown.name).write_bytes(shown.read_bytes())
    _seal(path)


def _pretrained(checkpoint: Path) -> Served:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array, Object, Property
    from transformers import BertForMaskedLM

    fill = Object([Property("token", DataType.string), Property("score", DataType.double)])
    answer: list[ColSpec | TensorSpec] = [
        ColSpec(Array(Array(fill)), "fills"),
        ColSpec(Array(DataType.double), "embedding", required=False),
    ]
    params = [ParamSpec("top_k", "long", 5), ParamSpec("return_embeddings", "boolean", False)]
    model = BertForMaskedLM.from_pretrained(checkpoint, use_safetensors=True)
    signature = ModelSignature(Schema([ColSpec("string")]), Schema(answer), ParamSchema(params))
    return Served("fill-mask", model, signature, (SERVICE,))


def _task_model(directory: Path, kind: str) -> Served:
    """annotate.py describes the answers."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, Map, Object, Property
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    from bert_pipeline.evaluation.task_models import annotate

    places = [Property(name, DataType.long) for name in ("start", "end")]
    words = [Property(name, DataType.string) for name in ("type", "text")]
    spans = ColSpec(Array(Object([*places, *words, Property("score", DataType.double)])), "spans")
    scores = ColSpec(Map(DataType.double), "scores")
    answers: dict[str, list[ColSpec | TensorSpec]] = {
        **{tagging: [spans] for tagging in annotate.TAGGING},
        "similarity": [ColSpec(DataType.double, "value")],
        "documents": [ColSpec(Array(DataType.string), "labels"), scores],
    }
    answer = answers.get(kind, [ColSpec(DataType.string, "label"), scores])
    fields = annotate.FIELDS.get(kind)
    inputs: list[ColSpec | TensorSpec] = [ColSpec("string", name) for name in fields] if fields else [ColSpec("string")]
    auto = AutoModelForTokenClassification if kind in annotate.TAGGING else AutoModelForSequenceClassification
    model = auto.from_pretrained(directory, use_safetensors=True)
    code = (SERVICE, Path(annotate.__file__))
    return Served(hub_task(kind), model, ModelSignature(Schema(inputs), Schema(answer)), code)


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
