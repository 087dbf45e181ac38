"""The speed of fine-tuning beside the Trainer."""

import json

import pytest

from benchmarks import evaluation


@pytest.mark.slow
def test_fine_tuning_of_all_sides_on_the_generated_task(run_python, tmp_path):
    code = (
        "import sys; from benchmarks import evaluation; evaluation.MIN_STEPS = 20; evaluation.MIN_EPOCHS = 1; "
        "evaluation.WARM_UP = 2; "
        "sys.argv = ['evaluation', '--task', 'sample-chem', '--rounds', '1', '--json']; evaluation.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    names = ["sample-chem, training"] * 2 + ["sample-chem, prediction"] * 2
    assert [row["name"] for row in found["rows"]] == names
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert evaluation.BEFORE in evaluation.table(found)
