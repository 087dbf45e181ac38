"""How many feed-forward units of a BERT are active on a text, by layer.

A unit is active on a token if its input to the activation function is positive. GELU is almost zero and almost flat far
below zero, so a unit that is active on no token adds nothing and hardly learns any more.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BertModel


class Units(NamedTuple):
    """The feed-forward units of a layer, on all tokens."""

    mean: float
    """Mean input to the activation function."""
    sd: float
    """Standard deviation over tokens of a unit's input, averaged over units."""
    active: float
    """Share of the units on a token, averaged over tokens."""
    never_active: float
    """Share of the units that are active on no token."""


def active_units(model: BertModel, texts: Iterable[Mapping[str, Tensor]]) -> list[Units]:
    """Each layer of `model`. `texts`: the arguments of its forward pass, (batch, length) int64, without
    padding or with an attention_mask that is 0 on it.
    """
    layers: Iterable[Any] = model.encoder.layer
    outputs: list[Tensor] = []
    hooks = [
        layer.intermediate.dense.register_forward_hook(lambda _, __, out: outputs.append(out.flatten(0, -2)))
        for layer in layers
    ]
    found: list[list[Tensor]] = [[] for _ in layers]
    with torch.inference_mode():
        for text in texts:
            outputs.clear()
            model.eval()(**text)
            tokens = text.get("attention_mask", torch.ones_like(text["input_ids"])).flatten().bool()
            for of_layer, output in zip(found, outputs, strict=True):
                of_layer.append(output[tokens])
    for hook in hooks:
        hook.remove()
    return [_units(torch.cat(of_layer)) for of_layer in found]


def _units(inputs: Tensor) -> Units:
    active = inputs > 0
    spread = inputs.std(0).mean().item()
    return Units(inputs.mean().item(), spread, active.float().mean().item(), (~active.any(0)).float().mean().item())
