"""The first 20 steps of a training compared with recorded numbers, to detect any change of them."""

import json
from pathlib import Path

import pytest
from training.runs import job_for, train

from bert_pipeline.formats.metrics import read_rows

GOLDEN = Path(__file__).parent / "golden_losses.json"
"""By step: MLM loss, NSP loss, gradient norm; float32, without dropout."""


def test_twenty_steps_have_the_recorded_losses(tiny, tiny_recipe, tmp_path):
    """Within 1e-4: other processors and library versions sum in other orders."""
    still = tiny_recipe.model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    recipe = tiny_recipe.model_copy(update={"model": still})
    train(job_for(tiny, recipe, tmp_path, first_phase={"num_steps": 16}, log_every=1), 1)
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "loss" in row]
    found = {str(row["step"]): [row["mlm_loss"], row["nsp_loss"], row["grad_norm"]] for row in rows}
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(expected) == 20 and found.keys() == expected.keys()
    for step, numbers in expected.items():
        assert found[step] == pytest.approx(numbers, rel=1e-4), f"step {step}"
