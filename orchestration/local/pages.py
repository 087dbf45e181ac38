"""Dagster's and MLflow's web pages on loopback: start both, wait until they answer, and end all of their processes."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from bert_pipeline import settings
from orchestration.local.home import environment, prepare
from orchestration.local.signals import collected_signals
from orchestration.tracking.database import open_client

WORKSPACE = Path(__file__).with_name("workspace.yaml")
HOST = "127.0.0.1"
POLL_SECONDS = 0.3
STOP_SECONDS = 600.0
"""Time for runs to save their checkpoints before they are killed."""


log = logging.getLogger(__name__)


class PagesFailed(RuntimeError):
    """A server could not start, or ended by itself."""


class Server:
    """A server in a process group of its own, so that all of its processes can be ended."""

    def __init__(self, name: str, command: Sequence[str], port: int, health: str, log: Path) -> None:
        self.name, self.command, self.port, self.log = name, command, port, log
        self.address = f"http://{HOST}:{port}"
        self._health = self.address + health
        self._process: subprocess.Popen | None = None

    def assert_port_is_free(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise PagesFailed(
                    f"port {self.port} for {self.name} cannot be used ({error.strerror}); remedy: end the program that "
                    f"uses it (`ss -ltnp`), or set --{self.name.lower()}-port"
                ) from error

    def start(self, folder: Path, variables: dict[str, str]) -> None:
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def assert_it_runs(self) -> None:
        assert self._process
        if self._process.poll() is not None:
            raise PagesFailed(f"{self.name} ended with exit code {self._process.returncode}; its log: {self.log}")

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


def serve(home: Path, dagster_port: int, mlflow_port: int, on_answer: Callable[[str, str], None]) -> None:
    """Serve the pages until SIGINT, SIGTERM or SIGHUP. Calls `on_answer(name, address)` when a server first answers.

    With MLFLOW_TRACKING_URI at a server, that server is MLflow's. Runs that the pages started save a checkpoint before
    they end; a second signal kills them. Raises PagesFailed if a port is in use or a server ends.
    """
    folder, tracking, logs = prepare(home), settings.mlflow_tracking_uri(home), home / "logs"
    logs.mkdir(exist_ok=True)
    servers = [_dagster(dagster_port, logs)]
    if not tracking.startswith(("http://", "https://")):
        servers.append(_mlflow(mlflow_port, tracking, logs))
    for server in servers:
        server.assert_port_is_free()
    open_client(tracking)  # creates the tables of a new database, before two programs do so at once
    urls = {f"BERT_PIPELINE_{server.name.upper()}_URL": server.address for server in servers}
    variables = environment(home, urls)
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


def _dagster(port: int, logs: Path) -> Server:
    command = [sys.executable, "-m", "dagster_dg_cli.cli.entrypoint", "dev", "--workspace", str(WORKSPACE)]
    command += ["--host", HOST, "--port", str(port)]
    return Server("Dagster", command, port, "/server_info", logs / "dagster.log")


def _mlflow(port: int, database: str, logs: Path) -> Server:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return Server("MLflow", [*command, "--backend-store-uri", database], port, "/health", logs / "mlflow.log")


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
