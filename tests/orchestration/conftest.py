"""Set the partitions (recipes/ and studies/ beside this file) before orchestration is imported; registries."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

from bert_pipeline.store import artifact

os.environ["BERT_PIPELINE_RECIPES"] = str(Path(__file__).parent / "recipes")
os.environ["BERT_PIPELINE_STUDIES"] = str(Path(__file__).parent / "studies")
os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "1"


@pytest.fixture(autouse=True, scope="module")
def no_tracking_uri():
    """Each module uses its own database. A registration sets MLflow's URI for this process and its children."""

    def reset():
        if mlflow := sys.modules.get("mlflow"):
            mlflow.set_tracking_uri(None)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        reset()
        yield
        reset()


@pytest.fixture(scope="module")
def registry_file(tmp_path_factory):
    """The SQLite database of a registry."""
    return tmp_path_factory.mktemp("registry") / "mlflow.db"


@pytest.fixture(scope="module")
def client(registry_file):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{registry_file}")


numbers = itertools.count()


@pytest.fixture
def name(client):
    """The name of a new registered model with three versions."""
    from promoters import create_versions

    name = f"bert-{next(numbers)}"
    create_versions(client, name, 3)
    return name


@pytest.fixture
def store(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def evaluate(client, store, name):
    """Tag a version with an evaluation per task, given its number of right answers or the arguments of `evaluation`."""

    def evaluate(version, **tasks):
        for task, given in tasks.items():
            settings = given if isinstance(given, dict) else {"right": given}
            client.set_model_version_tag(name, version, f"evaluation/{task}", evaluation(store, task, **settings))

    return evaluate


ANSWERS = {"GAD": "01", "BioASQ": ("no", "yes"), "ChemProt": "01"}


def evaluation(store, task, right, *, seeds=(1, 2), epochs=1, of=240, data="d"):
    """Build the artifact of an evaluation with `right` right answers of `of`; return its fingerprint."""
    kind, section = f"evaluation/{task}", {"num_epochs": epochs, "seeds": list(seeds)}
    inputs = {"pretrained_checkpoint": f"{right}-{of}", "task": data}
    origin = artifact.origin(kind, section, inputs, "1")

    def build(out):
        (out / "predictions").mkdir()
        for seed in seeds:
            rows = [
                f"{n}\t{ANSWERS[task][n % 2]}\t{ANSWERS[task][(n + ((n * 7 + seed) % of >= right)) % 2]}\n"
                for n in range(of)
            ]
            text = "id\tgold\tpredicted\n" + "".join(rows)
            (out / "predictions" / f"pretrained-seed{seed}-test.tsv").write_text(text)
        (out / "scores.json").write_text(json.dumps({"task": task, "seeds": list(seeds)}))
        return {"seeds": list(seeds)}

    return artifact.make(store / kind / artifact.fingerprint(origin), origin, build).fingerprint
