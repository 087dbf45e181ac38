"""Dagster as in production, for tests: code server, daemon and web server, each a process that can be killed.

The instance is the shipped one with shorter intervals. Runs are started and cancelled through GraphQL, like in the UI.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from processes import commands, eventually
from servers import INFRA, ROOT, Servers, answers, ask, changed, free_port

# Without it, a backfill that is evaluated while its code server is down fails for good.
OUTLIVES = "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR"
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Stack:
    """The three processes. A test restarts what it kills, as Docker or systemd would."""

    def __init__(
        self, servers: Servers, folder: Path, instance: str, recipes: Mapping[str, str], **environment: str
    ) -> None:
        assert f"{OUTLIVES}=1" in (INFRA / "docker" / "pipeline.Dockerfile").read_text()
        self.servers, self.folder, self.home = servers, folder, folder / "home"
        self._dagster_home, self._code, self._web = folder / "dagster", free_port(), free_port()
        self._dagster_home.mkdir()
        (folder / "recipes").mkdir()
        for name, text in recipes.items():
            (folder / "recipes" / f"{name}.toml").write_text(text)
        shorter = {"poll_interval_seconds: 15": "poll_interval_seconds: 2"}
        shorter["start_timeout_seconds: 600"] = (
            "start_timeout_seconds: 45"  # for runs whose daemon died while launching them
        )
        instance = changed(instance, **shorter)
        (self._dagster_home / "dagster.yaml").write_text(instance)
        workspace = (INFRA / "dagster" / "production" / "workspace.yaml").read_text()
        workspace = changed(workspace, **{"host: code": "host: 127.0.0.1", "port: 4000": f"port: {self._code}"})
        (folder / "workspace.yaml").write_text(workspace)
        self.environment = {
            "DAGSTER_HOME": str(self._dagster_home),
            "BERT_PIPELINE_HOME": str(self.home),
            "BERT_PIPELINE_RECIPES": str(folder / "recipes"),
            "BERT_PIPELINE_WORKERS": "1",
            OUTLIVES: "1",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self._processes: dict[str, subprocess.Popen] = {}
        for name in ("code", "daemon", "web"):
            self.start(name)
        servers.wait("web", answers(self._web, "/server_info"))

    def start(self, name: str) -> None:
        where = ["--workspace", str(self.folder / "workspace.yaml")]
        host = ["--host", "127.0.0.1", "--port"]
        command = {
            "code": ["dagster", "api", "grpc", *host, str(self._code), "--module-name", "orchestration.definitions"],
            "daemon": ["dagster._daemon", "run", *where],
            "web": ["dagster_webserver", *host, str(self._web), *where],
        }[name]
        self._processes[name] = self.servers.start(name, [sys.executable, "-m", *command], **self.environment)
        if name == "code":
            health = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "--port", str(self._code)]
            self.servers.wait(name, lambda: not subprocess.run(health, capture_output=True).returncode)

    def kill(self, name: str) -> None:
        """Kill a server with its whole session: a code server takes its runs along, as in a container."""
        process = self._processes[name]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def graphql(self, query: str, **variables: object) -> dict:
        body = json.dumps({"query": query, "variables": variables}).encode()
        for _ in range(5):  # after PostgreSQL was down, each pooled connection of the web server fails once
            status, content = ask(self._web, "POST", "/graphql", body, Content_Type="application/json")
            if status == 200:
                break
        assert status == 200, content
        answer = json.loads(content)
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, recipe: str, *assets: str, **tags: str) -> str:
        """Launch a run; return its id. In the names of tags, the first `_` stands for `/`."""
        run_tags = [{"key": "dagster/partition", "value": recipe}]
        run_tags += [{"key": name.replace("_", "/", 1), "value": value} for name, value in tags.items()]
        paths = [{"path": [name]} for name in assets]
        started = self.graphql(LAUNCH, assets=paths, tags=run_tags)["launchRun"]
        assert started["__typename"] == "LaunchRunSuccess", started
        return started["run"]["runId"]

    def terminate(self, run_id: str) -> None:
        ended = self.graphql(TERMINATE, run=run_id)["terminateRun"]
        assert ended["__typename"] == "TerminateRunSuccess", ended

    def run(self, run_id: str) -> dict:
        return self.graphql(RUN, run=run_id)["runOrError"]

    def status(self, run_id: str) -> str:
        return self.run(run_id)["status"]

    def runs(self) -> list[dict]:
        """All runs, newest first."""
        return self.graphql(RUNS)["runsOrError"]["results"]

    def retry_of(self, run_id: str) -> str | None:
        return next((run["runId"] for run in self.runs() if run["parentRunId"] == run_id), None)

    def wait_for_end(self, run_id: str, seconds: float = 400) -> str:
        eventually(lambda: self.status(run_id) in ENDED, seconds)
        return self.status(run_id)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def training(self) -> dict[int, list[str]]:
        """The command lines of training processes and their launchers, by process id."""
        of_training = ("bert_pipeline.training.pretrain", "accelerate.commands.launch")
        return {
            number: command
            for number, command in commands().items()
            if str(self.home) in "\0".join(command) and any(name in command for name in of_training)
        }

    def run_worker(self) -> int:
        """The process id of the training run: the parent of `accelerate launch`."""
        [launcher] = [n for n, command in self.training().items() if "accelerate.commands.launch" in command]
        return int(Path("/proc", str(launcher), "stat").read_text().rpartition(")")[2].split()[1])


LAUNCH = """
mutation ($assets: [AssetKeyInput!]!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: "bert-pipeline", repositoryName: "__repository__", jobName: "whole_graph",
      assetSelection: $assets
    }
    runConfigData: {}
    executionMetadata: {tags: $tags}
  }) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on InvalidSubsetError { message }
  }
}
"""
TERMINATE = """
mutation ($run: String!) { terminateRun(runId: $run) {
  __typename ... on TerminateRunFailure { message } ... on PythonError { message }
} }
"""
RUN = """
query ($run: ID!) { runOrError(runId: $run) { ... on Run {
  status startTime endTime tags { key value }
} } }
"""
RUNS = """
{ runsOrError { ... on Runs { results { runId parentRunId status startTime endTime tags { key value } } } } }
"""
