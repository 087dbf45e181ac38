"""Access control of the stack's proxy: requests to every route of Dagster and MLflow, as an attacker sends them.

The routes come from the applications: a route that a new version adds fails here until `DAGSTER` lists it.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers import INFRA, Door, Servers, ask, changed, free_port, make_secrets

FORGED = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
PAGE = {"GET", "HEAD"}
DAGSTER = {
    "/": PAGE,
    "/{path:path}": PAGE,
    "/server_info": PAGE,
    "/dagit_info": PAGE,
    "/graphql": {"POST"},  # and a WebSocket: test_infra_servers.py
    "/logs/{path:path}": PAGE,
    "/notebook": PAGE,
    "/dagit/notebook": PAGE,
    "/download_debug/{run_id:str}": PAGE,
    "/report_asset_materialization/{asset_key:path}": set(),
    "/report_asset_check/{asset_key:path}": set(),
    "/report_asset_observation/{asset_key:path}": set(),
}
"""Allowed methods by route for requests with the password. Dagster itself has no access control."""
OPEN = {"/health", "/static-files/x", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"}
"""Routes that MLflow answers without a password; none of them returns anybody's data."""


@pytest.fixture(scope="module")
def upstream():
    """Port of an upstream server that answers every request, and the list of requests that reached it."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def __getattr__(self, name: str):
            if name.startswith("do_"):
                return self.answer
            raise AttributeError(name)

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()


@pytest.fixture(scope="module")
def door(upstream):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        servers = Servers(Path(folder))
        try:
            yield Door(servers, make_secrets(servers.folder), upstream[0], upstream[0], (free_port(), free_port()))
        finally:
            servers.stop()


def routes_of_dagster() -> dict[str, set[str]]:
    from dagster_webserver.webserver import DagsterWebserver

    routes = [each for each in DagsterWebserver(None).build_routes() if not each.name.endswith("_static")]
    unlisted = {each.path for each in routes} - DAGSTER.keys()
    assert all(each.name == "root_static" for each in routes if each.path in unlisted), unlisted
    return {re.sub(r"{[^}]+}", "x", each.path): DAGSTER.get(each.path, PAGE) for each in routes}


def test_dagster_is_reached_only_by_allowed_methods_with_the_password(door, upstream):
    _, seen = upstream
    routes = routes_of_dagster()
    assert len(routes) >= len(DAGSTER)
    for path, allowed in routes.items():
        for method in METHODS:
            request = (door.dagster, method, path)
            assert ask(*request)[0] in (401, 403, 405), request
            assert ask(*request, Host="evil.example", Authorization=door.password)[0] == 421
            for forged in FORGED if method not in PAGE else ():
                assert ask(*request, Authorization=door.password, **forged)[0] in (403, 405), (request, forged)
            assert seen == []
            status, _ = ask(*request, Authorization=door.password)
            assert (status, seen) == ((200, [(method, path)]) if method in allowed else (status, [])), request
            assert method in allowed or status in (403, 405), request
            seen.clear()


ROUTES_OF_MLFLOW = """
import json, os, re, sys
from mlflow.server import app as flask
from mlflow.server.auth import create_app
from starlette.testclient import TestClient

app = create_app(flask)
routes = [(method, rule.rule) for rule in flask.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}]
routes += [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]
client, answers = TestClient(app, base_url="http://localhost:5000"), []
for method, route in sorted(routes):
    path = re.sub(r"[<{][^>}]+[>}]", "x", route)
    answers.append((method, path, client.request(method, path).status_code))
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def routes_of_mlflow(tmp_path_factory):
    """(method, path, status without a password) of each route, from a process of its own: MLflow allows one app."""
    pytest.importorskip("flask_wtf")
    folder = tmp_path_factory.mktemp("mlflow")
    text = (INFRA / "mlflow" / "basic_auth.ini").read_text()
    (folder / "basic_auth.ini").write_text(
        changed(text, **{"postgresql+psycopg2:///mlflow_auth": f"sqlite:///{folder}/users.db"})
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a-password-of-a-test",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-a-test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    done = subprocess.run([sys.executable, "-c", ROUTES_OF_MLFLOW], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_mlflow_refuses_requests_without_a_password(routes_of_mlflow):
    assert len(routes_of_mlflow) > 300
    answered = {(method, path) for method, path, status in routes_of_mlflow if status not in (401, 403)}
    assert answered <= {("GET", path) for path in OPEN}


def test_mlflow_is_not_reached_by_writes_from_other_sites(door, upstream, routes_of_mlflow):
    _, seen = upstream
    for method, path, _ in routes_of_mlflow:
        assert ask(door.mlflow, method, path, Host="evil.example")[0] == 421
        for forged in FORGED if method != "GET" else ():
            assert ask(door.mlflow, method, path, **forged)[0] == 403, (method, path, forged)
    assert seen == []
    own = {"Origin": f"http://localhost:{door.mlflow}", "Sec_Fetch_Site": "same-origin"}
    assert ask(door.mlflow, "POST", "/api/2.0/mlflow/runs/create", **own)[0] == 200
    assert seen == [("POST", "/api/2.0/mlflow/runs/create")]
    seen.clear()
