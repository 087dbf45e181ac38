"""Dagster's SQLite storage, with its tables created by one process at a time.

Two processes that open a new home at the same moment (`dg launch` twice) both find no tables, and one of them fails:
`table secondary_indexes already exists`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from filelock import FileLock


class OnceCreatedStorage(DagsterSqliteStorage):
    """DagsterSqliteStorage that opens its databases under a file lock; set as `storage` in dagster.yaml."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "OnceCreatedStorage":
        folder = Path(config_value["base_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "storage.lock"):
            return cls.from_local(inst_data=inst_data, **config_value)
