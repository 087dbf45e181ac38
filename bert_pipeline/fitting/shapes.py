"""One recipe at other widths and lengths of training, with the settings that follow from them."""

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


def muon_weight_decay(base: Recipe, sized: Recipe, num_steps: int) -> float:
    """Muon's weight decay for `num_steps` at the rate of `sized`: no more in all than over the training of `base`.

    The decay acts on a weight for about 1 / (rate * decay) steps, and the best such time is a fixed share of the
    training (Wang and Aitchison 2024, arXiv 2405.13698). Both recipes have one phase with Muon.
    """
    [of_base], [phase] = base.pretrain.phases, sized.pretrain.phases
    assert of_base.num_steps and of_base.muon_learning_rate and phase.muon_learning_rate
    longer = num_steps * phase.muon_learning_rate / (of_base.num_steps * of_base.muon_learning_rate)
    return _rounded(base.pretrain.muon_weight_decay / max(1, longer))


def encoder_weights(model: ModelRecipe) -> int:
    """Entries of the matrices of the encoder layers, without embeddings, biases and LayerNorm."""
    return model.num_hidden_layers * (4 * model.hidden_size**2 + 2 * model.hidden_size * model.intermediate_size)


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
