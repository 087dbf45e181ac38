"""Processes that promote at once, for tests/orchestration/test_promotion.py."""

import multiprocessing
from multiprocessing.synchronize import Barrier

import mlflow.store.model_registry.sqlalchemy_store  # noqa: F401  # once for all of them, before they are forked
from mlflow import MlflowClient

from orchestration.registry.ledger import PromotionConflict, find_champion
from orchestration.registry.promotion import promote

NAME = "bert-raced"


def compete(uri: str, rank: int, rounds: int, barrier: Barrier, results: multiprocessing.Queue) -> None:
    """Each round all look who is champion, and then each wants one of its own two versions instead."""
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
    """Of each process and round (round, process, champion before, own version or None, number in the ledger or
    None)."""
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
