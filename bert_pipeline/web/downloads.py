"""Files from other people's servers: whole and verified, or an error that names what went wrong.

`fetch` brings a file whose digest is known, `read` a small answer (a listing, a checksum). Both ask a busy or broken
server again, with growing and random pauses, or when it asks to be asked (Retry-After). A file that broke off is taken
up where it broke (ranges, RFC 9110 section 14) if the server still has the same version of it (If-Range, section
13.1.5); the digest has the last word, whatever the server says.
"""

import http.client
import json
import logging
import os
import random
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
"""Of content with another digest, where it is laid in quarantine."""
MOST_BYTES = 1 << 30
"""Of a file whose size is not known; a file of PubMed has some 20 MB."""
MOST_BYTES_READ = 1 << 24
CHUNK_BYTES = 1 << 16
WORTH_ANOTHER_ATTEMPT = {408, 416, 429, 500, 502, 503, 504}
STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')

Result = TypeVar("Result")


class DiskError(OSError):
    """What arrived cannot be written: no other file will fare better."""


class _OtherContent(ValueError):
    """The digest is another; asked for once more unless `is_final`."""

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
    """Make `path` the file of this digest (and size, where that is known), from `url`.

    It appears whole and verified, or not at all. What stands there already and is right is not fetched again; what is
    not, is a partial file. What has arrived stays in `<path>.partial`, from which the next call goes on, with the
    server's validators in `<path>.partial.json`. Content of another digest is thrown away; or, with a digest that comes
    from the same server as the file, moved to `quarantine` and fetched again, REFETCHES times.

    `on_bytes` is told of what arrives; what it raises ends the transfer. Returns the date (UTC, 2026-01-29) of the
    server's Last-Modified, "" where it is not known. Raises DownloadError, and DiskError when the disk is full.
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
            return partial.become(path)
        if num_bytes is not None and began_at >= num_bytes:
            partial.drop()
            began_at = 0
        expected = _receive(url, partial, num_bytes, patience, on_bytes)
        found, arrived = file_digest(partial.path, algorithm), partial.num_bytes
        if found == digest:
            return partial.become(path)
        if expected is None or arrived < expected:
            of = "an unknown number of" if expected is None else f"{expected:,}"
            raise http.client.HTTPException(f"the connection ended after {arrived:,} of {of} bytes")
        wrong += 1
        beginning = partial.beginning()
        partial.drop(quarantine)
        is_pieced = bool(began_at)  # what lay there may have begun another content
        raise _OtherContent(
            f"{algorithm} is {found}, not {digest}: the content is another ({arrived:,} bytes from {beginning!r})",
            is_final=wrong > (REFETCHES if quarantine else int(is_pieced)),
        )

    return _persist(url, attempt, patience, f"run it again later, or fetch the file by other means to {path}")


def read(url: str, parse: Callable[[bytes], Result], patience: Patience = DEFAULT_PATIENCE) -> Result:
    """What `parse` makes of the content; where it raises ValueError, the server is asked again as after any fault."""

    def attempt() -> Result:
        with open_url(url, {}, patience) as response:
            content = response.read(MOST_BYTES_READ + 1)
            if len(content) > MOST_BYTES_READ or response.length:  # http.client tells of short content by this alone
                raise http.client.HTTPException(
                    f"{len(content):,} bytes came, {response.length or 'and more'} were left"
                )
            return parse(content)

    return _persist(url, attempt, patience, "run it again later")


class Partial:
    """What has arrived of a file, and the validators by which the server knows this version of it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.partial")
        self._notes = path.with_name(f"{path.name}.partial.json")

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validators(self) -> dict[str, str]:
        """ETag and Last-Modified, as far as they are known."""
        try:
            return dict(json.loads(self._notes.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def begin(self, validators: dict[str, str]) -> None:
        with writing(self.path):
            self.path.write_bytes(b"")  # first, lest old content be taken for the new version
            self._notes.write_text(json.dumps(validators), encoding="utf-8")

    def append(self, chunk: bytes) -> None:
        with writing(self.path), self.path.open("ab") as file:
            file.write(chunk)

    def beginning(self) -> bytes:
        with self.path.open("rb") as file:
            return file.read(20)

    def adopt(self, path: Path) -> None:
        path.replace(self.path)
        self._notes.unlink(missing_ok=True)

    def drop(self, quarantine: Path | None = None) -> None:
        with writing(self.path):
            if quarantine:
                quarantine.parent.mkdir(parents=True, exist_ok=True)
                self.path.replace(quarantine)
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def become(self, path: Path) -> str:
        """Give the file its name; returns its date."""
        modified = _moment(self.validators.get("Last-Modified"))
        with writing(path):
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(path)
        self._notes.unlink(missing_ok=True)
        return modified.date().isoformat() if modified else ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError in here becomes a DiskError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = "make room or name another folder, and run it again: what has arrived is kept"
        raise DiskError(error.errno, f"{error.strerror}; remedy: {remedy}", str(path)) from error


def _receive(
    url: str, partial: Partial, num_bytes: int | None, patience: Patience, on_bytes: Callable[[int], None]
) -> int | None:
    """Append to `partial` what is missing, or begin anew; returns the size of the whole, None where it is not known."""
    began_at, known = partial.num_bytes, partial.validators
    asked = {}
    if began_at:
        asked["Range"] = f"bytes={began_at}-"
        if validator := known.get("ETag") or known.get("Last-Modified"):
            asked["If-Range"] = validator
    try:
        response = open_url(url, asked, patience)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.drop()
        raise
    with response:
        if response.headers.get_content_type() == "text/html":  # before it takes the place of what is there
            raise http.client.HTTPException("the answer is a page (text/html), not the file")
        found = _validators(response.headers)
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            range_ = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", range_, re.ASCII)
            if not match or int(match[1]) != began_at or not began_at:
                partial.drop()
                raise http.client.HTTPException(f"another range than asked for: {range_!r}")
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
        most = MOST_BYTES if num_bytes is None else num_bytes + 1
        while chunk := response.read1(min(CHUNK_BYTES, most - arrived)):
            partial.append(chunk)
            arrived += len(chunk)
            on_bytes(len(chunk))
        if num_bytes is not None:
            return num_bytes
        return arrived if response.chunked or arrived == most else expected


def _validators(headers: Message) -> dict[str, str]:
    """Those fit for If-Range: a weak ETag promises too little."""
    found = {name: str(headers.get(name, "")) for name in ("ETag", "Last-Modified")}
    if not STRONG_ETAG.fullmatch(found["ETag"]):
        del found["ETag"]
    if not _moment(found["Last-Modified"]) or not found["Last-Modified"].isascii():
        del found["Last-Modified"]
    return found


def _persist(url: str, attempt: Callable[[], Result], patience: Patience, remedy: str) -> Result:
    """The result of the first attempt that succeeds."""
    for number in range(1, patience.attempts + 1):
        asked, is_final = 0.0, False
        try:
            return attempt()
        except DiskError:
            raise
        except urllib.error.HTTPError as error:
            fault = f"the server says {error.code} {error.reason}"
            asked = _retry_after(error.headers)
            is_final = error.code not in WORTH_ANOTHER_ATTEMPT
            error.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            fault = str(error) if isinstance(error, _OtherContent) else f"{type(error).__name__}: {error}"
            is_final = isinstance(error, _OtherContent) and error.is_final
        fault = ascii(" ".join(fault.split()))[1:-1]
        log.info("%s: attempt %d of %d: %s", url, number, patience.attempts, fault)
        if asked > patience.longest_pause:
            fault += f", and to come back in {asked:,.0f} s"
            break
        if is_final:
            break
        if number < patience.attempts:
            time.sleep(max(asked, patience.first_pause * 2 ** (number - 1) * random.uniform(0.5, 1)))
    raise DownloadError(f"{url}: {fault}; remedy: {remedy}")


def _retry_after(headers: Message) -> float:
    """Seconds (RFC 9110 section 10.2.3), a date as counted from the server's own."""
    value = str(headers.get("Retry-After", "")).strip()
    if re.fullmatch("[0-9]+", value):
        return float(value)
    then, now = _moment(value), _moment(headers.get("Date"))
    return (then - now).total_seconds() if then and now else 0.0


def _moment(text: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None
