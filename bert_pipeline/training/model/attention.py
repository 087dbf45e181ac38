"""Attention within each pair of a packed row: many pairs lie in one row of tokens, and each attends to itself alone.

Registered with transformers' AttentionInterface, so the model that it runs in stays a stock BertForPreTraining. CUDA
has a kernel for pairs of any length (FlashAttention-2; Dao 2023, arXiv 2307.08691). Elsewhere pairs of one length, on
the CPU of about one length (buckets.py), are computed side by side; they lie side by side in memory when a row holds
its pairs in the order of their lengths.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention

from bert_pipeline.training.batches.packing import TOKEN_STEP
from bert_pipeline.training.model.buckets import STEP, buckets

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
    query_offsets: Tensor | None = None,  # the same of the queries, where not every token asks
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls; returns (1, queries, heads, width)."""
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    query_offsets = offsets if query_offsets is None else query_offsets
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        # Blocks of tokens beyond a pair's end cost nothing; the padding of a row may be longer than any pair.
        longest = max(module.config.max_position_embeddings, TOKEN_STEP)
        found = aten._flash_attention_forward(
            *(query, key, value, query_offsets, offsets, longest, longest, dropout, False, False), scale=scaling
        )[0]
    elif query.is_cuda or dropout:
        found = _any_device(query, key, value, query_offsets, offsets, dropout, scaling)
    else:
        found = attention_on_cpu(query, key, value, query_offsets, offsets, scaling)
    return found[None], None


AttentionInterface.register(PACKED, packed_attention)


def _side_by_side(query_offsets: Tensor, offsets: Tensor) -> Iterator[tuple[slice, slice, int]]:
    """Queries and tokens of neighbouring pairs that have one number of each, and how many pairs they are."""
    shapes = zip(query_offsets.diff().tolist(), offsets.diff().tolist(), strict=True)
    query, token = 0, 0
    for (queries, tokens), neighbours in groupby(shapes):
        pairs = len(list(neighbours))
        yield slice(query, query + pairs * queries), slice(token, token + pairs * tokens), pairs
        query, token = query + pairs * queries, token + pairs * tokens


def _by_pair(states: Tensor, places: slice, pairs: int) -> Tensor:
    """(places, heads, width) as (pairs, heads, length, width), without a copy."""
    return states[places].unflatten(0, (pairs, -1)).transpose(1, 2)


def _any_device(
    query: Tensor, key: Tensor, value: Tensor, query_offsets: Tensor, offsets: Tensor, dropout: float, scale: float
) -> Tensor:
    found = []
    for queries, tokens, pairs in _side_by_side(query_offsets, offsets):
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
) -> Tensor:
    """One operation to torch.compile, whatever the lengths of the pairs; see buckets.py."""
    places = buckets(query_offsets, offsets, query.shape[1])
    q, k, v = places.queries.gather(query), places.keys.gather(key), places.keys.gather(value)
    out = torch.empty_like(q)
    for some in places.chunks:
        weights = _weights(some.queries(q), _centred(some.keys(k)), some.padding, scale)
        torch.bmm(weights, some.keys(v), out=some.queries(out))
    return places.queries.scatter(out)


@torch.library.custom_op("bert_pipeline::attention_on_cpu_backward", mutates_args=())
def attention_on_cpu_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value. The weights of attention are computed again: kept, they would take the
    memory that grows with the square of a length.
    """
    places = buckets(query_offsets, offsets, query.shape[1])
    q, k, v = places.queries.gather(query), places.keys.gather(key), places.keys.gather(value)
    grad = places.queries.gather(gradient, padding=0.0)
    of_q, of_k, of_v = (torch.empty_like(each) for each in (q, k, v))
    for some in places.chunks:
        key = _centred(some.keys(k))
        weights = _weights(some.queries(q), key, some.padding, scale)
        of_weights = torch.bmm(some.queries(grad), _centred(some.keys(v)).transpose(1, 2))
        of_scores = aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        _scaled_product(of_scores, key, scale, out=some.queries(of_q))
        _scaled_product(of_scores.transpose(1, 2), some.queries(q), scale, out=some.keys(of_k))
        torch.bmm(weights.transpose(1, 2), some.queries(grad), out=some.keys(of_v))
    return places.queries.scatter(of_q), places.keys.scatter(of_k), places.keys.scatter(of_v)


def _centred(states: Tensor) -> Tensor:
    """(pairs and heads, keys, width), less their mean over the keys. Softmax and its gradient are the same with any
    vector taken from all keys; what bfloat16 rounds off their products is then of what distinguishes the keys.
    """
    return states - states.mean(1, keepdim=True)


def _weights(query: Tensor, key: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    scores = _scaled_product(query, key.transpose(1, 2), scale)
    if padding is not None:
        scores[..., -STEP:].masked_fill_(padding, -torch.inf)
    return scores.softmax(-1)


def _scaled_product(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    nothing = left.new_empty(1, 1, 1)  # beta 0: it is not read
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale, out=out)


@attention_on_cpu.register_fake
def _(query, key, value, query_offsets, offsets, scale):
    return query.new_empty(query.shape)


@attention_on_cpu_backward.register_fake
def _(gradient, query, key, value, query_offsets, offsets, scale):
    return tuple(each.new_empty(each.shape) for each in (query, key, value))


def _keep_for_backward(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    gradients = attention_on_cpu_backward(gradient, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None


attention_on_cpu.register_autograd(_backward, setup_context=_keep_for_backward)


class LastLayer(BertLayer):
    """A last layer that computes at the places that the heads ask for, from the keys and values of all tokens.

    A stock layer where no places are given.
    """

    def forward(self, hidden_states: Tensor, *args: Any, places: Tensor | None = None, **kwargs: Any) -> Tensor:
        """(1, tokens, hidden) to (1, places, hidden); `places` (int64) are in the order of the pairs, `query_offsets`
        says which are whose.
        """
        if places is None:
            return super().forward(hidden_states, *args, **kwargs)
        attention, asked = self.attention.self, hidden_states.index_select(1, places)
        assert isinstance(attention, BertSelfAttention)
        query, key, value = (
            project(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for project, states in (
                (attention.query, asked),
                (attention.key, hidden_states),
                (attention.value, hidden_states),
            )
        )
        dropout = attention.dropout.p if self.training else 0.0
        found, _ = packed_attention(
            attention, query, key, value, None, scaling=attention.scaling, dropout=dropout, **kwargs
        )
        return self.feed_forward_chunk(self.attention.output(found.flatten(-2), asked))
