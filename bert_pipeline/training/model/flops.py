"""The number of weights and floating-point operations of a training.

A weight of a matrix product takes 2 operations per vector in the forward pass and 4 in the backward pass: 6 (Kaplan et
al. 2020, arXiv 2001.08361, section 2.1). Attention multiplies activations with each other: 12 * layers * hidden *
length per token (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). With h = hidden_size, L = layers,
f = intermediate_size and V = padded vocabulary:

    per token of a row of n tokens   6 (L - 1) (4 h^2 + 2 h f) + 12 (L - 1) h n + 6 (2 h^2)
    per output position              6 (2 h^2 + 2 h f) + 12 h n      the last layer at masked tokens and [CLS]
    per masked token                 6 (h^2 + h V)                   MLM head
    per pair                         6 (h^2 + 2 h)                   pooler and NSP head

The last layer computes keys and values of every token, and everything else at the output positions only.

Embedding lookups multiply nothing. Padding, normalisation, activation functions, softmax and the optimizer are not
counted.
"""

from bert_pipeline.formats.tokenizer import padded_vocab_size
from bert_pipeline.recipe import ModelRecipe
from bert_pipeline.training.batches.dataset import Load


def num_parameters(model: ModelRecipe, vocab_size: int) -> int:
    """All weights of BertForPreTraining. The MLM head shares the embedding matrix."""
    h, f, rows = model.hidden_size, model.intermediate_size, padded_vocab_size(vocab_size)
    embeddings = (rows + model.max_position_embeddings + 2) * h + 2 * h
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    heads = (h * h + h) + (h * h + h + 2 * h + rows) + (2 * h + 2)  # pooler; MLM head; NSP head
    return embeddings + model.num_hidden_layers * layer + heads


def training_flops(model: ModelRecipe, vocab_size: int, load: Load) -> float:
    """Forward and backward pass, by the formula at the top of this file."""
    h, f, outputs = model.hidden_size, model.intermediate_size, load.masked + load.pairs
    length = load.squared_lengths / load.tokens if load.tokens else 0.0  # mean over tokens of their row's length
    return (
        layers_flops(model, model.num_hidden_layers - 1, load.tokens, load.squared_lengths)
        + 6 * 2 * h * h * load.tokens
        + 6 * (2 * h * h + 2 * h * f) * outputs
        + 12 * h * length * outputs  # assumes that output positions are proportional to a row's length
        + 6 * (h * h + h * padded_vocab_size(vocab_size)) * load.masked
        + 6 * (h * h + 2 * h) * load.pairs
    )


def layers_flops(model: ModelRecipe, layers: int, tokens: float, squared_lengths: float) -> float:
    """Forward and backward pass of layers that compute every position, as in fine-tuning."""
    h, f = model.hidden_size, model.intermediate_size
    return layers * (6 * (4 * h * h + 2 * h * f) * tokens + 12 * h * squared_lengths)
