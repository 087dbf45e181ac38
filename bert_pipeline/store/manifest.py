"""Manifests: the files of an artifact with sizes and digests, to compare artifacts and to rebuild them elsewhere."""

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bert_pipeline.core.files import file_digest
from bert_pipeline.store import artifact, shards
from bert_pipeline.store.artifact import RECORD, Artifact, ArtifactError

READERS = 4
"""Files that are hashed at once."""


@dataclass(frozen=True)
class Blob:
    """Size and SHA-256 of a file's content."""

    bytes: int
    sha256: str

    @property
    def key(self) -> str:
        return f"blobs/{self.sha256}"


@dataclass(frozen=True)
class Manifest:
    """Origin and files of an artifact; `files` maps the path within the artifact to its content."""

    origin: Mapping[str, Any]
    files: Mapping[str, Blob]

    def dump(self) -> bytes:
        content = {"origin": self.origin, "files": {name: vars(blob) for name, blob in sorted(self.files.items())}}
        return json.dumps(content | {"check": artifact.fingerprint(content)}, indent=1).encode()

    def differences(self, other: "Manifest") -> list[str]:
        """Names of the files that differ. The record is not compared: it holds who built the artifact and when."""
        names = sorted({*self.files, *other.files} - {RECORD})
        return [name for name in names if self.files.get(name) != other.files.get(name)]


def describe(made: Artifact) -> Manifest:
    """The manifest of a local artifact; reads all its files. Raises ArtifactError if a shard is missing or changed."""
    names = sorted(path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file())
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(lambda name: file_digest(made.path / name), names))
    files = {name: Blob((made.path / name).stat().st_size, key) for name, key in zip(names, digests, strict=True)}
    if shards.INDEX in files:
        for entry in shards.read_index(made.path).values():
            for name, expected in entry.files.items():
                if name not in files or vars(files[name]) != expected:
                    raise ArtifactError(
                        f"{made.path / name} is missing or changed; remedy: remove {made.path} and run again"
                    )
    return Manifest(made.record["origin"], files)


def parse(content: bytes) -> Manifest:
    """Read what `dump` wrote; raises ValueError, KeyError, TypeError or AttributeError if it is anything else."""
    found = json.loads(content)
    if found.pop("check") != artifact.fingerprint(found):
        raise ValueError("its checksum does not match")
    files = {name: Blob(**blob) for name, blob in found["files"].items()}
    for name, blob in files.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name != "/".join(parts) or "\0" in name:
            raise ValueError(f"{name!r} is a path outside the artifact")
        if not isinstance(blob.bytes, int) or blob.bytes < 0 or not re.fullmatch("[0-9a-f]{64}", blob.sha256):
            raise ValueError(f"{name!r} has no valid size or digest")
    return Manifest(found["origin"], files)
