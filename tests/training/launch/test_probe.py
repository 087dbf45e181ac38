"""The probe: the micro-batch that it chooses, and its errors if nothing fits."""

import json
import os
from pathlib import Path

import pytest
from training.runs import exit_code, fork_ranks, measure_pace_in_a_fork

from bert_pipeline.recipe import PretrainRecipe
from bert_pipeline.training.job import Job
from bert_pipeline.training.launch.budget import ProbeFailed, measure_pace

LARGE_STEP = {"max_seq_length": 64, "num_steps": 4, "global_batch_size": 600, "learning_rate_handover": "continue"}


@pytest.fixture(scope="module")
def job(tiny, tiny_recipe, tmp_path_factory):
    section = tiny_recipe.pretrain.model_dump(mode="json")
    section["phases"][1] |= LARGE_STEP
    return Job(
        section=PretrainRecipe.model_validate_json(json.dumps(section)),
        model=tiny_recipe.model,
        masking=tiny_recipe.masking,
        **{kind: tiny[kind].path for kind in ("tokenizer", "nsp_dataset", "masked_dataset")},
        out=tmp_path_factory.mktemp("probe"),
        per_device_tokens="auto",
    )


CHOICE = """
import json, sys
import torch
from pathlib import Path
from bert_pipeline.training.job import Job
from bert_pipeline.training.launch.probe import Probe, TooLittleMemory
probe = Probe(Job.read(Path(sys.argv[1])))
rates = {}
probe._time = lambda work: work.args[0].num_tokens / rates[work.args[1]]
probe._peak_memory = lambda rows: 1000 + 10 * rows.num_tokens  # bytes
said = {"step": probe.rows(probe.section.phases[1]).num_tokens}

def choice(tokens_that_fit, *found):
    probe.memory = 1000 + 10 * tokens_that_fit
    rates.clear()
    rates.update({2048 * 2 ** n: rate for n, rate in enumerate(found)} | {tokens_that_fit: 7e4})
    return probe.best_size()

said["smallest as good as the best"] = choice(10**6, 9.7e4, 9.81e4, 9.9e4, 1e5)
said["larger is slower"] = choice(10**6, 8e4, 1e5, 9e4, 9e4)
said["what does not fit is not tried"] = choice(5000, 8e4, 9e4, 1e5, 1e5)
said["less than the smallest fits"] = choice(1500, 0)
try:
    choice(10, 0)
except TooLittleMemory as error:
    said["nothing fits"] = str(error)
def runs_out(work):
    raise torch.OutOfMemoryError("CUDA out of memory")

probe.memory, probe._time = 10**9, runs_out
try:
    probe.best_size()
except TooLittleMemory as error:
    said["even the first size runs out"] = str(error)
json.dump(said, open(sys.argv[2], "w"))
"""


def test_the_smallest_micro_batch_that_is_as_good_as_the_best(job, tmp_path):
    (tmp_path / "choice.py").write_text(CHOICE)
    job.write(tmp_path / "job.json")
    [process] = fork_ranks(tmp_path / "choice.py", [tmp_path / "job.json", tmp_path / "said"], 1, tmp_path / "log")
    assert exit_code(process) == 0, (tmp_path / "log").read_text()
    said = json.loads((tmp_path / "said").read_text())
    assert said["step"] > 8192, "the test would prove nothing"
    assert said["smallest as good as the best"] == 4096
    assert said["larger is slower"] == 4096
    assert said["what does not fit is not tried"] == 4096
    assert said["less than the smallest fits"] == 1500
    assert (
        said["nothing fits"].startswith("one pair of 64 tokens needs ")
        and "remedy: free memory" in said["nothing fits"]
    )
    assert "memory ran out during the first measurement" in said["even the first size runs out"]
    assert "remedy: free memory" in said["even the first size runs out"]


def test_a_pace_has_plausible_figures(job, tmp_path):
    pace = measure_pace_in_a_fork(job, tmp_path, {})
    assert pace.per_device_tokens in (2048, 4096, 8192, 16_384)
    assert pace.pair_seconds.keys() == {"32", "64"} and min(pace.pair_seconds.values()) > 0
    assert 0 < pace.heldout_pair_seconds < pace.pair_seconds["64"]
    assert pace.update_seconds > 0 and pace.checkpoint_seconds == 0  # not needed without a budget


def test_a_probe_that_fails_says_why(job, tmp_path):
    with pytest.raises(ProbeFailed, match=r"(?s)exit code 1.*elsewhere/tokenizer.json"):
        measure_pace(job.model_copy(update={"tokenizer": Path("elsewhere")}), tmp_path, os.environ)
