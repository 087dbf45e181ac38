"""DAGSTER_HOME on a full or read-only disk: the run fails, no database is corrupted, and the next run works."""

import logging
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import dagster as dg
import pytest

from bert_pipeline.store import artifact
from orchestration.assets import ASSETS
from orchestration.workshop import resources

pytestmark = pytest.mark.slow

SQLITE = r"disk I/O error|database or disk is full|readonly database|unable to open database file"
"""SQLite's error messages for such a disk."""


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


HARM = {
    "full": (fill, lambda disk: (disk / "filler").unlink()),
    "read-only": (lambda disk: remount(disk, "ro"), lambda disk: remount(disk, "rw")),
}


class OnFirstWord(logging.Handler):
    def __init__(self, act) -> None:
        super().__init__()
        self.act = act

    def emit(self, record: logging.LogRecord) -> None:
        act, self.act = self.act, lambda: None
        act()


# Linux refuses to remount a disk read-only while a file is open for writing.
@pytest.mark.parametrize(("harm", "when"), [("full", "before"), ("full", "during"), ("read-only", "before")])
def test_a_failing_disk_corrupts_nothing(disk, tmp_path, monkeypatch, harm, when):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    spoil, heal = HARM[harm]
    library, handler = logging.getLogger("bert_pipeline"), OnFirstWord(lambda: spoil(disk))

    def materialize(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        how = {"partition_key": "tiny", "resources": resources(tmp_path / "home"), "selection": ["raw_corpus"]}
        return dg.materialize(ASSETS, instance=instance, **how)

    with dg.DagsterInstance.local_temp(str(disk)) as instance:
        instance.get_runs()
        library.addHandler(handler) if when == "during" else spoil(disk)
        try:
            with pytest.raises(Exception, match=SQLITE) as raised:
                materialize(instance)
        finally:
            library.removeHandler(handler)
            heal(disk)
        print(f"{harm}, {when}: {str(raised.value).splitlines()[0]}")
        for database in disk.rglob("*.db"):
            with closing(sqlite3.connect(database)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], database
        assert materialize(instance).success
    [record] = (tmp_path / "home" / "artifacts").glob("raw_corpus/*/record.json")
    assert artifact.load(record.parent, "raw_corpus")
