import os
from functools import partial
from pathlib import Path

import pytest
from training.runs import STILL, job_for, train
from training.saving import save

from bert_pipeline.formats.metrics import Row
from bert_pipeline.lineage import make_stage


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    save(folder, 1, 2)
    return folder


@pytest.fixture
def new_job(tiny, tiny_recipe):
    """A function that writes the file of a job into a folder; each step has a row of metrics."""
    return partial(job_for, tiny, tiny_recipe, log_every=1)


@pytest.fixture(scope="session")
def undisturbed_one(tiny, tiny_recipe, tmp_path_factory):
    """One process, undisturbed, without dropout."""
    out = tmp_path_factory.mktemp("one")
    train(job_for(tiny, tiny_recipe, out, model=STILL, log_every=1), 1)
    return out


@pytest.fixture(scope="session")
def undisturbed_two(tiny, tiny_recipe, tmp_path_factory):
    """Two processes, undisturbed."""
    out = tmp_path_factory.mktemp("two")
    train(job_for(tiny, tiny_recipe, out, log_every=1), 2)
    return out


@pytest.fixture(scope="session")
def trained(tiny, tiny_recipe, tmp_path_factory):
    """The artifact of an undisturbed training under the launcher, and the rows that it reported."""
    rows: list[Row] = []
    out = tmp_path_factory.mktemp("trained") / "pretrained_checkpoint"
    return make_stage("pretrained_checkpoint", tiny_recipe, tiny, out, rows.append), rows


@pytest.fixture
def memory_group(tmp_path):
    """A control group with an adjustable memory limit; the kernel kills processes that exceed it."""
    root = Path("/sys/fs/cgroup/memory")
    group = root / f"bert-pipeline-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for memory (version 1) can be created here: {error}")
    yield group
    group.rmdir()


@pytest.fixture
def muon_recipe(tiny_recipe):
    """`tiny` with Muon and a structured start, without dropout."""
    model = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "structured_attention_layers": 1}
    phases = (tiny_recipe.pretrain.phases[0].model_copy(update={"muon_learning_rate": 3e-3}),)
    pretrain = tiny_recipe.pretrain.model_copy(
        update={"optimizer": "muon", "phases": (*phases, *tiny_recipe.pretrain.phases[1:])}
    )
    return tiny_recipe.model_copy(update={"model": tiny_recipe.model.model_copy(update=model), "pretrain": pretrain})
