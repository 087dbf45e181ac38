"""Attention within each pair of a packed row: many pairs lie in one row of tokens, and each attends to itself alone.

Registered with transformers' AttentionInterface, so the model that it runs in stays a stock BertForPreTraining. CUDA
has a kernel for pairs of any length (FlashAttention-2; Dao 2023, arXiv 2307.08691). Elsewhere pairs of one length are
computed side by side; they lie side by side in memory when a row holds its pairs in the order of their lengths.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertSelfAttention

PACKED = "packed"
"""The name of this attention, for `set_attn_implementation`."""

aten = torch.ops.aten


def packed_attention(
    module: BertSelfAttention,
    query: Tensor,  # (1, heads, tokens, width), as are the next two
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    offsets: Tensor,  # (pairs + 1,) int32: pair n is tokens offsets[n] to offsets[n + 1]
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; returns (1, tokens, heads, width)."""
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        longest = module.config.max_position_embeddings  # blocks of tokens beyond a pair's end cost nothing
        found = aten._flash_attention_forward(
            *(query, key, value, offsets, offsets, longest, longest, dropout, False, False), scale=scaling
        )[0]
    elif query.is_cuda or dropout:
        found = _any_device(query, key, value, offsets, dropout, scaling)
    else:
        found = attention_on_cpu(query, key, value, offsets, scaling)[0]
    return found[None], None


AttentionInterface.register(PACKED, packed_attention)


def _side_by_side(offsets: Tensor) -> Iterator[tuple[slice, int]]:
    """Tokens of neighbouring pairs that have one length, and how many pairs they are."""
    begin, count, length = 0, 0, 0
    for each in [*offsets.diff().tolist(), 0]:
        if each != length and count:
            yield slice(begin, begin + count * length), count
            begin, count = begin + count * length, 0
        count, length = count + 1, each


def _by_pair(states: Tensor, tokens: slice, pairs: int) -> Tensor:
    """(tokens, heads, width) as (pairs, heads, length, width), without a copy."""
    return states[tokens].unflatten(0, (pairs, -1)).transpose(1, 2)


def _any_device(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, dropout: float, scale: float) -> Tensor:
    found = []
    for place in _side_by_side(offsets):
        q, k, v = (_by_pair(states, *place) for states in (query, key, value))
        pairs = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        found.append(pairs.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


@torch.library.custom_op("bert_pipeline::attention_on_cpu", mutates_args=())
def attention_on_cpu(
    query: Tensor,  # (tokens, heads, width), as are the next two
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output and, as (tokens, heads) float32, the logarithm of the softmax's normaliser.

    One operation to torch.compile, whatever the lengths of the pairs.
    """
    out = torch.empty(query.shape, dtype=query.dtype)
    normaliser = torch.empty(query.shape[:2])
    for place in _side_by_side(offsets):
        states = (_by_pair(each, *place) for each in (query, key, value))
        found, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(*states, scale=scale)
        _by_pair(out, *place).copy_(found)
        _by_pair(normaliser[..., None], *place).copy_(logsumexp[..., None])
    return out, normaliser


@torch.library.custom_op("bert_pipeline::attention_on_cpu_backward", mutates_args=())
def attention_on_cpu_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normaliser: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, computed in float32: in bfloat16 torch's kernel takes twice the time."""
    of_query, of_key, of_value = (torch.empty(query.shape, dtype=query.dtype) for _ in range(3))
    for place in _side_by_side(offsets):
        states = (_by_pair(each, *place).float() for each in (gradient, query, key, value, out))
        logsumexp = _by_pair(normaliser[..., None], *place)[..., 0]
        found = aten._scaled_dot_product_flash_attention_for_cpu_backward(*states, logsumexp, 0.0, False, scale=scale)
        for each, of_place in zip((of_query, of_key, of_value), found, strict=True):
            _by_pair(each, *place).copy_(of_place)
    return of_query, of_key, of_value


@attention_on_cpu.register_fake
def _(query, key, value, offsets, scale):
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@attention_on_cpu_backward.register_fake
def _(gradient, query, key, value, out, normaliser, offsets, scale):
    return tuple(query.new_empty(query.shape) for _ in range(3))


def _keep_for_backward(ctx, inputs, output):
    query, key, value, offsets, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, offsets)


def _backward(ctx, gradient, _):
    gradients = attention_on_cpu_backward(gradient, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None


attention_on_cpu.register_autograd(_backward, setup_context=_keep_for_backward)
