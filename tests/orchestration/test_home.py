"""A new home that several processes open at the same moment, and a home that was moved."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from orchestration.workshop import resources

ROOT = Path(__file__).parents[2]

OPEN = """
import os, sys
import dagster as dg
import orchestration.storage

for folder in sys.argv[1:]:
    print("ready", flush=True)
    sys.stdin.readline()
    os.environ["DAGSTER_HOME"] = folder
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs() == []
        print(instance.get_ref().storage_data.class_name, flush=True)
"""

EXPERIMENT = """
import sys
from pathlib import Path
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
from orchestration.workshop import resources

for home in sys.argv[1:]:
    print("ready", flush=True)
    sys.stdin.readline()
    print(resources(Path(home))["workshop"].mlflow.experiment_id(), flush=True)
"""


def in_each(code: str, folders: list[Path]) -> list[list[str]]:
    """Run the program in three processes. They open each folder at the same moment; return what they print then."""
    command = [sys.executable, "-c", code, *map(str, folders)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    printed = []
    try:
        for _ in folders:
            assert [process.stdout.readline() for process in started] == ["ready\n"] * 3
            for process in started:
                process.stdin.write("\n")
                process.stdin.flush()
            printed.append([process.stdout.readline().strip() for process in started])
        assert [process.wait() for process in started] == [0, 0, 0]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return printed


def new_folders(folder: Path, count: int) -> list[Path]:
    folders = [folder / str(number) for number in range(count)]
    for each in folders:
        each.mkdir()
    return folders


def test_dagsters_tables_are_created_once(tmp_path):
    """With Dagster's own storage, one of the processes fails in most of these homes."""
    folders = new_folders(tmp_path, 4)
    for folder in folders:
        shutil.copy(ROOT / "infra" / "dagster" / "dagster.yaml", folder)
    assert in_each(OPEN, folders) == [["OnceCreatedStorage"] * 3] * 4


def test_mlflows_tables_and_experiment_are_created_once(tmp_path):
    assert in_each(EXPERIMENT, new_folders(tmp_path, 1)) == [["1"] * 3]


def test_make_ui_and_a_run_create_mlflows_tables_once(tmp_path):
    """`bert-pipeline ui` opens the database before `mlflow server`, which has no lock."""
    code = f"from orchestration.tracking.database import open_client; open_client('sqlite:///{tmp_path}/mlflow.db')"
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT name FROM experiments").fetchall() == [("Default",)]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A home, in a path with blanks, with a run and a registered model that have files."""
    from mlflow import set_tracking_uri

    tmp_path = tmp_path_factory.mktemp("original")
    home = tmp_path / "the first home, 100 %"
    home.mkdir()
    mlflow = resources(home)["workshop"].mlflow
    set_tracking_uri(mlflow.tracking_uri)  # MLflow's registry looks up the model there
    client = mlflow.client()
    run = client.create_run(mlflow.experiment_id())
    client.log_text(run.info.run_id, "of the run", "note.txt")
    model = client.create_logged_model(mlflow.experiment_id(), "bert-tiny", run.info.run_id)
    (tmp_path / "weights.bin").write_text("of the model")
    client.log_model_artifact(model.model_id, str(tmp_path / "weights.bin"))
    client.create_registered_model("bert-tiny")
    client.create_model_version("bert-tiny", f"models:/{model.model_id}", run.info.run_id, model_id=model.model_id)
    set_tracking_uri(None)
    return home


@pytest.fixture
def home(original, tmp_path):
    return shutil.copytree(original, tmp_path / "first home")


def contents(home: Path) -> tuple[str, str, str]:
    """The run's file, the model's file, and where a new run would put its files."""
    from mlflow.artifacts import download_artifacts

    mlflow = resources(home)["workshop"].mlflow
    [run, *_] = mlflow.client().search_runs([mlflow.experiment_id()], order_by=["attributes.start_time ASC"])
    version = mlflow.client().get_model_version("bert-tiny", "1")
    location = mlflow.client().get_logged_model(version.source.removeprefix("models:/")).artifact_location
    weights = Path(download_artifacts(location, tracking_uri=mlflow.tracking_uri), "weights.bin").read_text()
    note = Path(mlflow.client().download_artifacts(run.info.run_id, "note.txt")).read_text()
    new = mlflow.client().create_run(mlflow.experiment_id()).info.artifact_uri
    return note, weights, new.partition("/mlartifacts/")[0]


def test_a_moved_or_copied_home_works(home, tmp_path, caplog):
    assert contents(home) == ("of the run", "of the model", home.as_uri()), "a copy, though the original exists"
    caplog.clear()
    moved = tmp_path / "another disk" / "workspace"
    shutil.copytree(home, moved)
    shutil.rmtree(home)
    assert contents(moved) == ("of the run", "of the model", moved.as_uri())
    assert f"the home was moved; 5 locations now begin with {moved.as_uri()}/mlartifacts instead" in caplog.text
    assert not home.exists()
    caplog.clear()
    assert contents(moved) == ("of the run", "of the model", moved.as_uri())
    assert "moved" not in caplog.text


def test_a_link_at_the_old_path_keeps_it(home, tmp_path, caplog):
    resources(home)
    caplog.clear()
    moved = tmp_path / "disk"
    shutil.move(home, moved)
    home.symlink_to(moved)
    for path in (home, moved):
        assert contents(path) == ("of the run", "of the model", home.as_uri())
    assert "moved" not in caplog.text


def test_a_damaged_database_is_left_alone(tmp_path, caplog):
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    resources(tmp_path)
    assert "cannot check" in caplog.text and (tmp_path / "mlflow.db").read_bytes() == b"no database" * 100
