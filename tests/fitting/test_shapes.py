"""One recipe at other widths."""

from bert_pipeline.fitting.shapes import encoder_weights, scaled
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.optim import muon_matrices

SMALL = load_recipe(recipe_files()["small"])


def test_its_own_width_changes_nothing():
    assert scaled(SMALL, 256) == SMALL


def test_the_width_of_bert_base_gives_bert_base():
    """As `bert-base-fast` writes it by hand; its Muon rate is rounded up there."""
    model, [phase] = scaled(SMALL, 768).model, scaled(SMALL, 768).pretrain.phases
    assert (model.num_hidden_layers, model.num_attention_heads, model.intermediate_size) == (12, 12, 3072)
    assert (model.initializer_range, phase.learning_rate, phase.muon_learning_rate) == (0.02, 7e-4, 1.4e-3)


def test_encoder_weights_are_the_matrices_of_the_layers():
    model = scaled(SMALL, 128).model
    assert encoder_weights(model) == sum(matrix.numel() for matrix in muon_matrices(build_model(model, 1000, seed=1)))
