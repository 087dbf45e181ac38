"""A structured start for attention: heads of the first layers that already look at fixed neighbours.

A BERT with random weights spends a third of a short run near the loss of word frequencies, because masked language
modeling improves only when attention has found the neighbours of a masked token (arXiv 2309.07311). This start gives it
the neighbours. Architecture, names and files stay those of a stock BERT. Related work: mimetic initialization (Trockman
and Kolter 2023, arXiv 2305.09828) and structured initialization of vision transformers (Zheng et al. 2024, arXiv
2404.01139).

With P positions and width D:

1. Position embeddings start as D/2 pairs (sin w t, cos w t), w geometric from pi / 2 to 2 pi / max(P, 256) radians per
   position, with the variance of the word embeddings.
2. In each structured layer, head h of width d gets the offset k: -1, +1, -2, +2, ... and draws d/2 of the frequencies.
   W_K gains s times the selection of these pairs, W_Q s times the same selection rotated by w k. The score of a query
   at t and a key at u then gains s^2 sum cos(w (u - t - k)), which is largest at u = t + k.
3. In the layers above, the output projections of attention and feed-forward start at zero. Each of these layers starts
   as LayerNorm of its input, so that the signal of the structured layers reaches the MLM head.

`strength` is the gain at u = t + k in units of the attention score: s = sqrt(2 strength / sqrt(d)).
"""

import math
from typing import Any

import torch
from transformers import BertForPreTraining


@torch.no_grad()
def structure_attention(model: BertForPreTraining, num_layers: int, strength: float) -> None:
    """Change random weights in place; draws from torch's global generator."""
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    head_width = width // heads
    frequencies = position_frequencies(config.max_position_embeddings, width)
    positions = model.bert.embeddings.position_embeddings.weight
    angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies
    positions[:, 0 : 2 * len(frequencies) : 2] = angles.sin().float()
    positions[:, 1 : 2 * len(frequencies) : 2] = angles.cos().float()
    positions *= config.initializer_range * math.sqrt(2)
    scale = math.sqrt(2 * strength / math.sqrt(head_width))
    layers: list[Any] = list(model.bert.encoder.layer)
    for layer in layers[:num_layers]:
        query, key = layer.attention.self.query.weight, layer.attention.self.key.weight
        for head in range(heads):
            offset = (head // 2 + 1) * (1 if head % 2 else -1)
            drawn = torch.randperm(len(frequencies))[: head_width // 2]
            for place, n in enumerate(drawn.tolist()):
                rows = slice(head * head_width + 2 * place, head * head_width + 2 * place + 2)
                columns = slice(2 * n, 2 * n + 2)
                turn = float(frequencies[n]) * offset
                rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
                key[rows, columns] += scale * torch.eye(2)
                query[rows, columns] += scale * rotation
    for layer in layers[num_layers:]:
        layer.attention.output.dense.weight.zero_()
        layer.output.dense.weight.zero_()


def position_frequencies(num_positions: int, width: int) -> torch.Tensor:
    """(width // 2,) float64, radians a position, descending."""
    highest, lowest = math.pi / 2, 2 * math.pi / max(num_positions, 256)
    return torch.logspace(math.log10(highest), math.log10(lowest), width // 2, dtype=torch.float64)
