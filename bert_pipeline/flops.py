"""Counting a training: its weights and its floating-point operations.

A weight of a matrix product takes 2 operations for each vector it is applied to, and twice as many again going
backward: 6 (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention multiplies activations with each other:
12 * layers * hidden * length for each token (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). So, with h
hidden_size, L layers, f intermediate_size and V the padded vocabulary,

    a token of a row of n tokens     6 L (4 h^2 + 2 h f) + 12 L h n
    a masked token                   6 (h^2 + h V)           the MLM head runs on masked positions alone
    a pair                           6 (h^2 + 2 h)           pooler and NSP head

Embeddings are looked up, which multiplies nothing. Padding, normalisation, activation functions, softmax and the
optimizer are left out.
"""

from dataclasses import dataclass

from bert_pipeline.formats import padded_vocab_size
from bert_pipeline.recipe import ModelRecipe


def num_parameters(model: ModelRecipe, vocab_size: int) -> int:
    """All weights of BertForPreTraining; the MLM head shares the embedding's matrix."""
    h, f, rows = model.hidden_size, model.intermediate_size, padded_vocab_size(vocab_size)
    embeddings = (rows + model.max_position_embeddings + 2) * h + 2 * h
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    heads = (h * h + h) + (h * h + h + 2 * h + rows) + (2 * h + 2)  # pooler; MLM head; NSP head
    return embeddings + model.num_hidden_layers * layer + heads


@dataclass(frozen=True)
class Load:
    """What a training, or a part of it, is asked to compute on."""

    tokens: float
    squared_lengths: float
    """The sum over rows of length**2: each token attends to all tokens of its row."""
    masked: float
    pairs: float


def training_flops(model: ModelRecipe, vocab_size: int, load: Load) -> float:
    """Forward and backward; see the head of this file."""
    h, layers = model.hidden_size, model.num_hidden_layers
    return (
        6 * layers * (4 * h * h + 2 * h * model.intermediate_size) * load.tokens
        + 12 * layers * h * load.squared_lengths
        + 6 * (h * h + h * padded_vocab_size(vocab_size)) * load.masked
        + 6 * (h * h + 2 * h) * load.pairs
    )
