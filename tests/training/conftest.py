from pathlib import Path

import pytest
from training.saving import save


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    save(folder, 1, 2)
    return folder
