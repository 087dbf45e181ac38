"""The stack of infra/ with real servers on loopback: PostgreSQL, an S3 store, MLflow, Dagster and nginx.

The servers use the shipped files; only addresses, folders and ports are replaced. Tests are skipped if PostgreSQL 15
or later, nginx or the extra `production` is not installed. If SeaweedFS is not installed, moto's S3 server replaces it,
and tests that need SeaweedFS are skipped.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from servers import (
    BIN,
    INFRA,
    ROOT,
    Door,
    answers,
    ask,
    basic,
    changed,
    free_port,
    installed,
    program,
)

from bert_pipeline.store import artifact
from bert_pipeline.store.manifest import describe
from bert_pipeline.store.object_store import open_store
from bert_pipeline.store.remote import Remote
from bert_pipeline.web.connections import Patience

pytestmark = pytest.mark.slow

RECIPE = "demo"


@pytest.fixture(scope="module")
def environment(secrets) -> dict[str, str]:
    """The environment of commands that run through with-secrets.sh."""
    return {"SECRETS": str(secrets), "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def store(servers, folder, secrets) -> int:
    """Start SeaweedFS as s3.Dockerfile does, or moto if it is not installed; returns the port."""
    port = free_port()
    if not installed("weed"):
        pytest.importorskip("moto")
        servers.start("store", [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)])
        servers.wait("store", answers(port, "/moto-api/"))
        return port
    said = (INFRA / "docker" / "s3.Dockerfile").read_text()
    command = json.loads(re.search(r"^CMD (\[.*\])", said.replace("\\\n", ""), re.M | re.S)[1])
    (folder / "store").mkdir()
    replaced = {
        "-dir=/var/lib/seaweedfs": f"-dir={folder / 'store'}",
        "-s3.config=/run/secrets/s3.json": f"-s3.config={secrets / 's3.json'}",
        "-s3.port=8333": f"-s3.port={port}",
        "-s3.ip.bind=0.0.0.0": "-s3.ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=1024": "-master.volumeSizeLimitMB=64",
    }
    assert replaced.keys() <= {*command}
    ports = {name: free_port() for name in ("master", "volume", "filer")}
    mine = [f"-{part}.port={n}" for part, n in ports.items()]
    mine += [f"-{part}.port.grpc={free_port()}" for part in (*ports, "s3")]
    servers.start("store", [program("weed"), *(replaced.get(part, part) for part in command), *mine])
    servers.wait("store", answers(port, "/healthz"))
    return port


@pytest.fixture(scope="module")
def door_ports() -> tuple[int, int]:
    """Ports of Dagster and MLflow at the proxy."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def mlflow(servers, folder, database, store, environment, door_ports) -> int:
    """Start MLflow as Compose does, with its user and buckets; returns the port."""
    pytest.importorskip("flask_wtf")
    port = free_port()
    ini = folder / "basic_auth.ini"
    ini.write_text((INFRA / "mlflow" / "basic_auth.ini").read_text())
    settings = compose_environment("mlflow", environment["SECRETS"]) | environment
    settings |= {
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(database.port),
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
    }
    for name in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        settings[name] = ",".join(settings[name].replace(":5000", f":{each}") for each in (port, door_ports[1]))
    with_secrets = str(INFRA / "docker" / "with-secrets.sh")
    servers.start("mlflow", [with_secrets, str(INFRA / "mlflow" / "serve.sh")], **settings)
    servers.wait("mlflow", answers(port, "/health"))
    first = [with_secrets, sys.executable, str(INFRA / "mlflow" / "first_start.py")]
    told = compose_environment("first-start", environment["SECRETS"]) | environment
    told |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{store}"}
    for _ in range(2):  # the second call finds everything in place
        subprocess.run(first, env=os.environ | told, check=True)
    return port


def compose_environment(service: str, secrets: str) -> dict[str, str]:
    import yaml

    told = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"][service]["environment"]
    return {name: value.replace("/run/secrets", secrets) for name, value in told.items()}


@pytest.fixture(scope="module")
def dagster(servers, folder, database, store, mlflow, environment) -> int:
    """Start code server, daemon and web server on the production instance; returns the web server's port."""
    pytest.importorskip("dagster_postgres")
    home, code, port = folder / "dagster", free_port(), free_port()
    shutil.copytree(INFRA / "dagster" / "production", home)
    instance, workspace = home / "dagster.yaml", home / "workspace.yaml"
    instance.write_text(changed(instance.read_text(), **{"port: 5432": f"port: {database.port}"}))
    workspace.write_text(
        changed(workspace.read_text(), **{"host: code": "host: 127.0.0.1", "port: 4000": f"port: {code}"})
    )
    for name in ("logs", "work"):
        (folder / name).mkdir()
    settings = compose_environment("code", environment["SECRETS"]) | environment
    settings |= {
        "DAGSTER_HOME": str(home),
        "DAGSTER_LOGS": str(folder / "logs"),
        "DAGSTER_PG_HOST": "127.0.0.1",
        "BERT_PIPELINE_HOME": str(folder / "work"),
        "BERT_PIPELINE_DATA": str(folder),
        "BERT_PIPELINE_EXECUTOR": "processes",
        "BERT_PIPELINE_WORKERS": "1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    run = [str(INFRA / "docker" / "with-secrets.sh"), sys.executable, "-m"]
    grpc = ["--host", "127.0.0.1", "--port", str(code), "--module-name", "orchestration.definitions"]
    servers.start("code", [*run, "dagster", "api", "grpc", *grpc], **settings)
    health = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "--port", str(code)]
    servers.wait("code", lambda: not subprocess.run(health, capture_output=True).returncode)
    where = ["--workspace", str(workspace)]
    servers.start("daemon", [*run, "dagster._daemon", "run", *where], **settings)
    servers.start("web", [*run, "dagster_webserver", "--host", "127.0.0.1", "--port", str(port), *where], **settings)
    servers.wait("web", answers(port, "/server_info"))
    return port


@pytest.fixture(scope="module")
def door(servers, secrets, dagster, mlflow, door_ports):
    return Door(servers, secrets, dagster, mlflow, door_ports)


def test_each_role_can_access_only_its_own_databases(database):
    import psycopg2

    assert database.rows("dagster", "dagster", "SELECT current_user") == [("dagster",)]
    assert database.rows("mlflow", "mlflow_auth", "SELECT current_user") == [("mlflow",)]
    for user, other in (
        ("dagster", "mlflow"),
        ("dagster", "mlflow_auth"),
        ("mlflow", "dagster"),
        ("mlflow", "postgres"),
    ):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            database.connect(user, other)
    for wrong in ("", "dagster", "test"):
        with pytest.raises(psycopg2.OperationalError, match="password"):
            database.connect("dagster", "dagster", wrong)


def test_each_key_of_the_store_opens_only_its_own_bucket(store, mlflow, secrets):
    program("weed")
    import boto3
    from botocore.exceptions import ClientError

    def client(user: str, key: str | None = None):
        key = key or (secrets / f"s3_{user}").read_text().strip()
        credentials = {"aws_access_key_id": user, "aws_secret_access_key": key, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{store}", **credentials)

    client("pipeline").put_object(Bucket="artifacts", Key="a", Body=b"1")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client("pipeline").put_object(Bucket="artifacts", Key="a", Body=b"2", IfNoneMatch="*")
    for user, bucket in (("pipeline", "mlflow"), ("mlflow", "artifacts"), ("pipeline", "another")):
        with pytest.raises(ClientError, match="AccessDenied"):
            client(user).put_object(Bucket=bucket, Key="b", Body=b"1")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client("pipeline", "wrong").list_objects_v2(Bucket="artifacts")
    assert ask(store, "GET", "/artifacts/a")[0] == 403, "anonymous"


def test_mlflow_checks_user_and_host_name(door, mlflow, secrets):
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    admin = basic("admin", (secrets / "mlflow_admin").read_text().strip())
    for port in (mlflow, door.mlflow):
        assert ask(port, "GET", search)[0] == 401, "anonymous"
        assert ask(port, "GET", search, Authorization=basic("admin", "password1234"))[0] == 401
        assert ask(port, "PUT", "/api/2.0/mlflow-artifacts/artifacts/1/x", b"1")[0] == 401, "anonymous write"
    assert ask(mlflow, "GET", search, Authorization=admin)[0] == 200
    assert ask(mlflow, "GET", search, Authorization=admin, Host="evil.example")[0] == 403
    assert ask(mlflow, "GET", search, Authorization=admin, Host="10.0.0.1:5000")[0] == 403
    assert ask(door.mlflow, "GET", search, Host="evil.example", Authorization=admin)[0] == 421
    create, body = "/api/2.0/mlflow/experiments/create", b'{"name": "forged"}'
    told = {"Authorization": admin, "Content_Type": "application/json"}
    for forged in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        assert ask(door.mlflow, "POST", create, body, **told, **forged)[0] == 403
    assert b"forged" not in ask(mlflow, "GET", search.replace("=1", "=100"), Authorization=admin)[1]


def test_dagster_requires_the_password(door):
    for method, path in (("GET", "/"), ("GET", "/server_info"), ("GET", "/logs/x"), ("POST", "/graphql")):
        assert ask(door.dagster, method, path)[0] == 401, path
        assert ask(door.dagster, method, path, Authorization=basic("dagster", "dagster"))[0] == 401, path
    assert ask(door.dagster, "GET", "/", Host="evil.example", Authorization=door.password)[0] == 421
    assert ask(door.dagster, "GET", "/server_info", Authorization=door.password)[0] == 200


LAUNCH = """
mutation ($recipe: String!, $job: String!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "bert-pipeline", repositoryName: "__repository__", jobName: $job}
    runConfigData: {}
    executionMetadata: {tags: [{key: "dagster/partition", value: $recipe}]}
  }) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""


def test_cross_site_requests_are_rejected(door, dagster, database):
    variables = {"recipe": RECIPE, "job": "whole_graph"}
    forged = [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://localhost:{door.mlflow}"},
        {"Origin": f"http://localhost:{door.dagster}.evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": f"http://localhost:{door.dagster}", "Sec_Fetch_Site": "cross-site"},
    ]
    for headers in forged:
        assert door.graphql(LAUNCH, variables, **headers)[0] == 403, headers
    told = {"Authorization": door.password}
    mutation = "?query=mutation%7BreloadWorkspace%7B__typename%7D%7D"
    for path in ("/graphql", "/%67raphql", "//graphql", "/x/../graphql"):
        status, content = ask(door.dagster, "GET", path + mutation, **told)
        assert status == 405, (path, content)
    for method, path in (
        ("POST", "/report_asset_materialization/forged"),
        ("POST", "/report_asset_check/forged"),
        ("POST", "/report_asset_observation/forged"),
        ("POST", "/graphql/"),
        ("POST", "/"),
        ("PUT", "/graphql"),
        ("DELETE", "/x"),
    ):
        assert ask(door.dagster, method, path, b"{}", **told)[0] in (403, 405), path
    socket_opens = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    socket_opens |= {
        "Sec_WebSocket_Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec_WebSocket_Protocol": "graphql-ws",
    }
    assert ask(door.dagster, "GET", "/graphql", **socket_opens)[0] == 401
    assert ask(door.dagster, "GET", "/graphql", **told, **socket_opens, Origin="http://evil.example")[0] == 403
    own = f"http://localhost:{door.dagster}"
    assert ask(door.dagster, "GET", "/graphql", **told, **socket_opens, Origin=own)[0] == 101
    assert database.rows("dagster", "dagster", "SELECT count(*) FROM runs") == [(0,)]
    assert ask(dagster, "GET", "/graphql" + mutation)[0] == 200, "without the proxy the request succeeds"


@pytest.fixture(scope="module")
def graph(door, database, folder) -> None:
    """Launch the whole graph of the demo through the proxy and wait for its end."""
    own = {"Origin": f"http://localhost:{door.dagster}", "Sec_Fetch_Site": "same-origin"}
    status, content = door.graphql(LAUNCH, {"recipe": RECIPE, "job": "whole_graph"}, **own)
    assert (status, b"LaunchRunSuccess" in content) == (200, True), content
    deadline = time.monotonic() + 1500
    while (found := database.rows("dagster", "dagster", "SELECT status FROM runs")) not in (
        [("SUCCESS",)],
        [("FAILURE",)],
    ):
        assert time.monotonic() < deadline, found
        time.sleep(2)
    said = "\n".join((folder / f"{name}.log").read_text()[-3000:] for name in ("code", "daemon"))
    assert found == [("SUCCESS",)], said


def test_the_whole_graph_runs_on_postgresql_and_s3(graph, store, mlflow, secrets, folder, monkeypatch):
    import boto3

    written = {path.name for path in (folder / "dagster").rglob("*") if path.is_file()}
    assert written == {"dagster.yaml", "workspace.yaml"}, "both are in a read-only image"
    pipeline = basic("pipeline", (secrets / "mlflow_pipeline").read_text().strip())
    _, versions = ask(mlflow, "GET", "/api/2.0/mlflow/model-versions/search", Authorization=pipeline)
    [version] = json.loads(versions)["model_versions"]
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    key = (secrets / "s3_mlflow").read_text().strip()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{store}", aws_access_key_id="mlflow",
                          aws_secret_access_key=key, region_name="us-east-1")  # fmt: skip
    names = [each["Key"] for each in client.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(name.endswith("model.safetensors") for name in names), names

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "pipeline")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", (secrets / "s3_pipeline").read_text().strip())
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    remote = Remote(open_store("s3://artifacts", Patience(attempts=3)))
    for kind in ("raw_corpus", "pretrained_checkpoint"):
        here, there = folder / "work" / "artifacts" / kind / tags[kind], folder / "elsewhere" / kind
        assert remote.pull(kind, tags[kind], there), "another machine can pull the artifact"
        assert describe(artifact.load(there)).files == describe(artifact.load(here)).files


def test_the_champion_has_a_verified_lineage_and_is_rebuilt_bit_for_bit(graph, mlflow, secrets, folder):
    environment = os.environ | {
        "BERT_PIPELINE_HOME": str(folder / "work"),
        "BERT_PIPELINE_DATA": str(folder),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "MLFLOW_TRACKING_USERNAME": "pipeline",
        "MLFLOW_TRACKING_PASSWORD": (secrets / "mlflow_pipeline").read_text().strip(),
        "PYTHONPATH": str(ROOT),
    }

    def run(*command: str, **more: str) -> str:
        arguments = [sys.executable, "-m", "bert_pipeline.cli", *command]
        done = subprocess.run(arguments, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    name = f"models:/bert-{RECIPE}"
    promoted = run("promote", f"{name}@candidate", "--reason", "the first")
    assert promoted.startswith(f"champion of bert-{RECIPE} is version 1, after nobody")
    told = json.loads(run("lineage", f"{name}@champion", "--json"))
    assert told["faults"] == [] and all(each["dagster_run"] for each in told["artifacts"])
    run("reproduce", f"{name}@champion", "--out", str(folder / "reproduction"))
    rebuilt = run("rebuild", str(folder / "reproduction"), BERT_PIPELINE_HOME=str(folder / "rebuilt"))
    assert rebuilt.endswith("bit for bit what it was\n")
    weights = [*folder.glob("*/artifacts/pretrained_checkpoint/*/model.safetensors")]
    assert len(weights) == 2 and weights[0].read_bytes() == weights[1].read_bytes()


def test_no_secret_is_written_anywhere(graph, database, store, mlflow, secrets, folder):
    """Search logs, databases (Dagster's events, MLflow's parameters and tags), artifacts and objects of the store."""
    import boto3

    canaries = {path.name: path.read_bytes().strip() for path in secrets.iterdir() if "." not in path.name}
    del canaries["proxy_users"]  # hashed
    places = [path for part in ("logs", "work", "dagster", "nginx") for path in (folder / part).rglob("*")]
    read = {str(path): path.read_bytes() for path in (*places, *folder.glob("*.log")) if path.is_file()}
    dump = [program("pg_dumpall"), "-h", str(database.data), "-p", str(database.port), "-U", "postgres"]
    password = {"PGPASSWORD": canaries["postgres_admin"].decode()}
    read["PostgreSQL"] = subprocess.run(dump, env=os.environ | password, check=True, capture_output=True).stdout
    assert b"registered_model" in read["PostgreSQL"] and len(read) > 50
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{store}", aws_access_key_id="admin",
                          aws_secret_access_key=canaries["s3_admin"].decode(), region_name="us-east-1")  # fmt: skip
    for bucket in ("mlflow", "artifacts"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for each in page["Contents"]:
                read[f"{bucket}/{each['Key']}"] = client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
    found = [(name, place) for place, content in read.items() for name, canary in canaries.items() if canary in content]
    assert not found


def test_mlflow_is_not_ready_while_its_database_is_down(mlflow, database, environment):
    check = [str(INFRA / "docker" / "with-secrets.sh"), sys.executable, str(INFRA / "mlflow" / "health.py")]
    told = environment | {"MLFLOW_PORT": str(mlflow)}
    told["MLFLOW_AUTH_ADMIN_PASSWORD_FILE"] = f"{environment['SECRETS']}/mlflow_admin"

    def ready() -> bool:
        return not subprocess.run(check, env=os.environ | told, capture_output=True).returncode

    assert ready()
    database.stop()
    try:
        assert not ready()
    finally:
        database.start()
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.5)
