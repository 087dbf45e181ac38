"""Files: digests, files that appear whole or not at all, and writes that survive a power cut."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def cached_digest(path: Path) -> str:
    """SHA-256 of a file, read only once while its size and modification time stay the same."""
    status = path.stat()
    return _cached_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _cached_digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to; it is renamed to `path` when the block ends without an error."""
    draft = path.with_name(f"{path.name}.partial")
    yield draft
    draft.replace(path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all. Text is UTF-8 and keeps its line ends."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def flush_to_disk(path: Path, recurse: bool = True) -> None:
    """fsync a file or directory (with all its content): a rename may become durable before the content does."""
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
    """Largest resident memory of this process so far, in bytes.

    Not resource.getrusage: its figure starts from the peak of the process that started this one.
    """
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(peak) * 1024
