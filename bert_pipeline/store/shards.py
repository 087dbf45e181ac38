"""Build the shards of an artifact: each one once, whole, under the fingerprint of what it is made from.

    <artifact>/shards.jsonl     a line a shard: name, fingerprint, files with their size and SHA-256, facts, and a
                                checksum of the line itself; the last line says how many they are

A shard that stands already, in what an interrupted build left or in another artifact beside this one, is linked,
not built: so resuming builds what is missing, and a corpus that grew costs its new shards. A worker writes a shard
in a folder of its own; its files take their final names when they are whole and on disk.
"""

import ctypes
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from bert_pipeline.core.files import file_digest, flush_to_disk
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
    made_from: Any  # JSON: all that decides the content, beside the stage's kind and code version
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A shard that stands: a line of the index."""

    name: str
    fingerprint: str
    files: dict[str, dict[str, Any]]  # path in the artifact -> {"bytes", "sha256"}
    facts: Facts = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What a shard of the next stage is made from: the bytes themselves."""
        return artifact.fingerprint(self.files)


def read_index(directory: Path) -> dict[str, Entry]:
    """The shards of a finished artifact by name. Raises ArtifactError where the index is not what was written."""
    *lines, end = _read_lines(directory / INDEX) or [b""]
    entries = [_parse(line) for line in lines]
    whole = [entry for entry in entries if entry]
    if len(whole) < len(lines) or end != _end(len(lines)):
        raise ArtifactError(f"{directory / INDEX}: missing or damaged; remedy: remove {directory} and run again")
    return {entry.name: entry for entry in whole}


def check_files(directory: Path) -> None:
    """Raise ArtifactError where a file of a finished artifact is missing or has another size: a look at each file,
    none of which is read.
    """
    for entry in read_index(directory).values():
        for name, expected in entry.files.items():
            path = directory / name
            found = f"{path.stat().st_size:,}" if path.is_file() else "no"
            if found != f"{expected['bytes']:,}":
                raise ArtifactError(
                    f"{path}: {found} bytes, and it was made with {expected['bytes']:,}; "
                    f"remedy: remove {directory} and run again"
                )


class ShardStore:
    """The shards of one artifact in progress, and those that stand beside it."""

    def __init__(self, what: str, out: Path) -> None:
        self.what, self.out = what, out
        self._origin = {name: (artifact.read_origin(out) or {}).get(name) for name in ("kind", "code_version")}
        self._standing: dict[str, tuple[Path, Entry]] = {}
        beside = [directory for directory in sorted(out.parent.iterdir()) if directory != out and directory.is_dir()]
        for directory in (*beside, out):
            origin = artifact.read_origin(directory)
            alike = origin and all(origin.get(name) == value for name, value in self._origin.items())
            if directory == out or alike:
                entries = [*_legible(directory / INDEX), *_legible(directory / LOG)]
                self._standing |= {entry.fingerprint: (directory, entry) for entry in entries}
        self.scratch = out / SCRATCH  # goes when the artifact is finished
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self._made: dict[str, Entry] = {}

    def fingerprint(self, made_from: Any) -> str:
        return artifact.fingerprint(self._origin | {"made_from": made_from})

    def standing(self, made_from: Any) -> Entry | None:
        """The entry of a shard that was made from this and whose files are what they were."""
        directory, entry = self._standing.get(self.fingerprint(made_from), (self.out, None))
        if entry is None:
            return None
        for name, expected in entry.files.items():
            if not _is_whole(directory / name, expected):
                log.warning("%s: %s is damaged; building it again", self.what, directory / name)
                return None
        return entry

    def path(self, entry: Entry, name: str) -> Path:
        """Where a file of a standing shard is."""
        return self._standing[entry.fingerprint][0] / name

    def note(self, made_from: Any, facts: Facts) -> Entry:
        """Put what a group of shards is made from into the index; it has no files of its own."""
        fingerprint = self.fingerprint(made_from)
        self.add(entry := Entry(f"group/{fingerprint}", fingerprint, {}, facts))
        return entry

    def adopt(self, entry: Entry) -> None:
        """Make a standing shard one of this artifact."""
        directory, _ = self._standing[entry.fingerprint]
        for name in entry.files if directory != self.out else ():
            target = self.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(directory / name, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(directory / name, target)
        self.add(entry)

    def add(self, entry: Entry) -> None:
        if entry.name in self._made:
            raise ShardError(f"{self.what}: two shards are named {entry.name}; remedy: rename one of their documents")
        self._made[entry.name] = entry
        with (self.out / LOG).open("a", encoding="utf-8") as lines:
            lines.write(_line(entry))

    def build(self, function: Callable[..., Facts], shards: Iterable[Shard]) -> None:
        """Build what does not stand yet. Raises ShardError from a shard that failed; what is whole is kept."""
        fresh, total = self._fresh(shards), None
        if isinstance(shards, list):  # all known beforehand, so progress has an end
            known = list(fresh)
            fresh, total = iter(known), len(known)
        tasks = ((shard.name, (function, self.out, self._begun(shard), shard.arguments)) for shard in fresh)
        map_shards(self.what, _build, tasks, total=total, on_result=lambda name, entry: self.add(entry))

    def _fresh(self, shards: Iterable[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if entry := self.standing(shard.made_from):
                self.adopt(entry)
            else:
                yield shard

    def _begun(self, shard: Shard) -> Entry:
        return Entry(shard.name, self.fingerprint(shard.made_from), {})

    def made(self, name: str) -> Entry:
        return self._made[name]

    def finish(self) -> list[Entry]:
        """Write the index, remove what an interrupted build left over, and return the shards by name."""
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
    """Build the shards of an artifact in `out`; return them in the order of their names."""
    store = ShardStore(what, out)
    store.build(function, shards)
    return store.finish()


def total(facts: Iterable[Facts]) -> Facts:
    """The sum of facts: numbers and lists of numbers add up, dicts by key; of other values the first is kept."""
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
    """In a worker: build one shard in a folder of its own, then move its files to their places."""
    _give_memory_back()
    (out / SCRATCH).mkdir(parents=True, exist_ok=True)
    # A name of its own: a cluster may think a worker dead, and give its shard to another.
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
            "remedy: free some, or set BERT_PIPELINE_HOME to another disk (`bert-pipeline plan` tells how much), "
            "and start again: finished shards are kept",
            str(out),
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Entry(begun.name, begun.fingerprint, files, facts)


def _give_memory_back() -> None:
    """To the system, what the allocators kept of the shard before: else a worker's peak grows with their number."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def _is_whole(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and _describe(path) == expected


def _line(entry: Entry) -> str:
    return json.dumps(vars(entry) | {"check": artifact.fingerprint(vars(entry))}, ensure_ascii=False) + "\n"


def _end(count: int) -> bytes:
    return json.dumps({"shards": count}).encode()


def _parse(line: bytes) -> Entry | None:
    """None for a line that is not what was written: cut short, or damaged."""
    try:
        content = json.loads(line)
        check = content.pop("check")
        return Entry(**content) if check == artifact.fingerprint(content) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def _legible(path: Path) -> list[Entry]:
    """What can be read of an index or a log: others than these are built again."""
    return [entry for line in _read_lines(path) if (entry := _parse(line))]
