"""Open an MLflow database, with its tables created by one process at a time.

`mlflow server` creates the tables of a new database without a lock; `make ui` calls this file before:

    python -m orchestration.tracking.database sqlite:////home/me/workspace/mlflow.db
"""

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"


def open_client(tracking_uri: str) -> "MlflowClient":
    """Return a client of a database or a server.

    The first client creates the tables of a new database; two processes that do so at once fail.
    """
    from mlflow import MlflowClient

    file = tracking_uri.removeprefix(SQLITE)
    with FileLock(f"{file}.lock") if file != tracking_uri else nullcontext():
        return MlflowClient(tracking_uri)


if __name__ == "__main__":
    open_client(sys.argv[1])
