"""HTTP connections to third-party servers: https only, no credentials, and a lower limit on the transfer rate.

Plain http is allowed only to this machine. The same rules apply to every redirect.
"""

import functools
import http.client
import io
import ipaddress
import random
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

USER_AGENT = "bert-pipeline (training of domain BERTs)"


class DownloadError(RuntimeError):
    """A file could not be downloaded or has the wrong content; the message names the file and the remedy."""


@dataclass(frozen=True)
class Patience:
    """When to retry and when to give up on a server. Times in seconds."""

    attempts: int = 5
    first_pause: float = 1.0
    """Pause before the second attempt; it doubles with each further attempt."""
    longest_pause: float = 600.0
    """Upper limit of a pause. If Retry-After exceeds it, give up."""
    silence: float = 30.0
    """Give up on a connection that sends nothing for this long."""
    stall: float = 60.0
    """Give up on a connection that delivers fewer than `least_rate` bytes per second over this time."""
    least_rate: float = 1000.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the failure of attempt 1, 2, ...

        Each pause is shortened at random by up to half, so that clients do not retry together.
        """
        return min(self.first_pause * 2 ** (attempt - 1), self.longest_pause) * random.uniform(0.5, 1)


DEFAULT_PATIENCE = Patience()


def open_url(url: str, headers: Mapping[str, str], patience: Patience) -> http.client.HTTPResponse:
    """Send a GET request and return the response.

    Raises DownloadError if the URL is not allowed; OSError (including urllib.error.HTTPError),
    http.client.HTTPException or ValueError if the server or the network fails.
    """
    _assert_safe(url, allow_http=_is_this_machine(url))
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT} | dict(headers))
    return urllib.request.build_opener(_Http(patience), _Https(patience), _SafeRedirects).open(
        request, timeout=patience.silence
    )


def _assert_safe(url: str, allow_http: bool) -> None:
    parts = urlsplit(url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.scheme not in ({"https", "http"} if allow_http else {"https"}):
        raise DownloadError(f"{shown}: refused because it is not https; remedy: use the https URL of the file")
    if "@" in parts.netloc:
        raise DownloadError(f"{shown}: a URL with credentials is refused; remedy: remove them from the URL")


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections, max_repeats = 4, 2

    def redirect_request(self, request, file, code, message, headers, new_url):
        _assert_safe(new_url, allow_http=_is_this_machine(request.full_url) and _is_this_machine(new_url))
        return super().redirect_request(request, file, code, message, headers, new_url)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._patience = patience

    def http_open(self, request):
        return self.do_open(_watched(http.client.HTTPConnection, self._patience), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self._patience = patience

    def https_open(self, request):
        connect = _watched(http.client.HTTPSConnection, self._patience)
        return self.do_open(connect, request, context=ssl.create_default_context())


def _watched(connection_class: type[http.client.HTTPConnection], patience: Patience) -> Callable[..., Any]:
    def connect(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
        connection = connection_class(*arguments, **options)
        connection.response_class = functools.partial(_Response, patience)  # type: ignore[assignment]
        return connection

    return connect


class _Response(http.client.HTTPResponse):
    def __init__(self, patience: Patience, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp: Any = io.BufferedReader(_Watched(self.fp.detach(), patience))


class _Watched(io.RawIOBase):
    """Raw stream that checks the rate of all bytes, headers included; the socket's timeout detects only silence."""

    def __init__(self, raw: io.RawIOBase, patience: Patience) -> None:
        super().__init__()
        self._raw, self._patience = raw, patience
        self._since, self._num_bytes = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self._num_bytes += count or 0
        seconds = time.monotonic() - self._since
        if seconds >= self._patience.stall:
            if self._num_bytes < self._patience.least_rate * seconds:
                raise TimeoutError(f"stalled: {self._num_bytes:,} bytes in {seconds:,.1f} s")
            self._since, self._num_bytes = time.monotonic(), 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
