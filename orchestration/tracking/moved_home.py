"""After the home was moved or restored to another path: MLflow's database stores absolute locations of its files."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""The columns of MLflow's tables that hold locations."""

log = logging.getLogger("bert_pipeline.tracking")


def follow_the_home(database: Path, artifacts: Path, experiment: str) -> None:
    """Let MLflow's SQLite database point to the files in `artifacts`, if it points to the same folder of another home.

    A database that is missing or incomplete, and a home that is only another path to the same folder (a symbolic link),
    stay as they are.
    """
    if not database.is_file() or not artifacts.is_dir():
        return
    query = "SELECT artifact_location FROM experiments WHERE name = ?"
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            found = connection.execute(query, (experiment,)).fetchone()
            if not found or not found[0].startswith("file:") or _is_same_folder(found[0], artifacts):
                return
            old, new = found[0], artifacts.as_uri()
            changed = sum(_replace(connection, table, column, old, new) for table, column in LOCATIONS.items())
    except sqlite3.Error as error:
        log.warning("%s: cannot check the locations of MLflow's files: %s", database, error)
        return
    log.warning("%s: the home was moved; %d locations now begin with %s instead of %s", database, changed, new, old)


def _is_same_folder(location: str, folder: Path) -> bool:
    path = Path(unquote(urlsplit(location).path))
    return path == folder or (path.exists() and path.samefile(folder))


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    """Replace the beginning of each location that is `old` or lies below it; return their number."""
    where = f"{column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'"
    set_to = f"{column} = :new || substr({column}, length(:old) + 1)"
    return connection.execute(f"UPDATE {table} SET {set_to} WHERE {where}", {"old": old, "new": new}).rowcount
