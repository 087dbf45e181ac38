"""Dagster's own run launcher, with an answer to what run monitoring asks: does the process of this run still live?

`DefaultRunLauncher` of Dagster 1.13 has none: only the code server that started a process notices its death. Where the
code server died with it (a restart of the container, of the machine, of `dg dev`), or where `dg launch` was killed, the
run would count as under way for ever, and hold its pool.
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
    """For `run_launcher` in dagster.yaml."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if "port" in server:
            return _as_its_code_server_says(run.run_id, server)
        # On this machine. A code server of `dg dev` does not know the runs that it started before it was reloaded.
        return self._as_the_process_table_says(run.run_id)

    def _as_the_process_table_says(self, run_id: str) -> CheckRunHealthResult:
        processes = []
        for entry in self._instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            told = entry.get_dagster_event().engine_event_data.metadata
            processes += [(int(str(told["pid"].value)), entry.timestamp)] if "pid" in told else []
        if not processes:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "it is about to start")
        number, seen = processes[-1]
        try:
            process = psutil.Process(number)
            if process.create_time() <= seen and process.status() != psutil.STATUS_ZOMBIE:
                return CheckRunHealthResult(WorkerStatus.RUNNING)
        except psutil.NoSuchProcess:
            pass
        return CheckRunHealthResult(WorkerStatus.FAILED, f"its process, {number}, is gone")


def _as_its_code_server_says(run_id: str, server: dict) -> CheckRunHealthResult:
    client = DagsterGrpcClient(server["port"], host=server["host"], use_ssl=server.get("use_ssl", False))
    try:
        answer = deserialize_value(
            client.can_cancel_execution(CanCancelExecutionRequest(run_id=run_id)), CanCancelExecutionResult
        )
    except DagsterUserCodeUnreachableError:
        return CheckRunHealthResult(WorkerStatus.RUNNING, "its code server is not there at the moment")
    if answer.can_cancel:
        return CheckRunHealthResult(WorkerStatus.RUNNING)
    return CheckRunHealthResult(WorkerStatus.FAILED, "its code server does not know it: its process is gone")
