"""Incremental mirror of the PubMed files: download what NLM lists, verify it by NLM's MD5, and keep it.

    baseline/pubmed26n0001.xml.gz(.md5)      all citations, once a year
    updatefiles/pubmed26n1335.xml.gz(.md5)   daily updates
    files.jsonl                              one line (MirroredFile) per verified file
    quarantine/                              files whose MD5 differs from NLM's

A new baseline replaces all files of the previous year, so a mirror never mixes files of two years.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from bert_pipeline.core.files import file_digest
from bert_pipeline.core.progress import Progress
from bert_pipeline.data.sources.pubmed.listing import FOLDERS, NAME, Folder, Listed, list_files, parse_md5, year_of
from bert_pipeline.recipe import Section
from bert_pipeline.store.artifact import Facts
from bert_pipeline.web.connections import DEFAULT_PATIENCE, DownloadError, Patience
from bert_pipeline.web.downloads import Partial, fetch, read, writing

log = logging.getLogger(__name__)

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/pubmed/"
RECORD = "files.jsonl"


class MirroredFile(Section):
    """One line of files.jsonl."""

    name: str = Field(pattern=f"^{NAME.pattern}$")
    folder: Folder
    bytes: int = Field(ge=1)
    md5: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    released: str = Field(pattern="^([0-9]{4}-[0-9]{2}-[0-9]{2})?$")
    """Day (UTC) of the server's Last-Modified, or the day in the listing if the server sends none."""
    url: str


def download_pubmed(
    out: Path, base_url: str = BASE_URL, parallel: int = 3, patience: Patience = DEFAULT_PATIENCE
) -> Facts:
    """Bring the mirror in `out` up to date with at most `parallel` connections.

    A file appears only when it is complete and verified. After an interruption, the next call resumes. Returns facts:
    `year`; `files` and `bytes` in the mirror; `files_fetched` and `bytes_fetched` by this call; `last_released`;
    `passed_over` (listed names that were skipped); and `numbers_left_out` (how many numbers the listing skips; NLM
    numbers the updates after the baseline). Raises DownloadError before downloading if years would mix, or at the end
    if files failed (all others are downloaded first); DiskError as soon as the disk is full.
    """
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}; remedy: use 1 or more connections")
    base_url = base_url.rstrip("/") + "/"
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        listed, passed_over = list_files(base_url, patience)
        verified = _verified_files(out)
        _assert_one_year(listed, out)
        missing = [each for each in listed if each.path not in verified]
        log.info("%d files listed, %d of them in the mirror", len(listed), len(listed) - len(missing))
        _write_record(out, verified)
        for each in missing:
            if (out / each.path).exists():  # unverified: must not keep its name even if the run fails
                Partial(out / each.path).adopt(out / each.path)
        transfers = _Transfers(missing)

        def fetch_one(each: Listed) -> MirroredFile:
            with transfers.of(each) as on_bytes:
                return _fetch_file(out, base_url, each, patience, on_bytes)

        failures = []
        for each, outcome in _in_parallel(fetch_one, missing, parallel, transfers.is_over):
            if isinstance(outcome, DownloadError):
                failures.append(f"{each.path}: {outcome}")
            else:
                verified[each.path] = outcome
                _write_record(out, verified)
        failures += [
            f"{path}: cannot be verified because it is neither in {RECORD} nor in the listing; remedy: remove it"
            for path in sorted(_paths_in(out) - verified.keys() - {each.path for each in listed})
        ]
    if failures:
        lines = "\n  ".join(failures)
        raise DownloadError(f"failed files: {len(failures):,} ({len(verified):,} verified files in {out}):\n  {lines}")
    numbers = {each.number for each in listed}
    return {
        "year": 2000 + int(listed[0].year),
        "files": len(verified),
        "bytes": sum(each.bytes for each in verified.values()),
        "files_fetched": len(missing),
        "bytes_fetched": transfers.arrived,
        "last_released": max(each.released for each in verified.values()),
        "passed_over": passed_over,
        "numbers_left_out": max(numbers) - min(numbers) + 1 - len(numbers),
    }


def update_pubmed(out: Path) -> Facts:
    """Update an existing mirror from its own source URL; see `download_pubmed`.

    Raises DownloadError if there is no mirror yet: only a person should start a download of tens of gigabytes.
    """
    recorded = read_record(out)
    if not recorded:
        raise DownloadError(f"{out} is not a PubMed mirror; remedy: run `bert-pipeline download-pubmed --out {out}`")
    path, newest = max(recorded.items(), key=lambda item: (item[1].released, item[0]))
    return download_pubmed(out, newest.url.removesuffix(path))


def _fetch_file(
    out: Path, base_url: str, each: Listed, patience: Patience, on_bytes: Callable[[int], None]
) -> MirroredFile:
    path, url = out / each.path, base_url + each.path
    path.parent.mkdir(exist_ok=True)
    md5 = read(f"{url}.md5", lambda content: parse_md5(content, each.name), patience)
    released = fetch(
        url, path, md5, algorithm="md5", quarantine=out / "quarantine" / each.name, patience=patience, on_bytes=on_bytes
    )
    md5_file = path.with_name(f"{each.name}.md5")
    with writing(md5_file):
        md5_file.write_text(f"MD5({each.name})= {md5}\n", encoding="ascii")
    return MirroredFile(
        name=each.name,
        folder=each.folder,
        bytes=path.stat().st_size,
        md5=md5,
        sha256=file_digest(path),
        released=released or each.released,
        url=url,
    )


def _in_parallel(
    work: Callable[[Listed], MirroredFile], files: Sequence[Listed], parallel: int, is_over: threading.Event
) -> Iterator[tuple[Listed, MirroredFile | DownloadError]]:
    """Yield each file with its result as it completes; any error other than DownloadError ends all work.

    `is_over` is set at the end. The threads are daemons, so a silent server cannot keep the process alive; the data
    that they have written is kept.
    """
    waiting: queue.SimpleQueue[Listed] = queue.SimpleQueue()
    for each in files:
        waiting.put(each)
    done: queue.SimpleQueue[tuple[Listed, MirroredFile | BaseException]] = queue.SimpleQueue()

    def run() -> None:
        while not is_over.is_set():
            try:
                each = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((each, work(each)))
            except BaseException as error:
                done.put((each, error))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(parallel, len(files)))]
    for thread in threads:
        thread.start()
    try:
        for _ in files:
            each, outcome = done.get()
            if isinstance(outcome, BaseException) and not isinstance(outcome, DownloadError):
                raise outcome
            yield each, outcome
    finally:
        is_over.set()
        for thread in threads:
            thread.join(timeout=1.0)


class _Stopped(Exception):
    """The run has ended, so this transfer must end."""


class _Transfers:
    """Joint progress of all connections; the totals are approximate because they come from the listing."""

    def __init__(self, files: Sequence[Listed]) -> None:
        self.arrived = 0
        self.is_over = threading.Event()
        self._has_sizes = all(each.num_bytes for each in files)
        total = sum(each.num_bytes for each in files) if self._has_sizes else None
        self._progress = Progress("PubMed", total, "bytes")
        self._lock = threading.Lock()

    @contextmanager
    def of(self, each: Listed) -> Iterator[Callable[[int], None]]:
        left = each.num_bytes

        def count(num_bytes: int) -> None:
            nonlocal left
            if self.is_over.is_set():
                raise _Stopped
            with self._lock:
                self.arrived += num_bytes
                counted = min(num_bytes, left) if self._has_sizes else num_bytes
                left -= counted
                if counted:
                    self._progress.advance(counted)

        try:
            yield count
        finally:  # add what the listing rounded up or an earlier run had downloaded
            if self._has_sizes and left and not self.is_over.is_set():
                with self._lock:
                    self._progress.advance(left)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / "download.lock", timeout=0):
            yield
    except Timeout as error:
        raise DownloadError(f"{out}: another run is downloading to this folder; remedy: wait until it ends") from error


def _assert_one_year(listed: Sequence[Listed], out: Path) -> None:
    """Refuse to mix years: files of two years with the same number differ, and updates apply to one baseline only."""
    years = sorted({each.year for each in listed})
    if len(years) > 1:
        raise DownloadError(
            f"the server lists files of the years {' and '.join(years)}: a new baseline is being published;"
            " remedy: run it again when all files on the server are of one year"
        )
    if others := sorted(path for path in _paths_in(out) if year_of(Path(path).name) != years[0]):
        raise DownloadError(
            f"{out} holds {len(others):,} files of another year ({others[0]}) than the server (20{years[0]}), and a new"
            f" baseline replaces all earlier files; remedy: use an empty folder, or remove {', '.join(FOLDERS)} and"
            f" {RECORD} from this one"
        )


def _paths_in(out: Path) -> set[str]:
    """The PubMed files on disk, as baseline/pubmed26n0001.xml.gz."""
    return {f"{folder}/{path.name}" for folder in FOLDERS for path in (out / folder).glob("*.gz") if year_of(path.name)}


def _verified_files(out: Path) -> dict[str, MirroredFile]:
    """The files, by path, that are recorded as verified and have the recorded size on disk."""
    verified = {}
    for name, row in read_record(out).items():
        path = out / name
        if path.is_file() and path.stat().st_size == row.bytes:
            verified[name] = row
        else:
            log.warning("%s is missing or does not have %d bytes; downloading it again", path, row.bytes)
    return verified


def read_record(out: Path) -> dict[str, MirroredFile]:
    """Return the downloaded and verified files, by path; damaged lines are skipped with a warning."""
    recorded = {}
    lines = (out / RECORD).read_bytes().splitlines() if (out / RECORD).exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = MirroredFile.model_validate_json(line)
        except ValidationError:
            log.warning("%s, line %d: damaged; verifying its file again", out / RECORD, number)
        else:
            recorded[f"{row.folder}/{row.name}"] = row
    return recorded


def _write_record(out: Path, verified: dict[str, MirroredFile]) -> None:
    lines = [json.dumps(verified[path].model_dump()) + "\n" for path in sorted(verified)]
    partial = out / f"{RECORD}.partial"
    with writing(partial):
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out / RECORD)
