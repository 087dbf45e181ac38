"""Objects under keys, in a bucket or a shared folder: each appears complete, and `create` never replaces one.

fsspec does the S3 transfers (parts in parallel, If-None-Match). It does not replace `Folder`: LocalFileSystem's
exclusive creation tests for the file and then writes it, so two writers of one manifest could both win; it never calls
fsync and reports no bytes of a transfer. Nor `Persistent`: s3fs retries without random pauses and names no remedy.
For the first reason only the file systems in PROTOCOLS are accepted: their exclusive creation is atomic and tested.
"""

import errno
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.callbacks import Callback

from bert_pipeline.core.files import flush_to_disk
from bert_pipeline.settings import MOVE_HOME
from bert_pipeline.web.connections import Patience
from bert_pipeline.web.downloads import DiskError

log = logging.getLogger(__name__)

PROTOCOLS = ("file", "s3", "s3a", "memory")
PART_BYTES = 16 << 20
"""Size of the parts in which a large file is transferred; each connection holds one part in memory."""
MAX_PARTS = 10_000
"""Most parts of one file that S3 allows."""
CONNECTIONS_PER_FILE = 4
BOTOCORE_RETRIES = {"total_max_attempts": 2, "mode": "standard"}
"""One retry per part, so that a lost part does not cost the whole file. Persistent retries everything else: with the
default retries of s3fs and botocore, an unreachable server blocks a run for minutes."""
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
WRONG_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError"}
"""Names of botocore's errors; botocore may not be installed."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes transferred; a negative number takes back bytes that must be sent again."""
Result = TypeVar("Result")


class RemoteError(RuntimeError):
    """A remote store refused, lost or damaged an object; the message names the object and the remedy."""


class Stopped(Exception):
    """Raised by an OnBytes to cancel a transfer; it is not retried."""


class ObjectStore(Protocol):
    """A key is a path below the store's URL, as in `blobs/abc`."""

    def size(self, key: str) -> int | None:
        """Size in bytes; None if there is no such object."""

    def read(self, key: str) -> bytes | None:
        """The content; None if there is no such object."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a new object, atomically; return False without writing if it exists, even since a moment ago."""

    def put(self, path: Path, key: str, on_bytes: OnBytes) -> None:
        """Upload the file as this object."""

    def get(self, key: str, path: Path, on_bytes: OnBytes) -> None:
        """Download the object to this file; an interrupted transfer leaves a part of it there."""


class Folder:
    """A shared folder. Links and renames are atomic, on NFS, too."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, key: str) -> int | None:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes | None:
        path = self._path(key)
        return path.read_bytes() if path.is_file() else None

    def create(self, key: str, content: bytes) -> bool:
        with self._draft(key) as draft:
            draft.write_bytes(content)
            flush_to_disk(draft, recurse=False)
            try:
                os.link(draft, self._path(key))
            except FileExistsError:
                return False
        return True

    def put(self, path: Path, key: str, on_bytes: OnBytes) -> None:
        with self._draft(key) as draft:
            _copy(path, draft, on_bytes)
            flush_to_disk(draft, recurse=False)
            draft.rename(self._path(key))

    def get(self, key: str, path: Path, on_bytes: OnBytes) -> None:
        _copy(self._path(key), path, on_bytes)

    def _path(self, key: str) -> Path:
        if not self._root.is_dir():  # not created here: it may be a share that is not mounted
            raise FileNotFoundError(f"the folder {self._root} does not exist")
        return self._root / key

    @contextmanager
    def _draft(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
        try:
            yield draft
            flush_to_disk(path.parent, recurse=False)
        finally:
            draft.unlink(missing_ok=True)


class Bucket:
    """A prefix of a bucket. An object of several parts appears when the upload is completed."""

    def __init__(self, url: str) -> None:
        self._is_s3 = url.startswith("s3")
        options: dict[str, Any] = {}
        if self._is_s3:
            configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options = {
                "max_concurrency": CONNECTIONS_PER_FILE,
                "default_block_size": PART_BYTES,
                "config_kwargs": {"retries": BOTOCORE_RETRIES} | configured,
            }
        self._files, self._root = fsspec.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
        self._files.retries = 1  # of s3fs itself; Persistent retries

    def size(self, key: str) -> int | None:
        try:
            return self._files.size(self._path(key))
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes | None:
        try:
            return self._files.cat_file(self._path(key))
        except FileNotFoundError:
            return None

    def create(self, key: str, content: bytes) -> bool:
        try:
            self._files.pipe_file(self._path(key), content, mode="create")  # If-None-Match: *
        except FileExistsError:
            return False
        except OSError as error:
            if _s3_code(error) not in ("PreconditionFailed", "412"):
                raise
            return False
        return True

    def put(self, path: Path, key: str, on_bytes: OnBytes) -> None:
        part = max(PART_BYTES, -(-path.stat().st_size // MAX_PARTS))
        options = {"chunksize": part} if self._is_s3 else {}
        self._files.put_file(str(path), self._path(key), callback=_Progress(on_bytes), **options)

    def get(self, key: str, path: Path, on_bytes: OnBytes) -> None:
        self._files.get_file(self._path(key), str(path), callback=_Progress(on_bytes))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"


class Persistent:
    """A store with retries, after growing random pauses, and with errors that name the object and the remedy.

    After a request has failed in all its attempts, later requests get one attempt each until one succeeds, so that a
    store that is down does not delay the work.
    """

    def __init__(self, store: ObjectStore, url: str, patience: Patience) -> None:
        self._store, self.url, self._patience = store, url, patience
        self._attempts = patience.attempts

    def size(self, key: str) -> int | None:
        return self._attempt("look up", key, lambda: self._store.size(key))

    def read(self, key: str) -> bytes | None:
        return self._attempt("read", key, lambda: self._store.read(key))

    def create(self, key: str, content: bytes) -> bool:
        return self._attempt("create", key, lambda: self._store.create(key, content))

    def put(self, path: Path, key: str, on_bytes: OnBytes) -> None:
        self._attempt("write", key, lambda: _counted(on_bytes, lambda count: self._store.put(path, key, count)))

    def get(self, key: str, path: Path, on_bytes: OnBytes) -> None:
        """Raises DiskError if the local disk is full or read-only."""

        def get_counted(count: OnBytes) -> None:
            try:
                self._store.get(key, path, count)
            except OSError as error:
                if error.errno not in DISK_FAULTS:
                    raise
                remedy = f"make room or {MOVE_HOME}, and run again: complete files are kept"
                raise DiskError(error.errno, f"{error.strerror}; remedy: {remedy}", str(path)) from error

        self._attempt("fetch", key, lambda: _counted(on_bytes, get_counted))

    def _attempt(self, verb: str, key: str, request: Callable[[], Result]) -> Result:
        attempts = self._attempts
        for number in range(1, attempts + 1):
            try:
                result = request()
            except (DiskError, Stopped):
                raise
            except (
                Exception
            ) as error:  # fsspec's file systems raise their client libraries' errors, which have no common base
                remedy, is_final = _remedy(error)
                fault = f"cannot {verb} {self.url}/{key}: {_one_line(error)}"
                cause = error
            else:
                self._attempts = self._patience.attempts
                return result
            log.info("attempt %d of %d: %s", number, attempts, fault)
            if is_final:
                break
            if number < attempts:
                time.sleep(self._patience.pause(number))
        else:
            self._attempts = 1
        raise RemoteError(f"{fault}; remedy: {remedy}") from cause


def open_store(url: str, patience: Patience) -> Persistent:
    """Open a store by its URL. Raises RemoteError if the URL is invalid, or the package for its protocol is missing."""
    scheme, found, rest = url.partition("://")
    if set("@?#") & set(rest):
        raise RemoteError(
            f"{_without_credentials(url)}: an address must not contain credentials or options; remedy: give only the "
            "bucket and the prefix, and set credentials with the AWS_* variables or files"
        )
    if not found or scheme not in PROTOCOLS or not rest.strip("/") or (scheme == "file" and rest[0] != "/"):
        raise RemoteError(f"{url!r} is no remote store; remedy: use s3://bucket/prefix or file:///folder")
    url = url.rstrip("/")
    if scheme == "file":
        return Persistent(Folder(Path(rest)), url, patience)
    try:
        return Persistent(Bucket(url), url, patience)
    except ImportError as error:
        raise RemoteError(f"{url}: {error}; remedy: pip install 'bert-pipeline[s3]'") from error


class _Progress(Callback):
    """fsspec's progress of one file as OnBytes calls."""

    def __init__(self, on_bytes: OnBytes) -> None:
        super().__init__()
        self._on_bytes = on_bytes

    def relative_update(self, inc: int = 1) -> None:
        self._on_bytes(inc)


def _copy(source: Path, target: Path, on_bytes: OnBytes) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(1 << 20):
            write.write(chunk)
            on_bytes(len(chunk))


def _counted(on_bytes: OnBytes, transfer: Callable[[OnBytes], None]) -> None:
    """Run a transfer; if it fails, take back the bytes that it has counted, because it starts from scratch."""
    moved = 0

    def count(num_bytes: int) -> None:
        nonlocal moved
        moved += num_bytes
        on_bytes(num_bytes)

    try:
        transfer(count)
    except Stopped:
        raise
    except Exception:
        on_bytes(-moved)
        raise


def _remedy(error: Exception) -> tuple[str, bool]:
    """The remedy for an error, and whether retrying is useless."""
    if isinstance(error, PermissionError) or type(error).__name__ in WRONG_CREDENTIALS:
        return "check the credentials (AWS_* variables or files) and their rights to read, write and list there", True
    if isinstance(error, FileNotFoundError) and _s3_code(error) != "NoSuchUpload":  # an upload that may be complete
        return "create the bucket or folder, mount the share, or correct BERT_PIPELINE_REMOTE", True
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        return "make room there, then run `bert-pipeline push`", True
    # fsspec raises these for a wrong address, option or operation of a store.
    is_permanent = isinstance(error, ValueError | TypeError | NotImplementedError)
    return (
        "run again when the store answers (`bert-pipeline push` sends what is missing); nothing local is lost",
        is_permanent,
    )


def _s3_code(error: Exception) -> str:
    """The S3 error code behind an error that s3fs translated; empty if there is none."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")


def _one_line(error: Exception) -> str:
    """The error on one line, without control characters and without credentials in URLs."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return _without_credentials(ascii(text)[1:-1])


def _without_credentials(text: str) -> str:
    return re.sub(r"(?<=//)\S*@|[?#]\S*", "", text)
