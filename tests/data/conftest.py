from concurrent.futures import Executor, Future
from contextlib import contextmanager

import pytest
from data.builds import build_by_command

from bert_pipeline.store import executors


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
    """Build shards in this process during a module, because worker processes take a second to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "executor", _executor)
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """All data stages of a small corpus, built without faults."""
    return build_by_command(tmp_path_factory.mktemp("whole"), documents=300, documents_per_shard=25)
