"""Attention within each pair of a packed row: a token attends only to tokens of its own pair.

Registered with transformers' AttentionInterface, so the model stays a stock BERT. CUDA has a kernel for
pairs of any length (FlashAttention-2; Dao 2023, arXiv 2307.08691). The CPU batches pairs of similar length
(buckets.py), other devices batch adjacent pairs of equal length. Batches are largest if a row is sorted by length.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertSelfAttention

from bert_pipeline.training.batches.packing import TOKEN_STEP
from bert_pipeline.training.model.buckets import STEP, buckets
from bert_pipeline.training.model.dropout import drop

PACKED = "packed"
"""Name of this attention for `set_attn_implementation`."""

FLASH_STEP, FLASH_WIDEST = 8, 256
"""FlashAttention-2 takes heads whose width is a multiple of FLASH_STEP and at most FLASH_WIDEST."""

FLASH_CAPABILITY = (8, 0)
"""The oldest compute capability that torch's FlashAttention-2 supports (Ampere)."""

aten = torch.ops.aten


def packed_attention(
    module: BertSelfAttention,
    query: Tensor,  # (1, heads, tokens, width), like key and value
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    offsets: Tensor,  # (pairs + 1,) int32: pair n is tokens offsets[n] to offsets[n + 1]
    query_offsets: Tensor | None = None,  # the same for the queries, if not every token is a query
    scaling: float,
    dropout: float = 0.0,
    dropout_seed: Tensor | None = None,  # () int64, the same for all layers: lets the CPU batch pairs with dropout, too
    **_: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; returns (1, queries, heads, width)."""
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
    query_offsets = offsets if query_offsets is None else query_offsets
    if has_flash_attention(query):
        # Too large a maximum costs nothing. The padding of a row may be longer than any pair.
        longest = max(module.config.max_position_embeddings, TOKEN_STEP)
        found = _flash_attention(query, key, value, query_offsets, offsets, longest, dropout, scaling)
    elif not query.is_cpu or (dropout and dropout_seed is None):
        found = _any_device(query, key, value, query_offsets, offsets, dropout, scaling)
    else:
        seed = dropout_seed + module.layer_idx if dropout_seed is not None and dropout else None
        found = attention_on_cpu(query, key, value, query_offsets, offsets, scaling, dropout, seed)
    return found.unsqueeze(0), None


AttentionInterface.register(PACKED, packed_attention)


def has_flash_attention(query: Tensor) -> bool:
    """Whether FlashAttention-2 computes heads of this device, precision and width (the last dimension)."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= FLASH_WIDEST


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    offsets: Tensor,
    longest: int,
    dropout: float,
    scale: float,
) -> Tensor:
    width = query.shape[-1]
    if width % FLASH_STEP:  # zeros change no score, and the added columns of the result are cut off
        query, key, value = (pad(states, (0, -width % FLASH_STEP)) for states in (query, key, value))
    if not dropout:
        found = varlen_attn(query, key, value, query_offsets, offsets, longest, longest, scale=scale)
        assert isinstance(found, Tensor)  # for mypy: a tuple only with `return_aux`
    else:  # `varlen_attn` is public, but fixes the dropout rate of this operation at 0 (torch 2.13)
        found = aten._flash_attention_forward(
            *(query, key, value, query_offsets, offsets, longest, longest, dropout, False, False), scale=scale
        )[0]
    return found.narrow(-1, 0, width)


def _runs_of_equal_shape(query_offsets: Tensor, offsets: Tensor) -> Iterator[tuple[slice, slice, int]]:
    """Runs of adjacent pairs with equal query and token counts: slices of queries and tokens, and number of pairs."""
    shapes = zip(query_offsets.diff().tolist(), offsets.diff().tolist(), strict=True)
    query, token = 0, 0
    for (queries, tokens), neighbours in groupby(shapes):
        pairs = len(list(neighbours))
        yield slice(query, query + pairs * queries), slice(token, token + pairs * tokens), pairs
        query, token = query + pairs * queries, token + pairs * tokens


def _by_pair(states: Tensor, positions: slice, pairs: int) -> Tensor:
    """A view of (positions, heads, width) as (pairs, heads, length, width)."""
    return states[positions].unflatten(0, (pairs, -1)).transpose(1, 2)


def _any_device(
    query: Tensor, key: Tensor, value: Tensor, query_offsets: Tensor, offsets: Tensor, dropout: float, scale: float
) -> Tensor:
    found = []
    for queries, tokens, pairs in _runs_of_equal_shape(query_offsets, offsets):
        q, k, v = _by_pair(query, queries, pairs), _by_pair(key, tokens, pairs), _by_pair(value, tokens, pairs)
        mixed = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
        found.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


@torch.library.custom_op("bert_pipeline::attention_on_cpu", mutates_args=())
def attention_on_cpu(
    query: Tensor,  # (queries, heads, width)
    key: Tensor,  # (tokens, heads, width)
    value: Tensor,
    query_offsets: Tensor,
    offsets: Tensor,
    scale: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,  # () int64, of the attention weights to drop; None: drop none
) -> Tensor:
    """A single operation for torch.compile, for pairs of any length; see buckets.py."""
    layout = buckets(query_offsets, offsets, query.shape[1])
    q, k, v = layout.queries.gather(query), layout.keys.gather(key), layout.keys.gather(value)
    out, drawn = torch.empty_like(q), 0
    for chunk in layout.chunks:
        weights = _weights(chunk.queries(q), _centred(chunk.keys(k)), chunk.padding, scale)
        if seed is not None:
            weights = drop(weights, dropout, int(seed), drawn)
        torch.bmm(weights, chunk.keys(v), out=chunk.queries(out))
        drawn += weights.numel()
    return layout.queries.scatter(out)


@torch.library.custom_op("bert_pipeline::attention_on_cpu_backward", mutates_args=())
def attention_on_cpu_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    offsets: Tensor,
    scale: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value. The attention weights are recomputed, and those to drop are drawn again:
    storing them would take memory quadratic in the length.
    """
    layout = buckets(query_offsets, offsets, query.shape[1])
    q, k, v = layout.queries.gather(query), layout.keys.gather(key), layout.keys.gather(value)
    grad = layout.queries.gather(gradient, padding=0.0)
    of_q, of_k, of_v = (torch.empty_like(each) for each in (q, k, v))
    drawn = 0
    for chunk in layout.chunks:
        key = _centred(chunk.keys(k))
        weights = _weights(chunk.queries(q), key, chunk.padding, scale)
        if seed is None:
            mixed, of_weights = weights, torch.bmm(chunk.queries(grad), _centred(chunk.keys(v)).transpose(1, 2))
        else:
            mixed = drop(weights, dropout, int(seed), drawn)
            of_mixed = torch.bmm(chunk.queries(grad), chunk.keys(v).transpose(1, 2))
            of_weights = drop(of_mixed, dropout, int(seed), drawn)
        of_scores = aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        _scaled_product(of_scores, key, scale, out=chunk.queries(of_q))
        _scaled_product(of_scores.transpose(1, 2), chunk.queries(q), scale, out=chunk.keys(of_k))
        torch.bmm(mixed.transpose(1, 2), chunk.queries(grad), out=chunk.keys(of_v))
        drawn += weights.numel()
    return layout.queries.scatter(of_q), layout.keys.scatter(of_k), layout.keys.scatter(of_v)


def _centred(states: Tensor) -> Tensor:
    """(batch, keys, width) minus the mean over the keys. Subtracting one vector from all keys changes neither softmax
    nor its gradient, and bfloat16 then rounds only the differences between the keys.
    """
    return states - states.mean(1, keepdim=True)


def _weights(query: Tensor, key: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    scores = _scaled_product(query, key.transpose(1, 2), scale)
    if padding is not None:
        scores[..., -STEP:].masked_fill_(padding, -torch.inf)
    return scores.softmax(-1)


def _scaled_product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    unused = left.new_empty(1, 1, 1)  # not read, because beta is 0
    return torch.baddbmm(unused, left, right, beta=0, alpha=scale, out=out)


@attention_on_cpu.register_fake
def _(query, key, value, query_offsets, offsets, scale, dropout=0.0, seed=None):
    return query.new_empty(query.shape)


@attention_on_cpu_backward.register_fake
def _(gradient, query, key, value, query_offsets, offsets, scale, dropout=0.0, seed=None):
    return tuple(each.new_empty(each.shape) for each in (query, key, value))


def _keep_for_backward(ctx, inputs, output):
    *tensors, ctx.scale, ctx.dropout, seed = inputs
    ctx.save_for_backward(*tensors, seed)


def _backward(ctx, gradient):
    *tensors, seed = ctx.saved_tensors
    gradients = attention_on_cpu_backward(gradient, *tensors, ctx.scale, ctx.dropout, seed)
    return *gradients, None, None, None, None, None


attention_on_cpu.register_autograd(_backward, setup_context=_keep_for_backward)
