"""Connections to other people's servers: to https alone, without credentials, and none that drips for ever.

Plain http is spoken within this machine only. The rules hold after each redirection, too.
"""

import functools
import http.client
import io
import ipaddress
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

USER_AGENT = "bert-pipeline (training of domain BERTs)"


class DownloadError(RuntimeError):
    """A file that does not come, or is not the one that it should be; the message names it and the remedy."""


@dataclass(frozen=True)
class Patience:
    """With a server. Times in seconds."""

    attempts: int = 5
    first_pause: float = 1.0
    """Before the second attempt; each further one is twice as long. Of each a random part, up to half, is left out,
    lest all who were turned away come back together."""
    longest_pause: float = 600.0
    """A server that asks to be left alone for longer is."""
    silence: float = 30.0
    """Of a connection, until it counts as dead."""
    stall: float = 60.0
    """A connection that brings less than `least_rate` bytes a second for so long is given up."""
    least_rate: float = 1000.0


DEFAULT_PATIENCE = Patience()


def open_url(url: str, headers: Mapping[str, str], patience: Patience) -> http.client.HTTPResponse:
    """The answer to a GET.

    Raises DownloadError for an address that may not be asked; OSError (of which is urllib.error.HTTPError),
    http.client.HTTPException and ValueError for what servers and networks do.
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
        raise DownloadError(f"{shown}: not https, and refused; remedy: name the file's https address")
    if "@" in parts.netloc:
        raise DownloadError(f"{shown}: an address with credentials is refused; remedy: name one without")


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
    """The bytes of a connection, from the first of the header on. The socket's own time limit sees only silence."""

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
