"""File digests, atomic writes, fsync, and the peak memory of this process."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def cached_digest(path: Path) -> str:
    """SHA-256 of a file; the file is read again only if its size or modification time has changed."""
    status = path.stat()
    return _cached_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _cached_digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a draft next to `path`; rename it to `path` if the block ends without an error."""
    draft = path.with_name(f"{path.name}.partial")
    yield draft
    draft.replace(path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: readers see all of `content` or no file. Text is UTF-8; line ends are kept."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def flush_to_disk(path: Path, recurse: bool = True) -> None:
    """fsync a file or directory, with everything in it, before a rename that must not become durable first."""
    for inner in path.rglob("*") if recurse else ():
        _fsync(inner)
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes.

    Not resource.getrusage: its value starts from the peak of the parent process.
    """
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(peak) * 1024
