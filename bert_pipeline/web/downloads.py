"""Download files from third-party servers: either the complete, verified file or an error that says what failed.

`fetch` downloads a file with a known digest, `read` a small response (a listing, a checksum). Both retry after growing,
randomized pauses, or after the time that the server asks for (Retry-After). A broken transfer resumes at the last byte
(range requests, RFC 9110 section 14) if the server still has the same version (If-Range, section 13.1.5). The digest
decides whether the file is right, whatever the server reports.

Why not httpx or pooch: httpx 0.28 replaces 77 of 843 lines of HTTP code (web, PubMed mirror and listing) by an adapter
of 46, but both tests of slow drips hang: its timeouts restart with each byte. Ranges, retries and digests stay ours.
pooch 1.9 has digest, retries and rename, but deletes partial files, so nothing resumes; it lacks If-Range, Retry-After,
the rate limit and quarantine, follows redirects to plain http and sends credentials from ~/.netrc.
"""

import http.client
import json
import logging
import os
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Literal, TypeVar

from bert_pipeline.core.files import file_digest
from bert_pipeline.web.connections import DEFAULT_PATIENCE, DownloadError, Patience, open_url

log = logging.getLogger(__name__)

REFETCHES = 3
"""How often a file with a wrong digest is downloaded again if there is a quarantine."""
MAX_BYTES = 1 << 30
"""Size limit for a file of unknown size; a PubMed file has about 20 MB."""
MAX_BYTES_READ = 1 << 24
"""Size limit for the response of `read`."""
CHUNK_BYTES = 1 << 16
RETRIED_STATUSES = {408, 416, 429, 500, 502, 503, 504}
STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')

Result = TypeVar("Result")


class DiskError(OSError):
    """Downloaded data cannot be written to disk; further downloads would fail, too."""


class _WrongDigest(ValueError):
    """The content has a wrong digest; retry unless `is_final`."""

    def __init__(self, message: str, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


def fetch(
    url: str,
    path: Path,
    digest: str,
    *,
    algorithm: Literal["md5", "sha256"] = "sha256",
    num_bytes: int | None = None,
    quarantine: Path | None = None,
    patience: Patience = DEFAULT_PATIENCE,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> str:
    """Download `url` to `path` and verify its digest (and its size in bytes, if given).

    `path` appears only when the file is complete and verified. An existing file with the right digest is kept; any
    other file at `path` is treated as a partial download. Partial data stays in `<path>.partial`, with the server's
    validators in `<path>.partial.json`, and the next call resumes from it. Content with a wrong digest is deleted. If
    `quarantine` is given (for a digest from the same server as the file), it is moved there and the file is downloaded
    again up to REFETCHES times.

    `on_bytes` receives the size of each chunk; an exception from it ends the transfer. Returns the date of the server's
    Last-Modified (UTC, 2026-01-29), or "" if unknown. Raises DownloadError, or DiskError if the disk is full.
    """
    partial = Partial(path)
    if path.exists():
        if file_digest(path, algorithm) == digest:
            return ""
        partial.adopt(path)
    wrong = 0

    def attempt() -> str:
        nonlocal wrong
        began_at = partial.num_bytes
        if began_at and file_digest(partial.path, algorithm) == digest:
            return partial.rename_to(path)
        if num_bytes is not None and began_at >= num_bytes:
            partial.drop()
            began_at = 0
        expected = _receive(url, partial, num_bytes, patience, on_bytes)
        found, arrived = file_digest(partial.path, algorithm), partial.num_bytes
        if found == digest:
            return partial.rename_to(path)
        if expected is None or arrived < expected:
            of = "an unknown number of" if expected is None else f"{expected:,}"
            raise http.client.HTTPException(f"the connection ended after {arrived:,} of {of} bytes")
        wrong += 1
        beginning = partial.beginning()
        partial.drop(quarantine)
        is_resumed = bool(began_at)  # the partial file may have come from other content
        raise _WrongDigest(
            f"wrong content: {algorithm} is {found}, not {digest} ({arrived:,} bytes that begin with {beginning!r})",
            is_final=wrong > (REFETCHES if quarantine else int(is_resumed)),
        )

    return _retry(url, attempt, patience, f"run it again later, or download the file by other means to {path}")


def read(url: str, parse: Callable[[bytes], Result], patience: Patience = DEFAULT_PATIENCE) -> Result:
    """Download a small response and return `parse(content)`; a ValueError from `parse` is retried like any fault."""

    def attempt() -> Result:
        with open_url(url, {}, patience) as response:
            content = response.read(MAX_BYTES_READ + 1)
            if len(content) > MAX_BYTES_READ:
                raise http.client.HTTPException(f"the response is larger than {MAX_BYTES_READ:,} bytes")
            if response.length:  # the only sign of short content that http.client gives
                raise http.client.HTTPException(
                    f"the connection ended after {len(content):,} bytes, {response.length:,} before the end"
                )
            return parse(content)

    return _retry(url, attempt, patience, "run it again later")


class Partial:
    """The downloaded part of a file, and the validators that identify its version on the server."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.partial")
        self._notes = path.with_name(f"{path.name}.partial.json")

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validators(self) -> dict[str, str]:
        """ETag and Last-Modified, if known."""
        try:
            return dict(json.loads(self._notes.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def begin(self, validators: dict[str, str]) -> None:
        with writing(self.path):
            self.path.write_bytes(b"")  # first, so that new validators never describe old content
            self._notes.write_text(json.dumps(validators), encoding="utf-8")

    def append(self, chunk: bytes) -> None:
        with writing(self.path), self.path.open("ab") as file:
            file.write(chunk)

    def beginning(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(20)

    def adopt(self, path: Path) -> None:
        """Use the file at `path` as the partial file."""
        path.replace(self.path)
        self._notes.unlink(missing_ok=True)

    def drop(self, quarantine: Path | None = None) -> None:
        with writing(self.path):
            if quarantine:
                quarantine.parent.mkdir(parents=True, exist_ok=True)
                self.path.replace(quarantine)
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def rename_to(self, path: Path) -> str:
        """Move the complete file to `path` and return its date, or "" if unknown."""
        modified = _parse_date(self.validators.get("Last-Modified"))
        with writing(path):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(path)
        self._notes.unlink(missing_ok=True)
        return modified.date().isoformat() if modified else ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a DiskError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = "free disk space or use another folder, then run it again: downloaded data is kept"
        raise DiskError(error.errno, f"{error.strerror}; remedy: {remedy}", str(path)) from error


def _receive(
    url: str, partial: Partial, num_bytes: int | None, patience: Patience, on_bytes: Callable[[int], None]
) -> int | None:
    """Append the rest of the file to `partial`, or write it from scratch; return its full size, None if unknown."""
    began_at, known = partial.num_bytes, partial.validators
    headers = {}
    if began_at:
        headers["Range"] = f"bytes={began_at}-"
        if validator := known.get("ETag") or known.get("Last-Modified"):
            headers["If-Range"] = validator
    try:
        response = open_url(url, headers, patience)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.drop()
        raise
    with response:
        if response.headers.get_content_type() == "text/html":  # checked before the partial file is overwritten
            raise http.client.HTTPException("the server sent an HTML page (text/html) instead of the file")
        found = _validators(response.headers)
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            range_ = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", range_, re.ASCII)
            if not match or int(match[1]) != began_at or not began_at:
                partial.drop()
                raise http.client.HTTPException(f"the server sent a range that was not requested: {range_!r}")
            if any(found[name] != known[name] for name in found.keys() & known.keys()):
                partial.drop()
                raise http.client.HTTPException(f"the file has changed on the server: {known} is now {found}")
            expected = None if match[2] == "*" else int(match[2])
        elif response.status == HTTPStatus.OK:
            partial.begin(found)
            began_at, expected = 0, response.length
        else:
            raise http.client.HTTPException(f"the server says {response.status} {response.reason}")
        arrived = began_at
        limit = MAX_BYTES if num_bytes is None else num_bytes + 1
        while chunk := response.read1(min(CHUNK_BYTES, limit - arrived)):
            partial.append(chunk)
            arrived += len(chunk)
            on_bytes(len(chunk))
        if num_bytes is not None:
            return num_bytes
        return arrived if response.chunked or arrived == limit else expected


def _validators(headers: Message) -> dict[str, str]:
    """The validators usable in If-Range: a strong ETag and a valid Last-Modified."""
    found = {name: str(headers.get(name, "")) for name in ("ETag", "Last-Modified")}
    if not STRONG_ETAG.fullmatch(found["ETag"]):
        del found["ETag"]
    if not _parse_date(found["Last-Modified"]) or not found["Last-Modified"].isascii():
        del found["Last-Modified"]
    return found


def _retry(url: str, attempt: Callable[[], Result], patience: Patience, remedy: str) -> Result:
    """Call `attempt` until it succeeds and return its result; raise DownloadError if retrying does not help."""
    for number in range(1, patience.attempts + 1):
        retry_after, is_final = 0.0, False
        try:
            return attempt()
        except DiskError:
            raise
        except urllib.error.HTTPError as error:
            fault = f"the server says {error.code} {error.reason}"
            retry_after = _retry_after(error.headers)
            is_final = error.code not in RETRIED_STATUSES
            error.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault = str(error) if isinstance(error, _WrongDigest) else f"{type(error).__name__}: {error}"
            is_final = isinstance(error, _WrongDigest) and error.is_final
        fault = ascii(" ".join(fault.split()))[1:-1]
        log.info("%s: attempt %d of %d: %s", url, number, patience.attempts, fault)
        if retry_after > patience.longest_pause:
            fault += f", and asks to retry after {retry_after:,.0f} s"
            break
        if is_final:
            break
        if number < patience.attempts:
            time.sleep(max(retry_after, patience.pause(number)))
    raise DownloadError(f"{url}: {fault}; remedy: {remedy}")


def _retry_after(headers: Message) -> float:
    """Seconds of Retry-After (RFC 9110 section 10.2.3), 0 without one; a date is relative to the server's Date."""
    value = str(headers.get("Retry-After", "")).strip()
    if re.fullmatch("[0-9]+", value):
        return float(value)
    then, now = _parse_date(value), _parse_date(headers.get("Date"))
    return (then - now).total_seconds() if then and now else 0.0


def _parse_date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None
