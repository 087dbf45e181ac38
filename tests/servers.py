"""Real servers on loopback for tests: MLflow, PostgreSQL and nginx, as processes that end with the test."""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def installed(name: str) -> str | None:
    places = [str(BIN), "/usr/sbin", os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    return shutil.which(name, path=os.pathsep.join(places))


def program(name: str) -> str:
    return installed(name) or pytest.skip(f"{name} is not installed here")


def changed(text: str, **replaced: str) -> str:
    """The text with replacements; each replaced text must occur."""
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def make_secrets(folder: Path) -> Path:
    """Run make-secrets.sh in a copy of infra/compose; return the folder of secrets."""
    program("openssl")
    shutil.copytree(INFRA / "compose", folder / "compose", ignore=shutil.ignore_patterns("secrets", ".env"))
    subprocess.run([folder / "compose" / "make-secrets.sh"], check=True, capture_output=True)
    return folder / "compose" / "secrets"


class Servers:
    """Server processes, each in its own session, with a log per name in `folder`; `stop` ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[tuple[str, subprocess.Popen]] = []

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=os.environ | environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append((name, process))
        return process

    def start_mlflow(self, database: str, *options: str, workers: int = 1, **environment: str) -> int:
        """Start MLflow's tracking server on a database, given by its URL; return its port once it answers."""
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", str(workers), "--backend-store-uri", database, *options]
        programs = f"{BIN}:{os.environ['PATH']}"  # mlflow calls uvicorn by its name
        self.start("mlflow", command, PATH=programs, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **environment)
        self.wait("mlflow", answers(port, "/health"))
        return port

    def wait(self, name: str, ready, seconds: float = PATIENCE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            newest = dict(self._running).get(name)  # a killed server may have been restarted
            if (newest and newest.poll() is not None) or time.monotonic() > deadline:
                raise AssertionError(f"{name} is not ready:\n{(self.folder / f'{name}.log').read_text()[-4000:]}")
            time.sleep(0.3)

    def stop(self) -> None:
        for _, process in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        for _, process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Send one request with exactly these headers (`_` for `-`) and Host localhost; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": f"localhost:{port}", "Content_Length": str(len(body or b""))}.items():
        headers.setdefault(name, value)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = b"" if answer.status == 101 else answer.read()
    connection.close()
    return answer.status, content


def answers(port: int, path: str = "/", *statuses: int):
    def ready() -> bool:
        try:
            return ask(port, "GET", path)[0] in (statuses or (200,))
        except OSError:
            return False

    return ready


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Database:
    """A PostgreSQL server with the databases of databases.sql."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        pytest.importorskip("psycopg2")
        self.port, self.data, self.secrets = free_port(), folder / "postgres", secrets
        self.pg_ctl, self._initdb, self._psql = program("pg_ctl"), program("initdb"), program("psql")
        self.data.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.data, "postgres", "postgres")
        self._as_postgres([self._initdb, "-D", self.data, "-U", "postgres", "--auth-host=scram-sha-256"])
        self.start()
        sql = INFRA / "compose" / "databases.sql"
        subprocess.run(
            [self._psql, "-h", self.data, "-p", str(self.port), "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-f", sql],
            check=True,
            env=os.environ | {"SECRETS": str(secrets)},
            capture_output=True,
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.data} -c listen_addresses=127.0.0.1"
        self._as_postgres([self.pg_ctl, "-w", "-D", self.data, "-l", self.data / "log", "-o", options, "start"])

    def stop(self) -> None:
        self._as_postgres([self.pg_ctl, "-w", "-m", "immediate", "-D", self.data, "stop"])

    def connect(self, user: str, database: str, password: str | None = None):
        import psycopg2

        password = (self.secrets / f"postgres_{user}").read_text().strip() if password is None else password
        return psycopg2.connect(host="127.0.0.1", port=self.port, user=user, password=password, dbname=database)

    def rows(self, user: str, database: str, query: str) -> list[tuple]:
        with contextlib.closing(self.connect(user, database)) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()

    def _as_postgres(self, command: list) -> None:
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        subprocess.run([*user, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd=self.data)


class Door:
    """nginx with the shipped configuration, at two `ports` in front of Dagster and MLflow."""

    def __init__(self, servers: Servers, secrets: Path, dagster: int, mlflow: int, ports: tuple[int, int]) -> None:
        folder = servers.folder
        self.dagster, self.mlflow = ports
        self.password = basic("dagster", (secrets / "dagster_ui").read_text().strip())
        (folder / "nginx").mkdir()
        configuration = folder / "nginx.conf"
        configuration.write_text(
            changed(
                (INFRA / "proxy" / "nginx.conf").read_text(),
                **{
                    " /tmp/": f" {folder}/nginx/",  # first, because the folder may contain it
                    "server webserver:3000": f"server 127.0.0.1:{dagster}",
                    "server mlflow:5000": f"server 127.0.0.1:{mlflow}",
                    "listen 3000": f"listen 127.0.0.1:{self.dagster}",
                    "listen 5000": f"listen 127.0.0.1:{self.mlflow}",
                    "/run/secrets/proxy_users": str(secrets / "proxy_users"),
                },
            )
        )
        user = " user root;" if os.geteuid() == 0 else ""
        servers.start("nginx", [program("nginx"), "-c", str(configuration), "-g", f"daemon off;{user}"])
        servers.wait("nginx", answers(self.dagster, "/healthz", 204))

    def graphql(self, query: str, variables: dict | None = None, **headers: str) -> tuple[int, bytes]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        headers = {"Authorization": self.password, "Content_Type": "application/json"} | headers
        return ask(self.dagster, "POST", "/graphql", body, **headers)
