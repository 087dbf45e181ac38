"""Open an MLflow database, with its tables created by one process at a time.

`mlflow server` creates the tables of a new database without a lock; local/pages.py opens the database before it starts
that server.
"""

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
