"""What is served on loopback: Dagster's and MLflow's web pages, and a registered model."""

import sys
from collections.abc import Callable
from pathlib import Path

from bert_pipeline import settings
from orchestration.local.home import environment, prepare
from orchestration.local.servers import HOST, Server, serve_all
from orchestration.tracking.database import open_client

WORKSPACE = Path(__file__).with_name("workspace.yaml")

OnAnswer = Callable[[str, str], None]
"""Called with the name and the address of a server when it first answers."""


def serve_pages(home: Path, dagster_port: int, mlflow_port: int, on_answer: OnAnswer) -> None:
    """Serve the pages until SIGINT, SIGTERM or SIGHUP.

    With MLFLOW_TRACKING_URI at a server, that server is MLflow's. Runs that the pages started save a checkpoint before
    they end; a second signal kills them. Raises ServerFailed if a port is in use or a server ends.
    """
    folder, tracking, logs = prepare(home), settings.mlflow_tracking_uri(home), _logs(home)
    servers = [_dagster(dagster_port, logs)]
    if not tracking.startswith(("http://", "https://")):
        servers.append(_mlflow(mlflow_port, tracking, logs))
    for server in servers:
        server.assert_port_is_free()
    open_client(tracking)  # creates the tables of a new database, before two programs do so at once
    urls = {f"BERT_PIPELINE_{server.name.upper()}_URL": server.address for server in servers}
    serve_all(servers, folder, environment(home, urls), on_answer)


def serve_model(home: Path, model: str, port: int, on_answer: OnAnswer) -> None:
    """Serve a version of a registered model (models:/NAME/VERSION) until SIGINT, SIGTERM or SIGHUP.

    `mlflow models serve` runs the code that is stored beside the weights, in this environment. Raises ServerFailed if
    the port is in use or the server ends.
    """
    folder, tracking = prepare(home), settings.mlflow_tracking_uri(home)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    command += ["--host", HOST, "--port", str(port)]
    server = Server(model, command, port, "/ping", _logs(home) / "model.log", "--port")
    server.assert_port_is_free()
    serve_all([server], folder, environment(home, {"MLFLOW_TRACKING_URI": tracking}), on_answer)


def _logs(home: Path) -> Path:
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _dagster(port: int, logs: Path) -> Server:
    command = [sys.executable, "-m", "dagster_dg_cli.cli.entrypoint", "dev", "--workspace", str(WORKSPACE)]
    command += ["--host", HOST, "--port", str(port)]
    return Server("Dagster", command, port, "/server_info", logs / "dagster.log", "--dagster-port")


def _mlflow(port: int, database: str, logs: Path) -> Server:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database]
    return Server("MLflow", command, port, "/health", logs / "mlflow.log", "--mlflow-port")
