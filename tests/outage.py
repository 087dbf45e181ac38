"""A TCP proxy in front of a server that can refuse connections, hang, or answer 503."""

import contextlib
import socket
import threading
from typing import Literal

Mode = Literal["pass", "refuse", "hang", "503"]
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Outage:
    """The mode applies to new and to open connections; hanging ones are answered when the mode changes."""

    def __init__(self, port: int, mode: Mode = "pass") -> None:
        self._server_port, self._mode = port, mode
        self._changed = threading.Condition()
        self.port = 0
        self._door: socket.socket | None = None
        if mode == "refuse":
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        else:
            self._open()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def become(self, mode: Mode) -> None:
        with self._changed:
            self._mode = mode
            self._changed.notify_all()
        if mode == "refuse":
            self._close()
        elif self._door is None:
            self._open()

    def stop(self) -> None:
        self.become("refuse")

    def _open(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self.port))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._welcome, args=(self._door,), daemon=True).start()

    def _close(self) -> None:
        if self._door:
            self._door.shutdown(socket.SHUT_RDWR)
            self._door.close()
            self._door = None

    def _welcome(self, door: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = door.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._mode == "503":
                client.recv(1 << 16)
                client.sendall(BUSY)
                return
            with socket.create_connection(("127.0.0.1", self._server_port)) as server:
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                with self._changed:
                    self._changed.wait_for(lambda: self._mode != "hang")
                    mode = self._mode
                if mode != "pass":
                    break
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
