import pytest
import torch

from bert_pipeline.training.model.model import build_model


@pytest.fixture
def model(tiny_recipe, tiny):
    still = tiny_recipe.model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    return build_model(still, tiny["tokenizer"].facts["vocab_size"], seed=3)


def test_the_vocabulary_is_padded_for_the_matrix_units(tiny, model):
    assert model.config.vocab_size % 64 == 0
    assert 0 <= model.config.vocab_size - tiny["tokenizer"].facts["vocab_size"] < 64


def test_fresh_weights_are_a_function_of_the_seed(tiny_recipe):
    torch.manual_seed(1)
    one = build_model(tiny_recipe.model, 800, seed=3)
    torch.manual_seed(2)
    same, other = build_model(tiny_recipe.model, 800, seed=3), build_model(tiny_recipe.model, 800, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight)
