"""A mirror of PubMed's files, which grows: what NLM lists is fetched, verified by NLM's MD5, and not fetched again.

    baseline/pubmed26n0001.xml.gz(.md5)      once a year, all citations
    updatefiles/pubmed26n1335.xml.gz(.md5)   each day
    files.jsonl                              a line a file that stands verified: MirroredFile
    quarantine/                              what had another MD5 than NLM gives

A new baseline replaces all files of the year before, so files of two years are never mixed.
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
    """A line of files.jsonl."""

    name: str = Field(pattern=f"^{NAME.pattern}$")
    folder: Folder
    bytes: int = Field(ge=1)
    md5: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    released: str = Field(pattern="^([0-9]{4}-[0-9]{2}-[0-9]{2})?$")
    """The day (UTC) that the server names as the file's last change; of the listing where it names none."""
    url: str


def download_pubmed(
    out: Path, base_url: str = BASE_URL, parallel: int = 3, patience: Patience = DEFAULT_PATIENCE
) -> Facts:
    """Bring the mirror in `out` up to date, over `parallel` connections at most.

    A file appears whole and verified, or not at all. Returns facts: `year`, `files` and `bytes` that stand,
    `files_fetched` and `bytes_fetched` now, `last_released`, `passed_over` (names that were listed but not taken) and
    `numbers_left_out` (how many the listing skips: NLM counts on from the baseline to its updates).
    Raises DownloadError before anything is fetched where years would mix; else after all other files are done, for
    those that failed; DiskError as soon as the disk is full. Stopped at any moment, the next call goes on from there.
    """
    if parallel < 1:
        raise ValueError(f"parallel is {parallel}; remedy: 1 or more connections")
    base_url = base_url.rstrip("/") + "/"
    out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        listed, passed_over = list_files(base_url, patience)
        standing = _standing(out)
        _assert_one_year(listed, out)
        missing = [each for each in listed if each.path not in standing]
        log.info("%d files listed, %d of them here", len(listed), len(listed) - len(missing))
        _write_record(out, standing)
        for each in missing:
            if (out / each.path).exists():  # unverified, it must not keep its name whatever becomes of the run
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
                standing[each.path] = outcome
                _write_record(out, standing)
        failures += [
            f"{path}: neither recorded nor listed, so it cannot be verified; remedy: remove it"
            for path in sorted(_paths_in(out) - standing.keys() - {each.path for each in listed})
        ]
    if failures:
        lines = "\n  ".join(failures)
        raise DownloadError(f"failed files: {len(failures):,} ({len(standing):,} stand in {out}):\n  {lines}")
    numbers = {each.number for each in listed}
    return {
        "year": 2000 + int(listed[0].year),
        "files": len(standing),
        "bytes": sum(each.bytes for each in standing.values()),
        "files_fetched": len(missing),
        "bytes_fetched": transfers.arrived,
        "last_released": max(each.released for each in standing.values()),
        "passed_over": passed_over,
        "numbers_left_out": max(numbers) - min(numbers) + 1 - len(numbers),
    }


def update_pubmed(out: Path) -> Facts:
    """Bring a mirror up to date from where its files came from; see `download_pubmed`.

    Raises DownloadError where there is no mirror yet: to fetch tens of gigabytes is for a person to begin.
    """
    recorded = read_record(out)
    if not recorded:
        raise DownloadError(f"{out} is no mirror of PubMed; remedy: bert-pipeline download-pubmed --out {out}")
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
    beside = path.with_name(f"{each.name}.md5")
    with writing(beside):
        beside.write_text(f"MD5({each.name})= {md5}\n", encoding="ascii")
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
    """What the work made of each file, as they are done; any error but DownloadError ends it and sets `is_over`.

    The threads are daemons: no silent server keeps the process from its end, and what they have written stays.
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
    """The run is over, and with it this transfer."""


class _Transfers:
    """What the connections bring, told as one; the sizes are the listing's, and so about right."""

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
                told = min(num_bytes, left) if self._has_sizes else num_bytes
                left -= told
                if told:
                    self._progress.advance(told)

        try:
            yield count
        finally:  # what the listing rounded up, or an earlier run had brought
            if self._has_sizes and left and not self.is_over.is_set():
                with self._lock:
                    self._progress.advance(left)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    try:
        with FileLock(out / "download.lock", timeout=0):
            yield
    except Timeout as error:
        raise DownloadError(f"{out}: another run downloads to it now; remedy: wait for its end") from error


def _assert_one_year(listed: Sequence[Listed], out: Path) -> None:
    """A file of another year has other citations under the same number, and its updates are of another baseline."""
    years = sorted({each.year for each in listed})
    if len(years) > 1:
        raise DownloadError(
            f"the server lists files of the years {' and '.join(years)}: a new baseline is on its way; remedy: run it"
            " again when the server's files are all of one year"
        )
    if others := sorted(path for path in _paths_in(out) if year_of(Path(path).name) != years[0]):
        raise DownloadError(
            f"{out} holds {len(others):,} files of another year than the server ({others[0]}, not of 20{years[0]}), and"
            f" a year's baseline replaces all before it; remedy: name an empty folder, or remove {', '.join(FOLDERS)}"
            f" and {RECORD} there"
        )


def _paths_in(out: Path) -> set[str]:
    """baseline/pubmed26n0001.xml.gz and so on."""
    return {f"{folder}/{path.name}" for folder in FOLDERS for path in (out / folder).glob("*.gz") if year_of(path.name)}


def _standing(out: Path) -> dict[str, MirroredFile]:
    """The files that stand, by path: recorded as verified, and on disk in that size."""
    standing = {}
    for name, row in read_record(out).items():
        path = out / name
        if path.is_file() and path.stat().st_size == row.bytes:
            standing[name] = row
        else:
            log.warning("%s is not there in its %d bytes, and fetched anew", path, row.bytes)
    return standing


def read_record(out: Path) -> dict[str, MirroredFile]:
    """What was fetched and verified, by path."""
    recorded = {}
    lines = (out / RECORD).read_bytes().splitlines() if (out / RECORD).exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = MirroredFile.model_validate_json(line)
        except ValidationError:
            log.warning("%s, line %d: damaged; the file that it tells of is verified anew", out / RECORD, number)
        else:
            recorded[f"{row.folder}/{row.name}"] = row
    return recorded


def _write_record(out: Path, standing: dict[str, MirroredFile]) -> None:
    lines = [json.dumps(standing[path].model_dump()) + "\n" for path in sorted(standing)]
    partial = out / f"{RECORD}.partial"
    with writing(partial):
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out / RECORD)
