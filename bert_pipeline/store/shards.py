"""Build the shards of an artifact; each shard has the fingerprint of its inputs and is built only once.

    <artifact>/shards.jsonl     one line per shard: name, fingerprint, files with their size and SHA-256, facts, and a
                                checksum of the line; the last line has the number of shards

A shard that an interrupted build or a neighbouring artifact of the same kind already has is linked, not built. So a
resumed build builds only the missing shards, and a corpus that grew only the new ones. A worker writes a shard into its
own folder; the files are renamed to their final names when they are complete and on disk.
"""

import ctypes
import errno
import gc
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from bert_pipeline.core.files import file_digest, flush_to_disk
from bert_pipeline.settings import MOVE_HOME
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError, Facts
from bert_pipeline.store.executors import ShardError, map_shards

INDEX = "shards.jsonl"
LOG = "shards-in-progress.jsonl"
SCRATCH = "in-progress"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One shard to build: `function(folder, *arguments)` writes its files into a folder and returns its facts."""

    name: str
    made_from: Any  # JSON: what determines the content, besides kind and code version of the stage
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Entry:
    """An existing shard: one line of the index."""

    name: str
    fingerprint: str
    files: dict[str, dict[str, Any]]  # path in the artifact -> {"bytes", "sha256"}
    facts: Facts = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Fingerprint of the shard's content, an input of the next stage's shards."""
        return artifact.fingerprint(self.files)


def read_index(directory: Path) -> dict[str, Entry]:
    """The shards of a finished artifact by name. Raises ArtifactError if the index is missing or damaged."""
    *lines, end = _read_lines(directory / INDEX) or [b""]
    entries = [entry for line in lines if (entry := _parse(line))]
    if len(entries) < len(lines) or end != _end(len(lines)):
        raise ArtifactError(f"{directory / INDEX}: missing or damaged; remedy: remove {directory} and run again")
    return {entry.name: entry for entry in entries}


def check_files(directory: Path) -> None:
    """Raise ArtifactError if a file of a finished artifact is missing or has another size. No file is read."""
    for entry in read_index(directory).values():
        for name, expected in entry.files.items():
            path = directory / name
            found = f"{path.stat().st_size:,}" if path.is_file() else "no"
            if found != f"{expected['bytes']:,}":
                raise ArtifactError(
                    f"{path}: {found} bytes instead of {expected['bytes']:,}; remedy: remove {directory} and run again"
                )


class ShardStore:
    """The shards of one artifact in progress, and the reusable shards of the artifacts beside it."""

    def __init__(self, what: str, out: Path) -> None:
        self.what, self.out = what, out
        self._origin = {name: (artifact.read_origin(out) or {}).get(name) for name in ("kind", "code_version")}
        self._existing: dict[str, tuple[Path, Entry]] = {}
        beside = [directory for directory in sorted(out.parent.iterdir()) if directory != out and directory.is_dir()]
        for directory in (*beside, out):
            origin = artifact.read_origin(directory)
            alike = origin and all(origin.get(name) == value for name, value in self._origin.items())
            if directory == out or alike:
                entries = [*_readable(directory / INDEX), *_readable(directory / LOG)]
                self._existing |= {entry.fingerprint: (directory, entry) for entry in entries}
        self.scratch = out / SCRATCH  # removed when the artifact is finished
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self._made: dict[str, Entry] = {}

    def fingerprint(self, made_from: Any) -> str:
        return artifact.fingerprint(self._origin | {"made_from": made_from})

    def existing(self, made_from: Any) -> Entry | None:
        """The entry of the shard that was built from this; None if there is none, or one of its files is damaged."""
        directory, entry = self._existing.get(self.fingerprint(made_from), (self.out, None))
        if entry is None:
            return None
        for name, expected in entry.files.items():
            if not _is_intact(directory / name, expected):
                log.warning("%s: %s is damaged; building it again", self.what, directory / name)
                return None
        return entry

    def path(self, entry: Entry, name: str) -> Path:
        """Path of a file of an existing shard."""
        return self._existing[entry.fingerprint][0] / name

    def note(self, made_from: Any, facts: Facts) -> Entry:
        """Add an entry without files to the index: the inputs and facts of a group of shards."""
        fingerprint = self.fingerprint(made_from)
        self.add(entry := Entry(f"group/{fingerprint}", fingerprint, {}, facts))
        return entry

    def adopt(self, entry: Entry) -> None:
        """Add an existing shard to this artifact, by hard links if it belongs to another one."""
        directory, _ = self._existing[entry.fingerprint]
        for name in entry.files if directory != self.out else ():
            target = self.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(directory / name, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(directory / name, target)
        self.add(entry)

    def add(self, entry: Entry) -> None:
        if entry.name in self._made:
            raise ShardError(f"{self.what}: two shards are named {entry.name}; remedy: rename one of their documents")
        self._made[entry.name] = entry
        with (self.out / LOG).open("a", encoding="utf-8") as lines:
            lines.write(_line(entry))

    def build(self, function: Callable[..., Facts], shards: Iterable[Shard]) -> None:
        """Build the shards that do not exist yet. Raises ShardError if one fails; finished shards are kept."""
        fresh, total = self._fresh(shards), None
        if isinstance(shards, list):  # the total is known, so progress has an end
            known = list(fresh)
            fresh, total = iter(known), len(known)
        tasks = ((shard.name, (function, self.out, self._begun(shard), shard.arguments)) for shard in fresh)
        map_shards(self.what, _build, tasks, total=total, on_result=lambda name, entry: self.add(entry))

    def _fresh(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if entry := self.existing(shard.made_from):
                self.adopt(entry)
            else:
                yield shard

    def _begun(self, shard: Shard) -> Entry:
        return Entry(shard.name, self.fingerprint(shard.made_from), {})

    def made(self, name: str) -> Entry:
        return self._made[name]

    def finish(self) -> list[Entry]:
        """Write the index, remove leftovers of an interrupted build, and return the entries by name."""
        entries = [self._made[name] for name in sorted(self._made)]
        lines = [*map(_line, entries), _end(len(entries)).decode()]
        (self.out / INDEX).write_text("".join(lines) + "\n", encoding="utf-8")
        (self.out / LOG).unlink(missing_ok=True)
        shutil.rmtree(self.out / SCRATCH, ignore_errors=True)
        known = {name for entry in entries for name in entry.files}
        for path in self.out.glob("*/**/shard-*"):
            if str(path.relative_to(self.out)) not in known:
                path.unlink()
        return entries


def build_shards(what: str, function: Callable[..., Facts], shards: list[Shard], out: Path) -> list[Entry]:
    """Build the shards of an artifact in `out`; return their entries in the order of their names."""
    store = ShardStore(what, out)
    store.build(function, shards)
    return store.finish()


def total(facts: Iterable[Facts]) -> Facts:
    """Sum facts: numbers and lists of numbers are added, dicts by key; strings keep the first value."""
    summed: Facts = {}
    for one in facts:
        for name, value in one.items():
            if name not in summed:
                summed[name] = value
            elif isinstance(value, dict):
                summed[name] = total([summed[name], value])
            elif isinstance(value, list):
                summed[name] = [a + b for a, b in zip(summed[name], value, strict=True)]
            elif not isinstance(value, str):
                summed[name] += value
    return summed


def _build(function: Callable[..., Facts], out: Path, begun: Entry, arguments: tuple[Any, ...]) -> Entry:
    """In a worker: build one shard in its own folder, then move the files to their final names."""
    _release_memory()
    (out / SCRATCH).mkdir(parents=True, exist_ok=True)
    # A unique name: a cluster may consider a worker dead and give its shard to another one.
    scratch = Path(tempfile.mkdtemp(prefix=f"{begun.fingerprint}-", dir=out / SCRATCH))
    try:
        facts = function(scratch, *arguments)
        written = {str(path.relative_to(scratch)): path for path in sorted(scratch.rglob("*")) if path.is_file()}
        files = {name: _describe(path) for name, path in written.items()}
        for name, path in written.items():
            flush_to_disk(path, recurse=False)
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(out / name)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        taken = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
        free = shutil.disk_usage(out).free
        raise OSError(
            errno.ENOSPC,
            f"the disk is full: {free:,} bytes are free, and this shard alone needs more than {taken + free:,}; "
            f"remedy: free some space or {MOVE_HOME}; `bert-pipeline plan` estimates the need. Then run again: "
            "finished shards are kept",
            str(out),
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Entry(begun.name, begun.fingerprint, files, facts)


def _release_memory() -> None:
    """Return free memory to the system: otherwise a worker's peak grows with the number of shards it builds.

    In a worker, also exclude all present objects from garbage collection: numba has so many that visiting them while
    documents are created takes a third of the time of a corpus shard.
    """
    if multiprocessing.parent_process():
        gc.collect()
        gc.freeze()
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _is_intact(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and _describe(path) == expected


def _line(entry: Entry) -> str:
    return json.dumps(vars(entry) | {"check": artifact.fingerprint(vars(entry))}, ensure_ascii=False) + "\n"


def _end(count: int) -> bytes:
    return json.dumps({"shards": count}).encode()


def _parse(line: bytes) -> Entry | None:
    """None if the line is cut or damaged."""
    try:
        content = json.loads(line)
        check = content.pop("check")
        return Entry(**content) if check == artifact.fingerprint(content) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def _readable(path: Path) -> list[Entry]:
    """The readable entries of an index or a log; shards of unreadable lines are built again."""
    return [entry for line in _read_lines(path) if (entry := _parse(line))]
