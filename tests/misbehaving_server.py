"""A real local HTTP server that truncates, stalls, misreports and redirects, as scripted for each path."""

import http.server
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Answer:
    """By default well-behaved: complete files, and ranges for clients that have the same version."""

    content: bytes = b""
    status: int = 200
    reason: str | None = None
    etag: str = ""
    last_modified: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    ignores_ranges: bool = False
    ignores_if_range: bool = False
    range_begins: int | None = None
    """First byte that a 206 claims to send."""
    length: int | str | None = 0
    """Added to the correct Content-Length; "chunked" for chunked encoding, None to send no length."""
    cut_at: int | None = None
    """Byte of the content at which the connection ends."""
    resets: bool = False
    """End the connection with a reset."""
    drip: float = 0.0
    """Seconds between consecutive bytes, starting at byte `drips_at`."""
    drips_at: int = 0
    drips_header: bool = False


@dataclass
class Site:
    """The answers of each path in sequence; the last one repeats. Unknown paths return 404."""

    port: int = 0
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header."""
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: set[object] = field(default_factory=set)
    """Requests in progress."""
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def next_answer(self, path: str) -> Answer:
        answers = self.answers.get(path, [Answer(status=404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Handler(http.server.BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site = self.site
        with site.lock:
            site.requests.append((self.path, self.headers.get("Range")))
            site.headers.append(dict(self.headers))
            answer = site.next_answer(self.path)
            site.at_once.add(self)
            site.most_at_once = max(site.most_at_once, len(site.at_once))
        try:
            self._answer(answer)
        except OSError:
            pass  # the client closed the connection
        finally:
            self._leave()

    def _leave(self) -> None:
        with self.site.lock:
            self.site.at_once.discard(self)

    def _answer(self, answer: Answer) -> None:
        content, status, begin = answer.content, answer.status, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range")
        is_same = answer.ignores_if_range or if_range in (None, answer.etag, answer.last_modified)
        if status == 200 and asked and is_same and not answer.ignores_ranges:
            begin = int(asked[1])
            status = 206 if begin < len(content) else 416
        if answer.drips_header:
            for byte in b"HTTP/1.0 200 OK\r\nX-Slow: " + b"x" * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(answer.drip)
        if answer.length == "chunked":
            self.protocol_version = "HTTP/1.1"
        self.send_response(status, answer.reason)
        if status == 206:
            first = begin if answer.range_begins is None else answer.range_begins
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if status == 416:
            content = b""
        for name, value in ({"ETag": answer.etag, "Last-Modified": answer.last_modified} | answer.headers).items():
            if value:
                self.send_header(name, value)
        if answer.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif answer.length is not None:
            self.send_header("Content-Length", str(max(0, len(content) - begin + int(answer.length))))
        self.end_headers()
        self._send(content[begin : answer.cut_at], answer, begin)
        if answer.length == "chunked" and answer.cut_at is None:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True
        if answer.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _send(self, content: bytes, answer: Answer, begin: int) -> None:
        at_once = len(content) if not answer.drip else min(len(content), max(0, answer.drips_at - begin))
        pieces = [content[:at_once], *(bytes([byte]) for byte in content[at_once:])]
        pieces = [*filter(None, pieces)]
        for n, piece in enumerate(pieces, 1):
            if n > 1 and answer.drip:
                time.sleep(answer.drip)
            if n == len(pieces):
                self._leave()  # the client may open its next connection before this handler returns
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.length == "chunked" else piece)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def misbehaving_server(certificate: Path | None = None) -> Iterator[Site]:
    """Start the server. With a certificate (and its key, in one file) it uses HTTPS."""
    site = Site()
    handler = type("ScriptedHandler", (Handler,), {"site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.block_on_close = False  # do not wait for slow responses
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.port = server.server_address[1]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")
            yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
