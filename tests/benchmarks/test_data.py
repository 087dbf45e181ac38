"""The data benchmark as a whole."""

import json
import os

import pytest


@pytest.mark.slow
def test_the_whole_benchmark_on_a_small_sample(run_python, tmp_path):
    """Needs a package index; a row without a peer shows the reason."""
    code = (
        "import sys; from benchmarks import data; data.ROUNDS = data.SCALE_ROUNDS = 1; data.SCALE_MEGABYTES = 1.0; "
        "data.PEER_MEGABYTES = 0.2; sys.argv = ['data', '--megabytes', '0.5', '--json']; data.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    [result] = json.loads(finished.stdout)["texts"]
    assert {row["name"] for row in result["rows"]} == {
        "encode",
        "pairs-and-masks",
        "whole-way",
        "whole-way-from-raw-text",
        "whole-way-two-workers",
        "loader",
    }
    for row in result["rows"]:
        if len(os.sched_getaffinity(0)) > 1:
            assert row["ratio"], row["reason"]
    assert result["memory"].keys() >= {"peak_mib_quarter", "peak_mib_whole", "growth_fraction"}
    assert 2.0 < result["disk"]["128"]["nsp_dataset"] < 2.6 and 0.3 < result["disk"]["128"]["masked_dataset"] < 1.0
    assert not list(tmp_path.glob("benchmark-*")), "nothing is left behind but the peers"
