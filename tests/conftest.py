"""What all tests share: a tiny recipe, and the datasets that it makes from a generated corpus."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from bert_pipeline.recipe import Recipe, load_recipe
from bert_pipeline.stages import make_stage

settings.register_profile("default", deadline=None)  # the first call of a compiled function compiles it
settings.load_profile("default")

ROOT = Path(__file__).parents[1]

TINY = """
[corpus]
source = "sample"
sample_documents = 300
heldout_fraction = 0.1
documents_per_shard = 100

[tokenizer]
vocab_size = 800

[nsp]
dupe_factor = 2

[masking]
do_whole_word_mask = true

[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
hidden_dropout_prob = 0.1

[pretrain]
log_every = 2
eval_every = 8
checkpoint_every = 3
heldout_pairs = 40

[[pretrain.phases]]
max_seq_length = 32
num_steps = 8
global_batch_size = 16
learning_rate = 1e-3
warmup_steps = 2

[[pretrain.phases]]
max_seq_length = 64
num_steps = 4
global_batch_size = 8
learning_rate_handover = "continue"
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY)
    return load_recipe(path)


@pytest.fixture(scope="session")
def tiny(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The artifacts up to masked_dataset, by kind."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict = {}
    for kind in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, tiny_recipe, made, root / kind)
    return made


@pytest.fixture(scope="session")
def run_python():
    """Run a Python program from the repository's root; returns the completed process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )

    return run
