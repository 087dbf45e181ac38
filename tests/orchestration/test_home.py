"""A new home that several processes open at the same moment."""

import shutil
import subprocess
import sys
from pathlib import Path

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
