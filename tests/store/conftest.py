"""A remote in a shared folder."""

import pytest
from store.remotes import AT_ONCE

from bert_pipeline.store.object_store import open_store
from bert_pipeline.store.remote import Remote


@pytest.fixture
def shared(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def tier(shared):
    return Remote(open_store(f"file://{shared}", AT_ONCE))
