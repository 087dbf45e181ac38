"""The structured start of attention: where heads look, and what stays as it was."""

import pytest
import torch
from transformers import BertForPreTraining

from bert_pipeline.recipe import ModelRecipe
from bert_pipeline.training.model.model import build_model

PLAIN = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
}


def structured(**changed):
    return build_model(ModelRecipe(**PLAIN | {"structured_attention_layers": 1} | changed), 800, seed=3)


@pytest.mark.parametrize("shape", [{}, {"hidden_size": 96, "num_attention_heads": 2}, {"max_position_embeddings": 512}])
def test_heads_look_at_their_neighbours(shape):
    """Head 0 at the token before, head 1 at the one after; the position part of a query meets that of its key best."""
    model = structured(**shape)
    positions = model.bert.embeddings.position_embeddings.weight.detach()
    attention = model.bert.encoder.layer[0].attention.self
    heads = model.config.num_attention_heads
    queries, keys = ((positions @ each.weight.T).unflatten(1, (heads, -1)) for each in (attention.query, attention.key))
    scores = torch.einsum("qhd,khd->hqk", queries, keys).detach()
    for head, offset in zip(range(heads), (-1, 1, -2, 2), strict=False):
        means = {each: float(scores[head].diagonal(each).mean()) for each in range(-6, 7)}
        assert max(means, key=means.__getitem__) == offset, means


def test_layers_above_start_as_layer_norm_of_their_input():
    model = structured().eval()
    hidden = torch.randn(1, 7, 128)
    for layer in list(model.bert.encoder.layer)[1:]:
        [found] = layer(hidden)[:1]
        expected = torch.nn.functional.layer_norm(hidden, (128,), eps=model.config.layer_norm_eps)
        assert torch.allclose(found.view_as(hidden), torch.nn.functional.layer_norm(expected, (128,)), atol=1e-5)


def test_all_else_is_what_it_was_and_a_function_of_the_seed():
    plain, model, again = build_model(ModelRecipe(**PLAIN), 800, seed=3), structured(), structured()
    changed = set()
    for (name, before), after, same in zip(
        plain.named_parameters(), model.parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(after, same)
        if not torch.equal(before, after):
            changed.add(name)
    start = "bert.encoder.layer"
    zeroed = {f"{start}.{n}.{each}.dense.weight" for n in (1, 2) for each in ("attention.output", "output")}
    first = {f"{start}.0.attention.self.{each}.weight" for each in ("query", "key")}
    embeddings = {f"bert.embeddings.{each}_embeddings.weight" for each in ("word", "position", "token_type")}
    tied = {"cls.predictions.decoder.weight"} & changed
    assert changed - tied == embeddings | zeroed | first


def test_positions_and_words_have_dimensions_of_their_own():
    embeddings = structured().bert.embeddings
    words, positions, segments = (
        each.weight.detach()
        for each in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
    )
    own = 128 // 4
    assert not words[:, :own].any() and not segments[:, :own].any() and not positions[:, own:].any()
    assert float(positions[:, :own].std()) == pytest.approx(float(words[:, own:].std()), rel=0.05)


def test_the_checkpoint_is_a_stock_bert(tmp_path):
    model = structured()
    model.save_pretrained(tmp_path)
    found = BertForPreTraining.from_pretrained(tmp_path, use_safetensors=True)
    assert "structured" not in (tmp_path / "config.json").read_text()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.parameters(), strict=True))


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="structured_attention_layers 4 is more than num_hidden_layers 3"):
        ModelRecipe(**PLAIN, structured_attention_layers=4)
