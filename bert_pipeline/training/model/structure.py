"""A structured start for attention: heads of the first layers that already look at fixed neighbours.

A BERT with random weights spends a third of a short run near the loss of word frequencies, because masked language
modeling improves only when attention has found the neighbours of a masked token (arXiv 2309.07311). This start gives it
the neighbours. Architecture, names and files stay those of a stock BERT. Related work: mimetic initialization (Trockman
and Kolter 2023, arXiv 2305.09828) and structured initialization of vision transformers (Zheng et al. 2024, arXiv
2404.01139).

With P positions and width D:

1. The first D/4 dimensions belong to positions: words and segments start with zeros there, positions with zeros
   everywhere else. Position p is D/8 pairs (sin w p, cos w p), w geometric from pi / 2 to 2 pi / max(P, 256) radians
   per position, with the variance of the word embeddings.
2. In each structured layer, head h of width d gets the offset k: -1, +1, -2, +2, ... and draws d/2 of the frequencies,
   or all if there are fewer. W_K gains s times the selection of these pairs, W_Q s times the same selection rotated by
   w k. The score of a query at t and a key at u then gains s^2 sum cos(w (u - t - k)), which is largest at u = t + k.
3. In the layers above, the output projections of attention and feed-forward start at zero. Each of these layers starts
   as LayerNorm of its input, so that the signal of the structured layers reaches the MLM head.

`strength` is the gain at u = t + k in units of the attention score if d/2 frequencies are drawn:
s = sqrt(2 strength / sqrt(d)). Without (1) the model learns more slowly (recipes/LOG.md), probably
because the random embeddings of the words blur the gain.
"""

import math
from typing import Any

import torch
from transformers import BertForPreTraining

POSITION_SHARE = 4
"""One in so many dimensions belongs to positions."""


@torch.no_grad()
def structure_attention(model: BertForPreTraining, num_layers: int, strength: float) -> None:
    """Change random weights in place; draws from torch's global generator."""
    config = model.config
    frequencies = position_frequencies(config.max_position_embeddings, config.hidden_size // POSITION_SHARE)
    _separate_positions(model, frequencies)
    scale = math.sqrt(2 * strength / math.sqrt(config.hidden_size // config.num_attention_heads))
    layers: list[Any] = list(model.bert.encoder.layer)
    for layer in layers[:num_layers]:
        _look_at_neighbours(layer.attention.self, frequencies, scale)
    for layer in layers[num_layers:]:
        layer.attention.output.dense.weight.zero_()
        layer.output.dense.weight.zero_()


def _separate_positions(model: BertForPreTraining, frequencies: torch.Tensor) -> None:
    """Move positions and words into dimensions of their own."""
    embeddings, own = model.bert.embeddings, 2 * len(frequencies)
    embeddings.word_embeddings.weight[:, :own] = 0
    embeddings.token_type_embeddings.weight[:, :own] = 0
    positions = embeddings.position_embeddings.weight
    angles = torch.arange(len(positions))[:, None] * frequencies
    positions.zero_()
    positions[:, 0:own:2] = angles.sin().float()
    positions[:, 1:own:2] = angles.cos().float()
    positions *= model.config.initializer_range * math.sqrt(2)


def _look_at_neighbours(attention: Any, frequencies: torch.Tensor, scale: float) -> None:
    """Let the heads of a layer prefer the tokens before and after, then those at distance 2, and so on."""
    query, key, width = attention.query.weight, attention.key.weight, attention.attention_head_size
    for head in range(attention.num_attention_heads):
        offset = (head // 2 + 1) * (1 if head % 2 else -1)
        drawn = torch.randperm(len(frequencies))[: width // 2]
        for place, n in enumerate(drawn.tolist()):
            rows = slice(head * width + 2 * place, head * width + 2 * place + 2)
            columns = slice(2 * n, 2 * n + 2)
            turn = float(frequencies[n]) * offset
            rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
            key[rows, columns] += scale * torch.eye(2)
            query[rows, columns] += scale * rotation


def position_frequencies(num_positions: int, width: int) -> torch.Tensor:
    """(width // 2,) float64, radians per position, descending."""
    highest, lowest = math.pi / 2, 2 * math.pi / max(num_positions, 256)
    return torch.logspace(math.log10(highest), math.log10(lowest), width // 2, dtype=torch.float64)
