"""The remote tier of the artifact store (BERT_PIPELINE_REMOTE): artifacts built on one machine serve all others.

    <remote>/<kind>/<fingerprint>.json      the manifest: origin; name, size and SHA-256 of each file
    <remote>/blobs/<sha256>                 the content of a file, stored once even if artifacts share it

An artifact is pushed when it is finished locally: first the missing blobs, then the manifest, which is created and
never replaced. So a manifest implies a complete artifact, the next push completes an interrupted one, and of two
writers with different content the second is refused. A pull verifies each file, then the artifact appears by one
rename, as in `artifact.make`. No run depends on the remote: if it fails, the artifact is built and kept locally.

    <store>/<kind>/<fingerprint>.pulling/   files that have arrived; the next pull verifies them again
    <store>/<kind>/<fingerprint>.pushed     the remote that has the artifact, to avoid a request each time

To free room in the remote, remove manifests; then, while nobody pushes, remove the blobs that no manifest names and the
files that end in `.draft`. A bucket also needs a rule that aborts incomplete multipart uploads after some days. If a
blob that is still needed was removed, a pull reports it, the artifact is built, and the push restores the blob.
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
from bert_pipeline.core.files import file_digest, flush_to_disk, replacing
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
"""Files that are transferred at once."""
FETCHES = 2
"""Attempts for a blob that arrives damaged."""
PATIENCE = Patience(attempts=3)


class Remote:
    """An artifact.Tier in a bucket or a shared folder."""

    def __init__(self, store: Persistent) -> None:
        self._store = store
        self._damaged: set[str] = set()
        """Keys of blobs that arrived damaged; the next push writes them again."""

    @property
    def url(self) -> str:
        return self._store.url

    def try_push(self, made: Artifact) -> None:
        """Push the artifact unless this remote has it; log a failure with its remedy."""
        if _marker(made.path).is_file() and _marker(made.path).read_text(encoding="utf-8") == self._mark(made.path):
            return
        try:
            self.push(made)
        except (RemoteError, ArtifactError, OSError) as error:
            log.warning("%s %s is in %s but was not pushed: %s", made.kind, made.fingerprint, made.path, error)

    def try_pull(self, kind: str, fingerprint: str, destination: Path) -> bool:
        """Pull the artifact to `destination`; return False if the remote lacks it or fails (then a warning is logged).

        Raises DiskError if the local disk is full: a build would need the room, too.
        """
        try:
            return self.pull(kind, fingerprint, destination)
        except DiskError:
            raise
        except (RemoteError, ArtifactError, OSError) as error:
            log.warning("%s %s was not pulled and is built instead: %s", kind, fingerprint, error)
            return False

    def push(self, made: Artifact) -> Facts:
        """Send the missing files and the manifest; return the counts of files and bytes.

        Raises RemoteError if the remote fails or has other content under this name, ArtifactError if a local shard is
        damaged, OSError if a file cannot be read.
        """
        try:
            with FileLock(f"{made.path}.push.lock", timeout=0):
                return self._push(made)
        except Timeout:
            raise RemoteError(f"another process is pushing {made.path}; remedy: none needed") from None

    def _push(self, made: Artifact) -> Facts:
        started = time.monotonic()
        shutil.rmtree(_arriving(made.path), ignore_errors=True)  # from a failed pull, before the artifact was built
        key, mine = _key(made.kind, made.fingerprint), describe(made)
        theirs = self._manifest(made.kind, made.fingerprint)
        if theirs:
            self._assert_same(theirs, mine, made)
        sources = {blob.key: made.path / name for name, blob in mine.files.items()}
        missing = self._missing(theirs or mine)
        if lost := [blob.key for blob in missing if blob.key not in sources]:
            raise RemoteError(
                f"{self.url}/{key} names {self.url}/{lost[0]}, which is missing or damaged; remedy: remove the "
                "manifest there, then run `bert-pipeline push`"
            )
        sent = sum(blob.bytes for blob in missing)
        _run_transfers(
            f"{made.kind} {made.fingerprint}: pushing",
            sent,
            [partial(self._store.put, sources[blob.key], blob.key) for blob in missing],
        )
        self._damaged -= {blob.key for blob in missing}
        if theirs is None and not self._create(key, mine.dump()):
            theirs = self._manifest(made.kind, made.fingerprint)  # another writer was just first
            if theirs is None:
                raise RemoteError(f"{self.url}/{key} was removed during the push; remedy: run `bert-pipeline push`")
            self._assert_same(theirs, mine, made)
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
                "%s creates an object that exists (it ignores If-None-Match): of two writers with different content "
                "the last one may win; remedy: use another store or a newer version of its server",
                self.url,
            )
        return created

    def _assert_same(self, theirs: Manifest, mine: Manifest, made: Artifact) -> None:
        if different := theirs.differences(mine):
            key = _key(made.kind, made.fingerprint)
            raise RemoteError(
                f"{self.url}/{key} and {made.path} have different content: {len(different)} files differ, among them "
                f"{different[0]}; both are kept; remedy: remove {made.path} to pull the remote's artifact, or remove "
                "that manifest and run `bert-pipeline push`"
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
                raise ValueError("it belongs to another artifact")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RemoteError(
                f"{self.url}/{key} is damaged ({error}); remedy: remove it there, then run `bert-pipeline push` on a "
                "machine that has the artifact"
            ) from error
        return manifest

    def pull(self, kind: str, fingerprint: str, destination: Path) -> bool:
        """Pull the artifact to `destination`, whose lock the caller holds; return False if the remote has none.

        Raises RemoteError if the remote fails or a blob is missing or damaged, ArtifactError if the record is damaged,
        DiskError if the local disk is full. The next pull keeps the files that have arrived.
        """
        manifest = self._manifest(kind, fingerprint)
        if manifest is None:
            return False
        arriving = _arriving(destination)
        arriving.mkdir(parents=True, exist_ok=True)
        wanted: dict[Blob, list[Path]] = {}
        for name, blob in manifest.files.items():
            if not _is_intact(arriving / name, blob):
                wanted.setdefault(blob, []).append(arriving / name)
        num_bytes = sum(blob.bytes for blob in wanted)
        _assert_room(arriving, sum(blob.bytes * len(paths) for blob, paths in wanted.items()))
        started = time.monotonic()
        _run_transfers(
            f"{kind} {fingerprint}: pulling",
            num_bytes,
            [partial(self._fetch, blob, paths) for blob, paths in wanted.items()],
        )
        for path in list(arriving.rglob("*")):  # left by an interrupted pull
            if path.is_file() and path.relative_to(arriving).as_posix() not in manifest.files:
                path.unlink()
        if artifact.load(arriving, kind).fingerprint != fingerprint:
            raise RemoteError(f"{self.url}/{_key(kind, fingerprint)} lists the files of another artifact")
        flush_to_disk(arriving)
        _marker(destination).write_text(self._mark(arriving), encoding="utf-8")
        arriving.rename(destination)
        flush_to_disk(destination.parent, recurse=False)
        seconds = time.monotonic() - started
        log.info("%s %s: pulled from %s, %s bytes in %.1f s", kind, fingerprint, self.url, f"{num_bytes:,}", seconds)
        return True

    def _fetch(self, blob: Blob, paths: list[Path], on_bytes: OnBytes) -> None:
        """Download a blob to the first path, then copy it to the others."""
        first, *others = paths
        first.parent.mkdir(parents=True, exist_ok=True)
        with replacing(first) as draft:
            for _ in range(FETCHES):
                self._store.get(blob.key, draft, on_bytes)
                if _is_intact(draft, blob):
                    break
                on_bytes(-blob.bytes)
            else:
                self._damaged.add(blob.key)
                raise RemoteError(
                    f"{self.url}/{blob.key}: the content does not match the digest in its name; remedy: remove this "
                    "blob, then run `bert-pipeline push` on a machine that has the artifact"
                )
        for path in others:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first, path)

    def _mark(self, path: Path) -> str:
        """Content of the `.pushed` file: this remote and the digest of the record."""
        return f"{self.url}\n{file_digest(path / RECORD)}\n"


def from_environment() -> Remote | None:
    """The remote set by BERT_PIPELINE_REMOTE, the same object at each call. Raises RemoteError if it is invalid."""
    url = settings.remote_url()
    return _open(url) if url else None


@lru_cache
def _open(url: str) -> Remote:
    return Remote(open_store(url, PATIENCE))


def load(store: Path, kind: str, fingerprint: str) -> Artifact:
    """An artifact of the local store, pulled if only the remote has it. Raises ArtifactError if neither does."""
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


def _is_intact(path: Path, blob: Blob) -> bool:
    return path.is_file() and path.stat().st_size == blob.bytes and file_digest(path) == blob.sha256


def _assert_room(path: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if num_bytes > free:
        raise DiskError(
            errno.ENOSPC,
            f"{free:,} bytes are free, but the pull needs {num_bytes:,}; remedy: make room or "
            f"{settings.MOVE_HOME}, and run again: complete files are kept",
            str(path),
        )


def _run_transfers(what: str, num_bytes: int, transfers: Iterable[Callable[[OnBytes], None]]) -> None:
    """Run the transfers in TRANSFERS threads, with progress. The first failure cancels the others."""
    progress, lock, stop = Progress(what, num_bytes, "bytes"), threading.Lock(), threading.Event()

    def on_bytes(count: int) -> None:
        if stop.is_set():
            raise Stopped
        with lock:
            progress.advance(count)

    with ThreadPoolExecutor(TRANSFERS) as pool:
        running = [pool.submit(transfer, on_bytes) for transfer in transfers]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:  # including KeyboardInterrupt
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
