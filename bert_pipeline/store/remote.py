"""The remote tier of the artifact store (BERT_PIPELINE_REMOTE): what one machine has made, no other need make again.

    <remote>/<kind>/<fingerprint>.json      the manifest: the origin; name, size and SHA-256 of each file
    <remote>/blobs/<sha256>                 a file's bytes; those that artifacts share are there once

An artifact is pushed after it stands on the local disk: the blobs that are missing, then the manifest, which is created
and never replaced. So whoever finds a manifest finds the artifact whole, an interrupted push is gone on with by the
next one, and of two writers with different content the second is refused. A pull verifies each file, and the artifact
takes its place by one rename, as `artifact.make` has it. Nothing here is ever needed: where the remote fails, the
artifact is built, and stands locally.

    <store>/<kind>/<fingerprint>.pulling/   what has arrived, verified again by the next pull
    <store>/<kind>/<fingerprint>.pushed     the remote that has it, so that it is not asked again each time

To free room there: remove manifests; then, while nobody pushes, the blobs that no manifest names and what ends in
`.draft`. A bucket also wants a rule that aborts incomplete multipart uploads after some days. If a blob is removed that
is needed, a pull says so, the artifact is built, and the push brings the blob back.
"""

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache, partial
from pathlib import Path

from filelock import FileLock, Timeout

from bert_pipeline import settings
from bert_pipeline.core.files import file_digest, flush_to_disk
from bert_pipeline.core.progress import Progress
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import RECORD, Artifact, ArtifactError, Facts
from bert_pipeline.store.manifest import Blob, Manifest, describe, parse
from bert_pipeline.store.object_store import OnBytes, Persistent, RemoteError, Stopped, open_store
from bert_pipeline.web.connections import Patience
from bert_pipeline.web.downloads import DiskError

log = logging.getLogger(__name__)

VARIABLE = "BERT_PIPELINE_REMOTE"
TRANSFERS = 4
"""Files at once."""
FETCHES = 2
"""Of a blob that arrives damaged."""
PATIENCE = Patience(attempts=3)


class Remote:
    """An artifact.Tier in a bucket or a shared folder."""

    def __init__(self, store: Persistent) -> None:
        self._store = store
        self._damaged: set[str] = set()
        """Keys of blobs that arrived with another content: to be written anew."""

    @property
    def url(self) -> str:
        return self._store.url

    def try_push(self, made: Artifact) -> None:
        """Push what this remote was not given yet; a failure is logged, with the remedy."""
        if _marker(made.path).is_file() and _marker(made.path).read_text(encoding="utf-8") == self._mark(made.path):
            return
        try:
            self.push(made)
        except (RemoteError, ArtifactError, OSError) as error:
            log.warning("%s %s stands in %s, but was not pushed: %s", made.kind, made.fingerprint, made.path, error)

    def try_pull(self, kind: str, fingerprint: str, destination: Path) -> bool:
        """Make `destination` the artifact; False where it is not there or cannot be had, which is logged.

        Raises DiskError: a build would need the room, too.
        """
        try:
            return self.pull(kind, fingerprint, destination)
        except DiskError:
            raise
        except (RemoteError, ArtifactError, OSError) as error:
            log.warning("%s %s was not pulled, and is built: %s", kind, fingerprint, error)
            return False

    def push(self, made: Artifact) -> Facts:
        """Send the files that are missing, and the manifest; returns how much there was to send.

        Raises RemoteError: where another content stands there under this name, or the remote fails; ArtifactError
        where a local shard is not what was made; OSError where a file cannot be read.
        """
        try:
            with FileLock(f"{made.path}.push.lock", timeout=0):
                return self._push(made)
        except Timeout:
            raise RemoteError(f"another process is pushing {made.path}; remedy: none is needed") from None

    def _push(self, made: Artifact) -> Facts:
        started = time.monotonic()
        shutil.rmtree(_arriving(made.path), ignore_errors=True)  # of a pull that failed before it was built
        key, mine = _key(made.kind, made.fingerprint), describe(made)
        standing = self._manifest(made.kind, made.fingerprint)
        if standing:
            self._assert_same(standing, mine, made)
        sources = {blob.key: made.path / name for name, blob in mine.files.items()}
        missing = self._missing(standing or mine)
        if lost := [blob.key for blob in missing if blob.key not in sources]:
            raise RemoteError(
                f"{self.url}/{key} names {self.url}/{lost[0]}, which is missing or damaged; remedy: remove the "
                "manifest there, then `bert-pipeline push`"
            )
        sent = sum(blob.bytes for blob in missing)
        _at_once(
            f"{made.kind} {made.fingerprint}: pushing",
            sent,
            [partial(self._store.put, sources[blob.key], blob.key) for blob in missing],
        )
        self._damaged -= {blob.key for blob in missing}
        if standing is None and not self._create(key, mine.dump()):
            standing = self._manifest(made.kind, made.fingerprint)  # another writer was first, this moment
            if standing is None:
                raise RemoteError(f"{self.url}/{key} was removed while it was pushed; remedy: `bert-pipeline push`")
            self._assert_same(standing, mine, made)
        _marker(made.path).write_text(self._mark(made.path), encoding="utf-8")
        facts = {
            "kind": made.kind,
            "fingerprint": made.fingerprint,
            "remote": f"{self.url}/{key}",
            "files": len(mine.files),
            "bytes": sum(blob.bytes for blob in mine.files.values()),
            "sent_files": len(missing),
            "sent_bytes": sent,
            "seconds": round(time.monotonic() - started, 3),
        }
        log.info("%s", "{kind} {fingerprint}: pushed to {remote}, {sent_bytes:,} of {bytes:,} bytes".format(**facts))
        return facts

    def _create(self, key: str, content: bytes) -> bool:
        created = self._store.create(key, content)
        if created and self._store.create(key, content):
            log.warning(
                "%s creates an object that is there (it ignores If-None-Match): of two writers of different content "
                "the last one may win; remedy: another store, or a newer version of its server",
                self.url,
            )
        return created

    def _assert_same(self, standing: Manifest, mine: Manifest, made: Artifact) -> None:
        if different := standing.differences(mine):
            key = _key(made.kind, made.fingerprint)
            raise RemoteError(
                f"{self.url}/{key} has another content than {made.path}: {len(different)} files differ, among them "
                f"{different[0]}; both are kept; remedy: remove {made.path} to pull the remote's, or remove that "
                "manifest and `bert-pipeline push`"
            )

    def _missing(self, manifest: Manifest) -> list[Blob]:
        blobs = list(dict.fromkeys(manifest.files.values()))
        with ThreadPoolExecutor(TRANSFERS) as pool:
            sizes = list(pool.map(lambda blob: self._store.size(blob.key), blobs))
        return [
            blob for blob, size in zip(blobs, sizes, strict=True) if size != blob.bytes or blob.key in self._damaged
        ]

    def _manifest(self, kind: str, fingerprint: str) -> Manifest | None:
        key = _key(kind, fingerprint)
        content = self._store.read(key)
        if content is None:
            return None
        try:
            manifest = parse(content)
            if manifest.origin["kind"] != kind or artifact.fingerprint(manifest.origin) != fingerprint:
                raise ValueError("it is of another artifact")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteError(
                f"{self.url}/{key} is damaged ({error}); remedy: remove it there, then `bert-pipeline push` where the "
                "artifact stands"
            ) from error
        return manifest

    def pull(self, kind: str, fingerprint: str, destination: Path) -> bool:
        """Make `destination` the artifact; False where the remote has none. The caller holds the lock of `destination`.

        Raises RemoteError where the remote fails, or a blob is missing or damaged; ArtifactError where its record is;
        DiskError. What has arrived is gone on with.
        """
        manifest = self._manifest(kind, fingerprint)
        if manifest is None:
            return False
        arriving = _arriving(destination)
        arriving.mkdir(parents=True, exist_ok=True)
        wanted: dict[Blob, list[Path]] = {}
        for name, blob in manifest.files.items():
            if not _is_whole(arriving / name, blob):
                wanted.setdefault(blob, []).append(arriving / name)
        num_bytes = sum(blob.bytes for blob in wanted)
        _assert_room(arriving, sum(blob.bytes * len(paths) for blob, paths in wanted.items()))
        started = time.monotonic()
        _at_once(
            f"{kind} {fingerprint}: pulling",
            num_bytes,
            [partial(self._fetch, blob, paths) for blob, paths in wanted.items()],
        )
        for path in list(arriving.rglob("*")):  # what an interrupted pull left
            if path.is_file() and path.relative_to(arriving).as_posix() not in manifest.files:
                path.unlink()
        if artifact.load(arriving, kind).fingerprint != fingerprint:
            raise RemoteError(f"{self.url}/{_key(kind, fingerprint)} names the files of another artifact")
        flush_to_disk(arriving)
        _marker(destination).write_text(self._mark(arriving), encoding="utf-8")
        arriving.rename(destination)
        flush_to_disk(destination.parent, recurse=False)
        seconds = time.monotonic() - started
        log.info("%s %s: pulled from %s, %s bytes in %.1f s", kind, fingerprint, self.url, f"{num_bytes:,}", seconds)
        return True

    def _fetch(self, blob: Blob, paths: list[Path], told: OnBytes) -> None:
        first, *others = paths
        first.parent.mkdir(parents=True, exist_ok=True)
        draft = first.with_name(f"{first.name}.draft")
        for _ in range(FETCHES):
            self._store.get(blob.key, draft, told)
            if _is_whole(draft, blob):
                break
            told(-blob.bytes)
        else:
            self._damaged.add(blob.key)
            raise RemoteError(
                f"{self.url}/{blob.key} has another content than its name says; remedy: `bert-pipeline push` where "
                "the artifact stands, after removing this blob"
            )
        draft.rename(first)
        for path in others:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first, path)

    def _mark(self, path: Path) -> str:
        return f"{self.url}\n{file_digest(path / RECORD)}\n"


def from_environment() -> Remote | None:
    """The remote that BERT_PIPELINE_REMOTE names, the same at each call. Raises RemoteError where it cannot be used."""
    url = settings.remote_url()
    return _open(url) if url else None


@lru_cache
def _open(url: str) -> Remote:
    return Remote(open_store(url, PATIENCE))


def load(store: Path, kind: str, fingerprint: str) -> Artifact:
    """The artifact of a local store, pulled where it is missing and the remote has it. Raises ArtifactError."""
    destination, remote = store / kind / fingerprint, from_environment()
    if remote and not destination.exists():
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{destination}.lock"):
            if not destination.exists():
                remote.try_pull(kind, fingerprint, destination)
    return artifact.load(destination, kind)


def _key(kind: str, fingerprint: str) -> str:
    return f"{kind}/{fingerprint}.json"


def _arriving(destination: Path) -> Path:
    return destination.with_name(destination.name + ".pulling")


def _marker(destination: Path) -> Path:
    return destination.with_name(destination.name + ".pushed")


def _is_whole(path: Path, blob: Blob) -> bool:
    return path.is_file() and path.stat().st_size == blob.bytes and file_digest(path) == blob.sha256


def _assert_room(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if num_bytes > free:
        raise DiskError(
            errno.ENOSPC,
            f"{free:,} bytes are free, and {num_bytes:,} are to be pulled; remedy: make room, or set "
            "BERT_PIPELINE_HOME to another disk, and run it again: what is whole is kept",
            str(path),
        )


def _at_once(what: str, num_bytes: int, transfers: Iterable[Callable[[OnBytes], None]]) -> None:
    """Run the transfers, some at a time, with progress. The first that fails ends the others."""
    progress, lock, stop = Progress(what, num_bytes, "bytes"), threading.Lock(), threading.Event()

    def told(count: int) -> None:
        if stop.is_set():
            raise Stopped
        with lock:
            progress.advance(count)

    with ThreadPoolExecutor(TRANSFERS) as pool:
        running = [pool.submit(transfer, told) for transfer in transfers]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:  # of which is being cancelled
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
