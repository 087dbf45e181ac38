"""Helpers for the tests of the remote tier: a small artifact, a store that fails on demand, forged manifests."""

import json
from pathlib import Path

import pytest

from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.store.object_store import Folder, Persistent
from bert_pipeline.store.remote import Remote
from bert_pipeline.web.connections import Patience

AT_ONCE = Patience(attempts=3, first_pause=0.0)
ORIGIN = artifact.origin("tokenizer", {"size": 3}, {"raw_corpus": "abc"}, "1")
KEY = f"tokenizer/{artifact.fingerprint(ORIGIN)}.json"
CONTENT = {"vocab.txt": b"a\nb\n", "part/shard-0": b"0" * 3000, "part/shard-1": b"1" * 2000, "empty": b""}
BLOB = {"bytes": 4, "sha256": artifact.hashlib.sha256(b"evil").hexdigest()}


def write(files: dict[str, bytes]):
    def build(path: Path) -> dict:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return {"files": len(files)}

    return build


def make(path: Path, tier: Remote | None, files: dict[str, bytes] = CONTENT, origin: dict = ORIGIN) -> Artifact:
    return artifact.make(path, origin, write(files), tier=tier)


def pull(path: Path, tier: Remote, origin: dict = ORIGIN) -> Artifact:
    """The artifact as another machine gets it, which must not build it."""
    return artifact.make(path, origin, lambda out: pytest.fail("it was not pulled"), tier=tier)


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def forged(files: dict, origin: dict = ORIGIN) -> bytes:
    """A valid manifest of these files."""
    found = {"origin": origin, "files": files}
    return json.dumps(found | {"check": artifact.fingerprint(found)}).encode()


class Failing(Folder):
    """A folder that calls `fault(operation, key, calls)` before each operation."""

    def __init__(self, root: Path, fault) -> None:
        super().__init__(root)
        self.fault, self.calls = fault, []

    def _before(self, operation, key):
        self.calls.append((operation, key))
        self.fault(operation, key, len(self.calls))

    def size(self, key):
        self._before("size", key)
        return super().size(key)

    def read(self, key):
        self._before("read", key)
        return super().read(key)

    def create(self, key, content):
        self._before("create", key)
        return super().create(key, content)

    def put(self, path, key, on_bytes):
        self._before("put", key)
        super().put(path, key, on_bytes)

    def get(self, key, path, on_bytes):
        self._before("get", key)
        super().get(key, path, on_bytes)


def failing(root: Path, fault, patience: Patience = AT_ONCE) -> tuple[Remote, Failing]:
    store = Failing(root, fault)
    return Remote(Persistent(store, f"file://{root}", patience)), store
