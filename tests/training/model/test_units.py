"""Counts of active feed-forward units, on a model whose units are known."""

import pytest
import torch
from transformers import BertConfig, BertModel

from bert_pipeline.training.model.units import active_units


@pytest.fixture
def model():
    """In the first layer all inputs are the bias: -5 for half of the units, 1 for a quarter and 3 for the rest."""
    torch.manual_seed(1)
    made = BertModel(
        BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
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


def test_padding_is_not_counted(model):
    ids = torch.randint(50, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    padded = active_units(model, [{"input_ids": ids, "attention_mask": mask}])
    alone = active_units(model, [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :3]}])
    for one, other in zip(padded, alone, strict=True):
        assert one == pytest.approx(other)


def test_the_model_is_left_without_hooks(model):
    active_units(model, [{"input_ids": torch.randint(50, (1, 4))}])
    assert not any(module._forward_hooks for module in model.modules())
