"""A study through the real stages: killed in the middle, resumed, and equal to one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import eventually

pytestmark = pytest.mark.slow  # four trainings and their evaluations

RECIPE = """
[corpus]
source = "sample"
sample_documents = 200
heldout_fraction = 0.1

[tokenizer]
vocab_size = 600

[nsp]
dupe_factor = 1

[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64

[pretrain]
log_every = 5
eval_every = 100
checkpoint_every = 50
heldout_pairs = 50

[[pretrain.phases]]
max_seq_length = 64
num_steps = 300
global_batch_size = 16
learning_rate = 5e-3
warmup_steps = 2

[[evaluation.tasks]]
name = "sample-chem"
learning_rate = 1e-3
num_epochs = 1
max_seq_length = 64
seeds = [1, 2]
"""
STUDY = """
question = "Do more steps help?"
base = "small-one"
equal = "steps"
reference = "usual"
pretraining_seeds = [1]

[[arms]]
name = "usual"

[[arms]]
name = "further"
continues = "usual"
exempt = "Its model has seen the steps of the reference before."
[arms.changes]
pretrain.phases.0.num_steps = 200
"""


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    for name, text in (("recipes/small-one.toml", RECIPE), ("studies/mine.toml", STUDY)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    folders = {f"BERT_PIPELINE_{name.upper()}": str(tmp_path / name) for name in ("recipes", "studies")}
    return os.environ | folders | {"BERT_PIPELINE_WORKERS": "1"}


def start(environment: dict[str, str], home: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "bert_pipeline.cli", "study", "mine", "--run", "--json"]
    return subprocess.Popen(
        command, env=environment | {"BERT_PIPELINE_HOME": str(home)}, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> dict:
    out, _ = process.communicate(timeout=1500)
    assert process.returncode == 0
    return json.loads(out)


def test_a_killed_study_continues_and_gives_the_same_numbers(environment, tmp_path):
    killed = start(environment, tmp_path / "killed")
    trainings = tmp_path / "killed" / "artifacts" / "pretrained_checkpoint"
    eventually(lambda: [*trainings.glob("*.partial/work/checkpoints/*")], seconds=600)
    killed.send_signal(signal.SIGINT)
    killed.communicate(timeout=300)
    assert killed.returncode != 0
    [begun] = trainings.glob("*.partial")
    assert [*begun.glob("work/checkpoints/*")] and not [*trainings.glob("*/record.json")]
    resumed = finish(start(environment, tmp_path / "killed"))
    whole = finish(start(environment, tmp_path / "whole"))
    assert resumed["scores"] == whole["scores"] and resumed["answer"] == whole["answer"]
    results = [json.loads(Path(each["path"], "results.json").read_text()) for each in (resumed, whole)]
    assert results[0]["losses"] == results[1]["losses"]
    assert "The text of sample-chem is generated. Nothing follows for real text." in whole["limits"]
    assert "Each arm was pretrained with one seed." in " ".join(whole["limits"])
    assert set(whole["scores"]["sample-chem"]) == {"usual", "further"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole" / "artifacts").rglob("record.json")}
    assert finish(start(environment, tmp_path / "whole"))["path"] == whole["path"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "whole" / "artifacts").rglob("record.json")}
