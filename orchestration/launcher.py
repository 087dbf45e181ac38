"""Dagster's default run launcher, plus the health check that run monitoring needs: is the run's process alive?

`DefaultRunLauncher` of Dagster 1.13 has no such check: only the code server that started a process notices its death.
If the code server died too (a restart of the container, the machine or `dg dev`), or if `dg launch` was killed, the run
would count as running forever and keep its pool slot.
"""

import json

import dagster as dg
import psutil
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """DefaultRunLauncher with a health check; set as `run_launcher` in dagster.yaml."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if "port" in server:
            return _health_from_code_server(run.run_id, server)
        # A run on this machine. After a reload, the code server of `dg dev` does not know runs that it started before.
        return self._health_from_process_table(run.run_id)

    def _health_from_process_table(self, run_id: str) -> CheckRunHealthResult:
        processes = []
        for entry in self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            metadata = entry.get_dagster_event().engine_event_data.metadata
            processes += [(int(str(metadata["pid"].value)), entry.timestamp)] if "pid" in metadata else []
        if not processes:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its process has not started yet")
        number, seen = processes[-1]
        try:
            process = psutil.Process(number)
            if process.create_time() <= seen and process.status() != psutil.STATUS_ZOMBIE:
                return CheckRunHealthResult(WorkerStatus.RUNNING)
        except psutil.NoSuchProcess:
            pass
        return CheckRunHealthResult(WorkerStatus.FAILED, f"its process {number} has ended")


def _health_from_code_server(run_id: str, server: dict) -> CheckRunHealthResult:
    client = DagsterGrpcClient(server["port"], host=server["host"], use_ssl=server.get("use_ssl", False))
    try:
        answer = deserialize_value(
            client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id)), CanCancelExecutionResult
        )
    except DagsterUserCodeUnreachableError:
        return CheckRunHealthResult(WorkerStatus.RUNNING, "its code server is unreachable at the moment")
    if answer.can_cancel:
        return CheckRunHealthResult(WorkerStatus.RUNNING)
    return CheckRunHealthResult(WorkerStatus.FAILED, "its code server does not know it: its process has ended")
