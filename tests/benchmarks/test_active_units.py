"""The command on a model of which half of the first layer's units are never active."""

import json

import torch
from transformers import BertConfig, BertModel


def test_the_command_shows_each_model_and_layer(run_python, tmp_path):
    torch.manual_seed(1)
    model = BertModel(
        BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )
    dense = model.encoder.layer[0].intermediate.dense
    torch.nn.init.zeros_(dense.weight)
    dense.bias.data = torch.tensor([-5.0] * 8 + [1.0] * 8)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "drug", "cures", "disease"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "text.jsonl").write_text('{"text": "The drug cures the disease."}\n' * 3, encoding="utf-8")
    command = ["-m", "benchmarks.active_units", "--model", str(tmp_path / "m"), "--text", str(tmp_path / "text.jsonl")]
    lines = run_python(*command).stdout.strip().splitlines()
    assert len(lines) == 4 and "50.0%" in lines[2]
    found = json.loads(run_python(*command, "--json").stdout)
    assert found[str(tmp_path / "m")][0]["never_active"] == 0.5
