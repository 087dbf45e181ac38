"""The partitions of these tests: recipes/*.toml beside this file, known before orchestration is imported."""

import os
import sys
from pathlib import Path

import pytest

os.environ["BERT_PIPELINE_RECIPES"] = str(Path(__file__).parent / "recipes")
os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "1"


@pytest.fixture(autouse=True, scope="module")
def no_server():
    """The tests' runs and models go to databases of their own, whatever address another module's have left."""
    if mlflow := sys.modules.get("mlflow"):
        mlflow.set_tracking_uri(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(autouse=True, scope="module")
def no_address_of_another_module():
    """MLflow keeps the address of a registration for the whole process, and for those that it starts."""
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
