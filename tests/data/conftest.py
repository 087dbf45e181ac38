from concurrent.futures import Executor, Future
from contextlib import contextmanager

import pytest

from bert_pipeline import executors


class InThisProcess(Executor):
    def submit(self, function, /, *arguments, **options):
        future = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _executor():
    yield InThisProcess(), 1


@pytest.fixture(scope="module")
def in_this_process():
    """Shards are built here, not in worker processes, which take a second to start; for a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "executor", _executor)
        yield
