"""Processes that promote concurrently, for tests/orchestration/test_ledger.py."""

import multiprocessing
from multiprocessing.synchronize import Barrier

import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401  # imported once, before the processes are forked
from mlflow import MlflowClient

from orchestration.registry.ledger import PromotionConflict, find_champion
from orchestration.registry.promotion import promote

NAME = "bert-raced"


def create_versions(client: MlflowClient, name: str, number: int) -> None:
    """Register a model with versions 1 to `number`."""
    client.create_registered_model(name)
    for each in range(number):
        client.create_model_version(name, source=f"s3://models/{name}/{each}")


def compete(uri: str, rank: int, rounds: int, barrier: Barrier, results: multiprocessing.Queue) -> None:
    """In each round, read the champion together with the others, then try to promote one of two own versions."""
    client = MlflowClient(uri)
    for number in range(rounds):
        barrier.wait(300)
        champion = find_champion(client, NAME)
        version = next(own for own in (str(2 * rank + 1), str(2 * rank + 2)) if own != champion)
        barrier.wait(300)
        try:
            won = promote(client, NAME, version, f"round {number}, process {rank}", champion)
            results.put((number, rank, champion, won.version, won.number))
        except PromotionConflict:
            results.put((number, rank, champion, None, None))


def race(uri: str, processes: int, rounds: int) -> list[tuple]:
    """Return for each process and round: round, process, champion before; version and ledger number if it won."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["promoters"])
    barrier, results = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=compete, args=(uri, rank, rounds, barrier, results), daemon=True)
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    try:
        return [results.get(timeout=300) for _ in range(processes * rounds)]
    finally:
        for process in started:
            process.join(60)
            process.kill()
