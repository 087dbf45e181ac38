"""The home of the graph on this machine: created once, and the environment of the programs that use it.

`make home` runs this file.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from bert_pipeline import settings

INSTANCE = Path(__file__).with_name("dagster.yaml")
HEADER = "# Written by bert-pipeline, which replaces this file with newer versions until you edit it: {}\n"

GRAPH_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # If the code server is down while the daemon evaluates a backfill, the daemon retries.
    "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR": "1",
    # MLflow's job execution starts eight processes that this project does not use, and doubles the start-up time.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def dagster_home(home: Path) -> Path:
    return home / "dagster"


def prepare(home: Path) -> Path:
    """Create the home, and in it Dagster's home with dagster.yaml; return Dagster's home.

    A dagster.yaml that a person edited stays. Several processes may prepare one home at the same time.
    """
    folder = dagster_home(home)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "home.lock"):
        file, newest = folder / "dagster.yaml", _signed(INSTANCE.read_text(encoding="utf-8"))
        if not file.exists() or (_is_unedited(file) and file.read_text(encoding="utf-8") != newest):
            partial = file.with_suffix(".part")
            partial.write_text(newest, encoding="utf-8")
            partial.replace(file)
    return folder


def _signed(content: str) -> str:
    return HEADER.format(hashlib.sha256(content.encode()).hexdigest()) + content


def _is_unedited(file: Path) -> bool:
    written = file.read_text(encoding="utf-8")
    return written == _signed(written.partition("\n")[2])


def environment(home: Path, defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of Dagster's and MLflow's programs; `defaults` apply where the user has set nothing.

    Start the programs in Dagster's home: in a folder with a `.env`, Dagster would prefer that file to these variables.
    """
    values = settings.paths_for_another_folder() | GRAPH_ENVIRONMENT | {"DAGSTER_HOME": str(dagster_home(home))}
    variables = settings.child_environment(settings.CPU_ENVIRONMENT | dict(defaults or {}), values)
    programs = str(Path(sys.executable).parent)  # MLflow calls uvicorn by its name
    return variables | {"PATH": os.pathsep.join((programs, variables.get("PATH", os.defpath)))}


if __name__ == "__main__":
    prepare(settings.home())
