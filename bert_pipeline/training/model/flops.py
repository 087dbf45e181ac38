"""Counting a training: its weights and its floating-point operations.

A weight of a matrix product takes 2 operations for each vector it is applied to, and twice as many again going
backward: 6 (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention multiplies activations with each other:
12 * layers * hidden * length for each token (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). So, with h
hidden_size, L layers, f intermediate_size and V the padded vocabulary,

    a token of a row of n tokens     6 (L - 1) (4 h^2 + 2 h f) + 12 (L - 1) h n + 6 (2 h^2)
    a place that a head asks for     6 (2 h^2 + 2 h f) + 12 h n      the last layer: masked tokens and [CLS]
    a masked token                   6 (h^2 + h V)                   the MLM head
    a pair                           6 (h^2 + 2 h)                   pooler and NSP head

The last layer makes keys and values of every token, and all else at the places that are asked for alone.

Embeddings are looked up, which multiplies nothing. Padding, normalisation, activation functions, softmax and the
optimizer are left out.
"""

from bert_pipeline.formats.tokenizer import padded_vocab_size
from bert_pipeline.recipe import ModelRecipe
from bert_pipeline.training.batches.dataset import Load


def num_parameters(model: ModelRecipe, vocab_size: int) -> int:
    """All weights of BertForPreTraining; the MLM head shares the embedding's matrix."""
    h, f, rows = model.hidden_size, model.intermediate_size, padded_vocab_size(vocab_size)
    embeddings = (rows + model.max_position_embeddings + 2) * h + 2 * h
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    heads = (h * h + h) + (h * h + h + 2 * h + rows) + (2 * h + 2)  # pooler; MLM head; NSP head
    return embeddings + model.num_hidden_layers * layer + heads


def training_flops(model: ModelRecipe, vocab_size: int, load: Load) -> float:
    """Forward and backward; see the head of this file."""
    h, f, asked = model.hidden_size, model.intermediate_size, load.masked + load.pairs
    length = load.squared_lengths / load.tokens if load.tokens else 0.0  # of a token's row, on average
    return (
        layers_flops(model, model.num_hidden_layers - 1, load.tokens, load.squared_lengths)
        + 6 * 2 * h * h * load.tokens
        + 6 * (2 * h * h + 2 * h * f) * asked
        + 12 * h * length * asked  # a row is asked in proportion to its length
        + 6 * (h * h + h * padded_vocab_size(vocab_size)) * load.masked
        + 6 * (h * h + 2 * h) * load.pairs
    )


def layers_flops(model: ModelRecipe, layers: int, tokens: float, squared_lengths: float) -> float:
    """Forward and backward of so many layers that compute everything, as in fine-tuning."""
    h, f = model.hidden_size, model.intermediate_size
    return layers * (6 * (4 * h * h + 2 * h * f) * tokens + 12 * h * squared_lengths)
