"""The artifact store: each artifact is a directory, written once, under the fingerprint of its origin.

    origin = {kind, section, fingerprints of the inputs, code version}
    <root>/<kind>/<fingerprint>/            the artifact; appears by one rename and never changes
    <root>/<kind>/<fingerprint>.partial/    an artifact in progress, or what a crash left of it
    <root>/<kind>/<fingerprint>.lock        held by the process that builds it

A second request for the same origin, from this or another process, returns the existing artifact.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from bert_pipeline.core.files import cached_digest, flush_to_disk, write_whole
from bert_pipeline.store.provenance import circumstances

Facts = dict[str, Any]
"""What a stage reports about its artifact: JSON values, shown in Dagster and MLflow, checked by the gates."""

ORIGIN = "origin.json"
"""File in a directory in progress: the origin of the artifact."""
RECORD = "record.json"
"""File in a finished artifact: its origin, its facts and how it was built."""

log = logging.getLogger(__name__)


class ArtifactError(ValueError):
    """A directory is not the artifact that the caller expects."""


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
    """A second store for artifacts. No build depends on it: its failures are logged."""

    def try_pull(self, kind: str, fingerprint: str, destination: Path) -> bool:
        """Copy the artifact to `destination`, atomically; return False if it is not available."""

    def try_push(self, made: Artifact) -> None:
        """Store a copy of the artifact."""


def origin(kind: str, section: Mapping[str, Any], inputs: Mapping[str, str], code_version: str) -> dict[str, Any]:
    """Everything that determines an artifact's content. `inputs` maps the name of each input to its fingerprint."""
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
    """Return the artifact at `destination`; call `build(directory)` only if neither `destination` nor `tier` has it.

    A resumable build finds in its directory the files of an interrupted build of the same origin; any other build
    starts with an empty directory. `asked_by` (the run of an orchestrator) is added to the record of a new artifact.
    Raises ArtifactError if `destination` holds another artifact, or if the directory in progress holds resumable work
    of another origin.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    begun = partial(destination)
    with FileLock(f"{destination}.lock"):  # a process that waits here finds the artifact finished
        if destination.exists():
            log.info("%s: %s exists, nothing to build", origin["kind"], destination)
        elif tier and tier.try_pull(origin["kind"], fingerprint(origin), destination):
            if fingerprint(read_origin(begun) or {}) == fingerprint(origin):
                shutil.rmtree(begun)  # no build will resume it
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
    """Directory of the artifact until it is finished."""
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
            **circumstances(),
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
    partial.rename(destination)  # the artifact appears here, complete
    flush_to_disk(destination.parent, recurse=False)


def _begin(partial: Path, origin: Mapping[str, Any], resumable: bool) -> None:
    """Create the directory to build in. A resumable build keeps the files that an interrupted build left there.

    It also keeps them if their origin cannot be read: a resumable build verifies what it finds.
    """
    found = read_origin(partial)
    if found is not None and fingerprint(found) != fingerprint(origin):
        worthless = found.get("kind") == origin["kind"] and not resumable
        if not worthless and any(path.is_file() and path.name != ORIGIN for path in partial.rglob("*")):
            raise ArtifactError(
                f"{partial} holds an unfinished {found.get('kind')} ({fingerprint(found)}) of another recipe, data or "
                f"code than this {origin['kind']} ({fingerprint(origin)}); remedy: finish it with its own recipe, "
                f"remove {partial}, or choose another directory"
            )
        shutil.rmtree(partial)
    elif not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    # Written atomically: days of work may depend on it.
    write_whole(partial / ORIGIN, json.dumps({"fingerprint": fingerprint(origin), "origin": origin}))


def read_origin(directory: Path) -> dict[str, Any] | None:
    """The origin of an artifact, finished or in progress; None if there is none, or its file is damaged."""
    for name in (ORIGIN, RECORD):
        try:
            found = json.loads((directory / name).read_bytes())
            if found["fingerprint"] == fingerprint(found["origin"]):
                return found["origin"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # a damaged file counts as missing
            continue
    return None


def load(path: Path, kind: str | None = None) -> Artifact:
    """Open a finished artifact. Raises ArtifactError if it is missing, damaged or of another kind."""
    try:
        record = json.loads((path / RECORD).read_bytes())
        check = record.pop("check", None)  # older records have none
        intact = record["fingerprint"] == fingerprint(record["origin"]) and "facts" in record
        intact = intact and check in (None, fingerprint(record))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is no artifact: it has no {RECORD}; remedy: build it first") from None
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise ArtifactError(f"{path / RECORD} is damaged; remedy: remove {path} and build it again")
    made = Artifact(path, record)
    if kind is not None and made.kind != kind:
        raise ArtifactError(f"{path} holds a {made.kind}; a {kind} is needed here")
    return made


def files_fingerprint(files: Mapping[str, Path]) -> str:
    """Fingerprint of files outside the store: of their names and their content."""
    return fingerprint({name: cached_digest(path) for name, path in sorted(files.items())})
