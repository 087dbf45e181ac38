"""Mapping over shards: order, errors, workers that die, and a real Dask scheduler."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from processes import commands, eventually

from bert_pipeline.store.executors import ShardError, end_idle_workers, map_shards


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")


def square(number):
    if number == 3:
        raise ValueError("three is not allowed")
    return number * number


def shards(*numbers):
    return [(f"number-{n}", (n,)) for n in numbers]


def test_results_come_in_the_order_of_the_shards():
    assert map_shards("squares", square, iter(shards(*range(4, 40)))) == [n * n for n in range(4, 40)]


@pytest.mark.parametrize("numbers", [(3,), (1, 2, 3, 4)])
def test_a_failed_shard_is_named_and_the_others_finish(numbers):
    finished = {}
    with pytest.raises(ShardError, match=r"squares: shard number-3: ValueError: three is not allowed$"):
        map_shards("squares", square, shards(*numbers), total=len(numbers), on_result=finished.__setitem__)
    assert finished == {f"number-{n}": n * n for n in numbers if n != 3}


def test_a_generator_is_consumed_as_needed():
    drawn, finished = [], []

    def source():
        for n in range(10, 30):
            drawn.append(n)
            assert len(drawn) - len(finished) <= 4
            yield f"{n}", (n,)

    map_shards("squares", square, source(), on_result=lambda name, _: finished.append(name))
    assert len(finished) == 20


def die_once(folder: Path, number: int) -> int:
    """Kills its own worker process the first time that it is called for number 2."""
    (folder / f"call-{number}-{time.monotonic_ns()}").touch()
    if number == 2 and len(list(folder.glob("call-2-*"))) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_only_the_shards_of_a_killed_worker_are_built_again(tmp_path, caplog):
    calls = [(f"number-{n}", (tmp_path, n)) for n in range(12)]
    assert map_shards("numbers", die_once, calls) == list(range(12))
    assert "a worker process was killed; building again" in caplog.text
    again = len(list(tmp_path.iterdir())) - 12
    assert 1 <= again <= 4, "two workers hold at most two shards each"


def test_a_death_while_shards_are_submitted_again_counts_like_any_other(tmp_path, monkeypatch):
    """A pool raises OSError if a worker dies while it starts another one: here at the first task submitted again."""
    submit, refused = ProcessPoolExecutor.submit, []

    def submit_or_die(pool, run, /):
        if list(tmp_path.glob("call-2-*")) and not refused:
            refused.append(run)
            raise OSError("handle is closed")
        return submit(pool, run)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_or_die)
    calls = [(f"number-{n}", (tmp_path, n)) for n in (0, 1, 2)]  # all are submitted before one dies
    assert map_shards("numbers", die_once, calls) == [0, 1, 2]
    assert refused, "the test would prove nothing"


WAIT_WITH_WORKERS = """
import os, time
from bert_pipeline.store.executors import executor
if __name__ == "__main__":
    with executor() as (pool, width):
        print(*{pool.submit(os.getpid).result() for _ in range(width)}, flush=True)
        time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(WAIT_WITH_WORKERS)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    workers = {int(number) for number in parent.stdout.readline().split()}
    assert workers and workers <= commands().keys()
    parent.kill()
    parent.communicate()
    eventually(lambda: not workers & commands().keys())


def always_die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_that_kills_every_worker_is_an_error():
    with pytest.raises(
        ShardError, match=r"a worker process was killed 3 times while it worked on one of .*number-1.*remedy"
    ):
        map_shards("deadly", always_die, shards(1, 2))


def test_an_unknown_executor_is_refused(monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_EXECUTOR", "threads")
    with pytest.raises(ValueError, match="'threads' is no executor; remedy: set processes or dask://"):
        map_shards("squares", square, shards(1, 2))


def test_an_unreachable_scheduler_is_an_error_with_its_address(monkeypatch):
    monkeypatch.setattr("bert_pipeline.store.executors.DASK_TIMEOUT", 1)
    monkeypatch.setenv("BERT_PIPELINE_EXECUTOR", "dask://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9: .*remedy"):
        map_shards("squares", square, shards(1, 2))


def test_dask_gives_the_same_result_and_survives_a_killed_worker(monkeypatch, tmp_path, dask_cluster):
    monkeypatch.setenv("BERT_PIPELINE_EXECUTOR", dask_cluster.address)
    assert map_shards("squares", square, shards(*range(4, 40))) == [n * n for n in range(4, 40)]
    with pytest.raises(ShardError, match="squares: shard number-3: ValueError: three is not allowed"):
        map_shards("squares", square, shards(1, 2, 3, 4))
    calls = [(f"number-{n}", (tmp_path, n)) for n in range(12)]
    assert map_shards("numbers", die_once, calls) == list(range(12))


def process_id(folder: Path, _: int) -> int:
    """Wait until two processes of this stage are here: one that starts late would find nothing left to do."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return os.getpid()


def test_worker_processes_are_reused_by_the_next_stage_and_end_when_idle(monkeypatch, tmp_path):
    end_idle_workers()
    monkeypatch.setattr("bert_pipeline.store.executors.IDLE_SECONDS", 3)

    def processes_of_a_stage(name: str) -> set[int]:
        (tmp_path / name).mkdir()
        return set(map_shards("ids", process_id, [(f"number-{n}", (tmp_path / name, n)) for n in range(10)]))

    first, second = processes_of_a_stage("first"), processes_of_a_stage("second")
    assert first == second and len(first) == 2 and os.getpid() not in first
    eventually(lambda: not any(Path(f"/proc/{process}").exists() for process in first))
