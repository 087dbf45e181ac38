"""Counting a training: weights, floating-point operations, and the time they take on hardware given by name.

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

import difflib
from dataclasses import dataclass

from bert_pipeline.formats import padded_vocab_size
from bert_pipeline.recipe import ModelRecipe

ASSUMED_UTILIZATION = 0.40
"""Share of a maker's peak that training reaches; measure it on your own hardware where it matters."""


@dataclass(frozen=True)
class Hardware:
    flops_per_second: float
    """Peak of the tensor cores in bfloat16 (V100: float16) without sparsity, by the maker's data sheet."""
    memory: float  # bytes
    source: str


HARDWARE = {
    "A100-80GB": Hardware(312e12, 80e9, "NVIDIA A100 80GB data sheet"),
    "H100-SXM": Hardware(989.4e12, 80e9, "NVIDIA H100 data sheet; with sparsity 1,979"),
    "H200": Hardware(989.4e12, 141e9, "NVIDIA H200 data sheet; with sparsity 1,979"),
    "L4": Hardware(121e12, 24e9, "NVIDIA L4 data sheet; with sparsity 242"),
    "RTX-4090": Hardware(165.2e12, 24e9, "NVIDIA Ada GPU architecture, appendix A; float32 sums"),
    "V100": Hardware(125e12, 32e9, "NVIDIA V100 data sheet; SXM2, float16"),
}


def find_hardware(name: str) -> Hardware:
    if name in HARDWARE:
        return HARDWARE[name]
    near = difflib.get_close_matches(name, HARDWARE, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]}?" if near else "remedy: name one of them"
    raise ValueError(f"no hardware is named {name!r}; {remedy} (known: {', '.join(HARDWARE)})")


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
