"""Counts of active feed-forward units, on a model whose units are known."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks.active_units import active_units

LAYERS = 2


@pytest.fixture
def model():
    """In the first layer all inputs are the bias: -5 for half of the units, 1 for a quarter and 3 for the rest."""
    torch.manual_seed(1)
    made = BertModel(
        BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=16)
    )
    dense = made.encoder.layer[0].intermediate.dense
    torch.nn.init.zeros_(dense.weight)
    dense.bias.data = torch.tensor([-5.0] * 8 + [1.0] * 4 + [3.0] * 4)
    return made


def test_units_are_counted_by_layer(model):
    texts = [{"input_ids": torch.randint(50, (1, length))} for length in (3, 7)]
    first, second = active_units(model, texts)
    assert (first.active, first.never_active, first.sd) == (0.5, 0.5, 0.0)
    assert first.mean == pytest.approx(-1.5)
    hidden = []
    model.encoder.layer[1].intermediate.dense.register_forward_hook(lambda _, __, out: hidden.append(out[0]))
    with torch.inference_mode():
        for text in texts:
            model(**text)
    inputs = torch.cat(hidden)
    assert second.active == pytest.approx(float((inputs > 0).float().mean()))
    assert second.never_active == pytest.approx(float(((inputs > 0).sum(0) == 0).float().mean()))


def test_the_command_shows_each_model_and_layer(model, run_python, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "drug", "cures", "disease"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "text.jsonl").write_text('{"text": "The drug cures the disease."}\n' * 3, encoding="utf-8")
    command = ["-m", "benchmarks.active_units", "--model", str(tmp_path / "m"), "--text", str(tmp_path / "text.jsonl")]
    lines = run_python(*command).stdout.strip().splitlines()
    assert len(lines) == 2 + LAYERS and "50.0%" in lines[2]
    found = json.loads(run_python(*command, "--json").stdout)
    assert found[str(tmp_path / "m")][0]["never_active"] == 0.5
