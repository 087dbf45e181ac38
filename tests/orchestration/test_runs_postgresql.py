"""Backfills on the production instance while daemon, web server, code server or PostgreSQL are killed."""

import contextlib
import random
import shutil
import time
from collections import Counter

import pytest
from processes import eventually
from servers import INFRA, changed
from stack import ENDED, Stack

pytestmark = pytest.mark.slow

RECIPES = [f"part-{number}" for number in range(8)]
RECIPE = """
[corpus]
source = "sample"
sample_documents = {documents}
heldout_fraction = 0.1
documents_per_shard = 20
"""
KILLS = 20
OVER = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


@pytest.fixture(scope="module")
def stack(servers, folder, database):
    pytest.importorskip("dagster_postgres")
    recipes = {name: RECIPE.format(documents=100 + number) for number, name in enumerate(RECIPES)}
    (folder / "logs").mkdir()
    instance = (INFRA / "dagster" / "production" / "dagster.yaml").read_text()
    return Stack(
        *(servers, folder, changed(instance, **{"port: 5432": f"port: {database.port}"}), recipes),
        DAGSTER_LOGS=str(folder / "logs"),
        DAGSTER_PG_HOST="127.0.0.1",
        DAGSTER_PG_USERNAME="dagster",
        DAGSTER_PG_DB="dagster",
        DAGSTER_PG_PASSWORD=(database.secrets / "postgres_dagster").read_text().strip(),
    )


BACKFILL = """
mutation ($partitions: [String!]!, $assets: [AssetKeyInput!]!) {
  launchPartitionBackfill(backfillParams: {partitionNames: $partitions, assetSelection: $assets}) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
PROGRESS = """
query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }
"""
EVENTS = """
query ($asset: AssetKeyInput!) { assetOrError(assetKey: $asset) { ... on Asset {
  assetMaterializations(limit: 1000) { partition runId }
} } }
"""


def backfill(stack: Stack, asset: str) -> str:
    started = stack.graphql(BACKFILL, partitions=RECIPES, assets=[{"path": [asset]}])["launchPartitionBackfill"]
    assert started["__typename"] == "LaunchBackfillSuccess", started
    return started["backfillId"]


def state(stack: Stack, backfill_id: str) -> str:
    with contextlib.suppress(OSError, AssertionError):  # the web server, or its database, is down
        return stack.graphql(PROGRESS, id=backfill_id)["partitionBackfillOrError"]["status"]
    return "UNKNOWN"


def assert_each_partition_was_built_once(stack: Stack, backfill_id: str, asset: str) -> str:
    """Return a summary. Runs that were lost with their code server or the database were retried."""
    assert state(stack, backfill_id).startswith("COMPLETED"), stack.said("daemon")[-3000:]
    eventually(lambda: all(run["status"] in ENDED for run in stack.runs()))
    tags = {run["runId"]: {tag["key"]: tag["value"] for tag in run["tags"]} for run in stack.runs()}
    mine = [run for run in stack.runs() if tags[run["runId"]].get("dagster/backfill") == backfill_id]
    counted = Counter((run["status"], run["parentRunId"] is not None) for run in mine)
    first = Counter(tags[run["runId"]]["dagster/partition"] for run in mine if not run["parentRunId"])
    assert first == Counter(RECIPES), "no run is launched twice"
    succeeded = Counter(tags[run["runId"]]["dagster/partition"] for run in mine if run["status"] == "SUCCESS")
    assert succeeded == Counter(RECIPES), counted
    events = stack.graphql(EVENTS, asset={"path": [asset]})["assetOrError"]["assetMaterializations"]
    made = Counter(event["partition"] for event in events if event["runId"] in tags)
    assert set(made) == set(RECIPES) and not list(stack.home.glob("artifacts/*/*.partial"))
    retried = sum(number for (_, again), number in counted.items() if again)
    return f"{asset}: 8 partitions, {len(mine)} runs ({retried} of them second tries), {sum(made.values())} events"


def test_daemon_web_server_and_code_server_are_killed_during_backfills(stack):
    """Kill a random process up to KILLS times, and restart it after a moment. Killing the code server also kills its
    runs, so it is killed only as often as a run is retried.
    """
    chance, kills, deadly = random.Random(7), Counter(), 2
    running = backfill(stack, "raw_corpus")
    while state(stack, running) not in OVER:
        time.sleep(chance.uniform(0, 4))
        if kills.total() < KILLS:
            name = chance.choice(("daemon", "web", "code") if deadly else ("daemon", "web"))
            deadly -= name == "code"
            stack.kill(name)
            kills[name] += 1
            time.sleep(chance.uniform(0, 2))
            stack.start(name)
    print(f"kills {dict(kills)}; {assert_each_partition_was_built_once(stack, running, 'raw_corpus')}")
    assert kills.total() >= 5


@pytest.mark.parametrize("seconds", [10, 60])
def test_postgresql_stops_during_a_backfill(stack, database, seconds):
    asset = "raw_corpus"
    shutil.rmtree(stack.home / "artifacts" / asset, ignore_errors=True)  # so that there is something to build
    running = backfill(stack, asset)
    eventually(lambda: any(run["status"] in ("STARTED", "SUCCESS") for run in stack.runs()[:8]))
    database.stop()
    time.sleep(seconds)
    database.start()
    took = eventually(lambda: state(stack, running) in OVER, 400)
    summary = assert_each_partition_was_built_once(stack, running, asset)
    print(f"PostgreSQL down for {seconds} s: {summary}; over {took:.0f} s after it was back")
