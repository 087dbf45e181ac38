"""The probe: which micro-batch it takes, and what it says where nothing fits."""

import json
import os

import pytest
from training.runs import exit_code, fork_ranks, measure_pace_in_a_fork

from bert_pipeline.training.launch.budget import ProbeFailed, measure_pace

LARGE_STEP = {"max_seq_length": 64, "num_steps": 4, "global_batch_size": 600, "learning_rate_handover": "continue"}


@pytest.fixture(scope="module")
def job(tiny, tiny_recipe, tmp_path_factory):
    section = tiny_recipe.pretrain.model_dump(mode="json")
    section["phases"][1] |= LARGE_STEP
    return {
        "section": section,
        "model": tiny_recipe.model.model_dump(mode="json"),
        **{kind: str(tiny[kind].path) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")},
        "out": str(tmp_path_factory.mktemp("probe")),
        "per_device_tokens": "auto",
    }


CHOICE = """
import json, sys
from bert_pipeline.training.probe import Probe, TooLittleMemory
probe = Probe(json.load(open(sys.argv[1])))
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
json.dump(said, open(sys.argv[2], "w"))
"""


def test_the_smallest_micro_batch_that_is_as_good_as_the_best(job, tmp_path):
    (tmp_path / "choice.py").write_text(CHOICE)
    (tmp_path / "job.json").write_text(json.dumps(job))
    [process] = fork_ranks(tmp_path / "choice.py", [tmp_path / "job.json", tmp_path / "told"], 1, tmp_path / "log")
    assert exit_code(process) == 0, (tmp_path / "log").read_text()
    said = json.loads((tmp_path / "told").read_text())
    assert said["step"] > 8192, "the test would prove nothing"
    assert said["smallest as good as the best"] == 4096
    assert said["larger is slower"] == 4096
    assert said["what does not fit is not tried"] == 4096
    assert said["less than the smallest fits"] == 1500
    assert (
        said["nothing fits"].startswith("one pair of 64 tokens needs ")
        and "remedy: free memory" in said["nothing fits"]
    )


def test_what_is_measured(job, tmp_path):
    section = job["section"] | {"budget_minutes": None}
    pace = measure_pace_in_a_fork(job | {"section": section}, tmp_path, {})
    assert pace.per_device_tokens in (2048, 4096, 8192, 16_384)
    assert pace.pair_seconds.keys() == {"32", "64"} and min(pace.pair_seconds.values()) > 0
    assert 0 < pace.heldout_pair_seconds < pace.pair_seconds["64"]
    assert pace.update_seconds > 0 and pace.checkpoint_seconds == 0  # no budget that it would count in


def test_a_probe_that_fails_says_why(job, tmp_path):
    with pytest.raises(ProbeFailed, match=r"(?s)exit code 1.*elsewhere/tokenizer.json"):
        measure_pace(job | {"tokenizer": "elsewhere"}, tmp_path, os.environ)
