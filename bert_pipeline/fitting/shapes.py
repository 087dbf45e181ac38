"""One recipe at other widths, with settings that follow the width."""

import json

from bert_pipeline.recipe import ModelRecipe, Recipe

HEAD_WIDTH = 64
"""As in BERT. There are as many layers as heads, also as in BERT: 12 of each at a width of 768."""
RATE_EXPONENT = 0.7
"""Learning rates fall with this power of the width: between `small` (256 wide) and `bert-base-fast` (768)."""


def scaled(recipe: Recipe, width: int) -> Recipe:
    """The recipe with a model of another width, which is a multiple of HEAD_WIDTH.

    New weights get a standard deviation that falls with the square root of the width: their products keep their size.
    """
    chosen = recipe.model_dump(mode="json")
    ratio, number = recipe.model.hidden_size / width, width // HEAD_WIDTH
    chosen["model"] |= {
        "hidden_size": width,
        "num_hidden_layers": number,
        "num_attention_heads": number,
        "intermediate_size": 4 * width,
        "initializer_range": _rounded(recipe.model.initializer_range * ratio**0.5),
    }
    for phase in chosen["pretrain"]["phases"]:
        for rate in ("learning_rate", "muon_learning_rate"):
            if phase[rate]:
                phase[rate] = _rounded(phase[rate] * ratio**RATE_EXPONENT)
    return Recipe.model_validate_json(json.dumps(chosen))


def encoder_weights(model: ModelRecipe) -> int:
    """Entries of the matrices of the encoder layers, without embeddings, biases and LayerNorm."""
    return model.num_hidden_layers * (4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size)


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
