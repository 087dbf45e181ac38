"""Task models of each kind in the registry, answering as `mlflow models serve` would, and refused if changed."""

from pathlib import Path

import pytest
from evaluation.conftest import TASKS, save_model, write_task
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from bert_pipeline.evaluation.task_models.annotate import Annotator
from bert_pipeline.evaluation.task_models.build import build_task_model
from bert_pipeline.recipe import TaskRecipe
from orchestration.registry.ledger import PromotionError
from orchestration.registry.promotion import promote
from orchestration.registry.task_models import register_task_model, task_model_directory
from orchestration.tracking.mlflow_runs import Mlflow

KINDS = ("similarity", "documents")
INPUTS = {
    "similarity": [("pain with", "same effect"), ("no effect", "unlike pain")],
    "documents": [("growth of vessels",), ("no pain",)],
}


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return Mlflow(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "files"), ui="http://ui")


@pytest.fixture(scope="module")
def directories(tmp_path_factory, evaluation_in_this_process):
    """The task model of each kind, hardly trained."""
    root = tmp_path_factory.mktemp("tasks")
    (root / "tasks").mkdir()
    model = save_model(root / "pretrained")
    built = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PIPELINE_TASKS", str(root / "tasks"))
        patch.setenv("BERT_PIPELINE_DATA", str(root))
        for kind in KINDS:
            name = f"small-{kind}"
            head = f'title = "*t*"\nversion = "1"\nterms = "none"\nfolder = "{name}"\n'
            (root / "tasks" / f"{name}.toml").write_text(head + TASKS[name][0])
            write_task(name, root / name)
            settings = TaskRecipe(name=name, learning_rate=3e-3, num_epochs=1, max_seq_length=32, seeds=(1,))
            built[kind] = build_task_model(settings, model, None, root / f"{kind}-model").path
    return built


@pytest.mark.parametrize("kind", KINDS)
def test_the_service_answers_like_the_directory(kind, directories, mlflow, tmp_path):
    version = register_task_model(mlflow, directories[kind], None)
    assert (version.name, int(version.version)) == (f"bert-small-{kind}", 1)
    annotator, texts = Annotator(directories[kind], directories[kind]), INPUTS[kind]
    fields = annotator.fields
    served = pyfunc.load_model(f"models:/{version.name}@candidate")
    client = TestClient(scoring_server.init(served))
    records = [dict(zip(fields, text, strict=True)) for text in texts]
    asked = {"dataframe_records": records} if len(fields) == 2 else {"inputs": [text for [text] in texts]}
    answers = client.post("/invocations", json=asked).json()["predictions"]
    for answer, expected in zip(answers, annotator.answers(texts), strict=True):
        assert answer.keys() == expected.keys()
        for name in answer:
            assert answer[name] == (expected[name] if "label" in name else pytest.approx(expected[name], abs=1e-5))
    stored = mlflow.client().get_model_version(version.name, "1")
    path = task_model_directory(mlflow, stored)
    assert Annotator(path, path).answers(texts) == annotator.answers(texts), "one directory with all that it needs"
    assert (path / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")


def test_a_pair_that_does_not_fit_is_a_bad_request(directories, mlflow):
    version = register_task_model(mlflow, directories["similarity"], "mine")
    client = TestClient(scoring_server.init(pyfunc.load_model(f"models:/mine/{version.version}")))
    answer = client.post("/invocations", json={"dataframe_records": [{"text": "pain " * 40, "text_pair": "pain"}]})
    assert answer.status_code == 400 and "row 0: the pair has 44 tokens, and 32 are possible" in answer.text


def test_a_changed_task_model_is_neither_served_nor_used_nor_promoted(directories, mlflow):
    client = mlflow.client()
    version = register_task_model(mlflow, directories["documents"], "changed")
    stored = client.get_model_version("changed", str(version.version))
    location = client.get_logged_model(stored.source.removeprefix("models:/")).artifact_location
    weights = Path(location.removeprefix("file://"), "annotate.py")
    weights.write_text(weights.read_text() + "\n")
    with pytest.raises(MlflowException, match=r"annotate\.py changed since registration; remedy"):
        pyfunc.load_model("models:/changed@candidate")
    with pytest.raises(PromotionError, match=r"models:/changed/1: annotate\.py changed since registration; remedy"):
        task_model_directory(mlflow, stored)
    with pytest.raises(PromotionError, match=r"annotate\.py; remedy"):
        promote(client, "changed", "1", "a look", None)
