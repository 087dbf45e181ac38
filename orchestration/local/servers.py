"""Servers on loopback: start them, wait until they answer, and end all of their processes."""

import logging
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from orchestration.local.signals import collected_signals

HOST = "127.0.0.1"
POLL_SECONDS = 0.3
STOP_SECONDS = 600.0
"""Time for runs to save their checkpoints before they are killed."""


log = logging.getLogger(__name__)


class ServerFailed(RuntimeError):
    """A server could not start, or ended by itself."""


class Server:
    """A server in a process group of its own, so that all of its processes can be ended."""

    def __init__(self, name: str, command: Sequence[str], port: int, health: str, log: Path, option: str) -> None:
        """`health`: path that answers when the server is ready. `option`: the option that sets its port."""
        self.name, self.command, self.port, self.log, self.option = name, command, port, log, option
        self.address = f"http://{HOST}:{port}"
        self._health = self.address + health
        self._process: subprocess.Popen | None = None

    def assert_port_is_free(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise ServerFailed(
                    f"port {self.port} for {self.name} cannot be used ({error.strerror}); remedy: end the program that "
                    f"uses it (`ss -ltnp`), or set {self.option}"
                ) from error

    def start(self, folder: Path, variables: Mapping[str, str]) -> None:
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def assert_it_runs(self) -> None:
        assert self._process
        if self._process.poll() is not None:
            raise ServerFailed(f"{self.name} ended with exit code {self._process.returncode}; its log: {self.log}")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._health, timeout=5):
                return True
        except OSError:
            return False

    def send(self, number: int) -> None:
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def is_running(self) -> bool:
        """Whether any process of the group runs. Zombies do not count: in a container, nobody may collect them."""
        if not self._process:
            return False
        self._process.poll()
        return any(_runs_in_group(process, self._process.pid) for process in psutil.process_iter())


def _runs_in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def serve_all(
    servers: Sequence[Server], folder: Path, variables: Mapping[str, str], on_answer: Callable[[str, str], None]
) -> None:
    """Run the servers in `folder` until SIGINT, SIGTERM or SIGHUP. Calls `on_answer(name, address)` when one first
    answers. A second signal kills them. Raises ServerFailed if one ends.
    """
    with collected_signals() as received:
        try:
            for server in servers:
                server.start(folder, variables)
            silent = list(servers)
            while not received:
                for server in servers:
                    server.assert_it_runs()
                    if server in silent and server.answers():
                        silent.remove(server)
                        on_answer(server.name, server.address)
                time.sleep(POLL_SECONDS)
        finally:
            _end(servers, received)


def _end(servers: Sequence[Server], received: Sequence[int]) -> None:
    log.info("stopping; runs save their checkpoints first (a second signal kills them)")
    for server in servers:
        server.send(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while running := [server for server in servers if server.is_running()]:
        if time.monotonic() > deadline or len(received) > 1:
            for server in running:
                server.send(signal.SIGKILL)
        time.sleep(POLL_SECONDS)
