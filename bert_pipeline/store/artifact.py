"""The artifact store: a directory is written once, whole, under the fingerprint of what made it.

    origin = {kind, section, fingerprints of the inputs, code version}
    <root>/<kind>/<fingerprint>/            the artifact; appears by one rename, never changes
    <root>/<kind>/<fingerprint>.partial/    work in progress, or what a crash left of it
    <root>/<kind>/<fingerprint>.lock        held by the one process that builds

Whoever asks for the same origin a second time, in this process or in another, gets what stands.
"""

import getpass
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from bert_pipeline.core.files import cached_digest, flush_to_disk, write_whole

Facts = dict[str, Any]
"""What a stage reports of what it made: JSON values, shown in Dagster and MLflow, checked by the gates."""

ORIGIN = "origin.json"
"""In a directory in progress: what is being made there."""
RECORD = "record.json"
"""In a finished one: what it is, and how it was made."""

log = logging.getLogger(__name__)


class ArtifactError(ValueError):
    """A directory that is not what the caller takes it for."""


@dataclass(frozen=True)
class Artifact:
    """A finished directory and its record."""

    path: Path
    record: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return self.record["origin"]["kind"]

    @property
    def fingerprint(self) -> str:
        return self.record["fingerprint"]

    @property
    def facts(self) -> Facts:
        return self.record["facts"]


class Tier(Protocol):
    """Another place for artifacts, beside the local disk. Nothing depends on it: what fails there is logged."""

    def try_pull(self, kind: str, fingerprint: str, destination: Path) -> bool:
        """Make `destination` the artifact, whole; False where it is not to be had."""

    def try_push(self, made: Artifact) -> None:
        """Keep a copy there."""


def origin(kind: str, section: Mapping[str, Any], inputs: Mapping[str, str], code_version: str) -> dict[str, Any]:
    """What decides an artifact's content. `inputs` maps the name of each input to its fingerprint."""
    return {"kind": kind, "section": dict(section), "inputs": dict(inputs), "code_version": code_version}


def fingerprint(origin: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of the origin as canonical JSON."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]


def make(
    destination: Path,
    origin: Mapping[str, Any],
    build: Callable[[Path], Facts],
    *,
    resumable: bool = False,
    asked_by: Mapping[str, str] | None = None,
    tier: Tier | None = None,
) -> Artifact:
    """Return the artifact at `destination`; call `build(directory)` only where it stands neither there nor in `tier`.

    A resumable build finds in its directory what an interrupted one of the same origin left there; any other
    starts empty. `asked_by` is noted in the record of what is built: the run of an orchestrator.
    Raises ArtifactError where `destination` holds something else, or where an interrupted build of something else
    left work beside it that can be gone on with.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    begun = partial(destination)
    with FileLock(f"{destination}.lock"):  # whoever waits here finds the work done
        if destination.exists():
            log.info("%s: %s stands already, nothing to build", origin["kind"], destination)
        elif tier and tier.try_pull(origin["kind"], fingerprint(origin), destination):
            if fingerprint(read_origin(begun) or {}) == fingerprint(origin):
                shutil.rmtree(begun)  # nobody will go on with it
        else:
            _build(destination, begun, origin, build, resumable, asked_by or {})
    made = load(destination)
    if made.fingerprint != fingerprint(origin):
        raise ArtifactError(
            f"{destination} holds another {made.kind} ({made.fingerprint}, not {fingerprint(origin)}); "
            "remedy: choose another directory"
        )
    if tier:
        tier.try_push(made)
    return made


def partial(destination: Path) -> Path:
    """Where the artifact lies as long as it is not whole."""
    return destination.with_name(destination.name + ".partial")


def _build(
    destination: Path,
    partial: Path,
    origin: Mapping[str, Any],
    build: Callable[[Path], Facts],
    resumable: bool,
    asked_by: Mapping[str, str],
) -> None:
    _begin(partial, origin, resumable)
    started, clock = datetime.now(UTC), time.monotonic()
    facts = build(partial)
    record = {
        "fingerprint": fingerprint(origin),
        "origin": origin,
        "facts": facts,
        "made": {
            **_circumstances(),
            **asked_by,
            "at": started.isoformat(),
            "seconds": round(time.monotonic() - clock, 3),
        },
    }
    (partial / ORIGIN).unlink()
    written = json.loads(json.dumps(record))
    written["check"] = fingerprint(written)
    (partial / RECORD).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    flush_to_disk(partial)
    partial.rename(destination)  # until this line there is no artifact; after it, a whole one
    flush_to_disk(destination.parent, recurse=False)


def _begin(partial: Path, origin: Mapping[str, Any], resumable: bool) -> None:
    """Make the directory to build in; what an interrupted build left there is kept for a resumable one.

    Where the origin of what lies there cannot be read, a resumable build goes on, too: it verifies what it finds.
    """
    found = read_origin(partial)
    if found is not None and fingerprint(found) != fingerprint(origin):
        worthless = found.get("kind") == origin["kind"] and not resumable
        if not worthless and any(path.is_file() and path.name != ORIGIN for path in partial.rglob("*")):
            raise ArtifactError(
                f"{partial} holds an unfinished {found.get('kind')} ({fingerprint(found)}) of another recipe, of other "
                f"data or of other code than this {origin['kind']} ({fingerprint(origin)}); remedy: finish it with its "
                f"own recipe, remove {partial}, or choose another directory"
            )
        shutil.rmtree(partial)
    elif not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    # Never half written: days of work may depend on it.
    write_whole(partial / ORIGIN, json.dumps({"fingerprint": fingerprint(origin), "origin": origin}))


def read_origin(directory: Path) -> dict[str, Any] | None:
    """The origin of an artifact, finished or in progress; None where there is neither, or none that is whole."""
    for name in (ORIGIN, RECORD):
        try:
            found = json.loads((directory / name).read_bytes())
            if found["fingerprint"] == fingerprint(found["origin"]):
                return found["origin"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged file is as good as none
            continue
    return None


def load(path: Path, kind: str | None = None) -> Artifact:
    """Open a finished artifact. Raises ArtifactError where there is none, a damaged one, or one of another kind."""
    try:
        record = json.loads((path / RECORD).read_bytes())
        check = record.pop("check", None)  # those made before it was written have none
        whole = record["fingerprint"] == fingerprint(record["origin"]) and "facts" in record
        whole = whole and check in (None, fingerprint(record))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is no artifact: it has no {RECORD}; remedy: build it first") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ArtifactError(f"{path / RECORD} is damaged; remedy: remove {path} and build it again")
    made = Artifact(path, record)
    if kind is not None and made.kind != kind:
        raise ArtifactError(f"{path} holds a {made.kind}; a {kind} is needed here")
    return made


def files_fingerprint(files: Mapping[str, Path]) -> str:
    """A fingerprint of files outside the store: their names and their bytes."""
    return fingerprint({name: cached_digest(path) for name, path in sorted(files.items())})


def _circumstances() -> dict[str, Any]:
    """Who made it, where, from which commit and with which packages: told, but no part of the fingerprint."""
    return {
        "by": _user(),
        "host": platform.node(),
        "cores": len(os.sched_getaffinity(0)),  # the threads of a training on the CPU, whose sums they order
        "python": platform.python_version(),
        "packages": _packages(),
        "commit": _commit(),
    }


@cache
def _packages() -> dict[str, str]:
    """The version of every package that is installed, by name."""
    found = ((each.metadata["Name"], each.version) for each in distributions())
    return dict(sorted((name, version) for name, version in found if name))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())


def _commit() -> str | None:
    """The commit of the code, with `-dirty` where it was changed since; None outside a git checkout."""
    if not shutil.which("git"):
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return described.stdout.strip() or None
