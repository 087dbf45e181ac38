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


def test_the_trainer_runs_in_bfloat16_only_where_the_processor_has_units(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.machine.CPU_INFO", tmp_path / "cpuinfo")
    for flags, expected in (("fpu avx2", {"float32"}), ("avx2 avx512_bf16", {"float32", "bf16"})):
        (tmp_path / "cpuinfo").write_text(f"model name\t: CPU\nflags\t\t: {flags}\n")
        for settings in (evaluation.PEER_SETTINGS, evaluation.PEER_PREDICTIONS):
            found = evaluation.worth_trying(settings)
            assert {each["precision"] for each in found.values()} == expected
