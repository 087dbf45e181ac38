"""The encoder of a BERT on a packed row: the hidden states at the positions that its heads read, and nowhere else.

Works on every encoder of transformers that has the modules of BertModel: BERT, ELECTRA, RoBERTa and its relatives. The
model keeps its parameters and their names; only the way they are computed changes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pipeline.training.model.attention import PACKED, packed_attention


def compute_packed(model: PreTrainedModel) -> None:
    """Switch a model to packed attention, in place; `set_attn_implementation("sdpa")` switches it back."""
    model.set_attn_implementation(PACKED)
    embeddings: Any = model.base_model.embeddings
    for each in (embeddings.word_embeddings, embeddings.token_type_embeddings, embeddings.position_embeddings):
        each.__class__ = Embedding


def packed_outputs(
    encoder: Any,  # the base model, such as BertModel
    input_ids: Tensor,  # (1, tokens) int64, like the next two
    token_type_ids: Tensor,
    position_ids: Tensor,
    offsets: Tensor,  # (pairs + 1,) int32: pair n is tokens offsets[n] to offsets[n + 1]
    output_positions: Tensor,  # (outputs,) int64: tokens, ordered by pair
    output_offsets: Tensor,  # (pairs + 1,) int32: pair n is outputs output_offsets[n] to output_offsets[n + 1]
    dropout_seed: Tensor | None = None,  # see packed_attention
) -> Tensor:
    """(outputs, hidden). Each pair has at least one output."""
    *layers, last = encoder.encoder.layer
    hidden = encoder.embeddings(input_ids, token_type_ids, position_ids)
    if hasattr(encoder, "embeddings_project"):  # ELECTRA, if its embeddings are narrower
        hidden = encoder.embeddings_project(hidden)
    for layer in layers:
        hidden = layer(hidden, offsets=offsets, dropout_seed=dropout_seed)
    found = _last_layer(
        last, hidden, output_positions, offsets=offsets, query_offsets=output_offsets, dropout_seed=dropout_seed
    )
    return found.squeeze(0)


def _last_layer(layer: Any, hidden: Tensor, positions: Tensor, **packing: Any) -> Tensor:
    """(1, tokens, hidden) to (1, positions, hidden): outputs at `positions`, from keys and values of all tokens."""
    attention, queries = layer.attention.self, hidden.index_select(1, positions)
    query, key, value = (
        project(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
        for project, states in (
            (attention.query, queries),
            (attention.key, hidden),
            (attention.value, hidden),
        )
    )
    dropout = attention.dropout.p if attention.training else 0.0
    found, _ = packed_attention(
        attention, query, key, value, None, scaling=attention.scaling, dropout=dropout, **packing
    )
    return layer.feed_forward_chunk(layer.attention.output(found.flatten(-2), queries))


class Embedding(nn.Embedding):
    """A stock embedding whose gradient is summed in the order of the tokens on CPUs.

    torch.compile would generate atomic additions from several threads, which are slow and not deterministic.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _Lookup.apply(self.weight, input) if self.weight.is_cpu else super().forward(input)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.num_rows = len(weight)
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        [ids] = ctx.saved_tensors
        return sum_by_row(gradient.flatten(0, -2), ids.flatten(), ctx.num_rows), None


@torch.library.custom_op("bert_pipeline::sum_by_row", mutates_args=())
def sum_by_row(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """(n, width) values and (n,) row numbers to (num_rows, width): the sum of the values of each row."""
    return values.new_zeros(num_rows, values.shape[-1]).index_add_(0, rows, values)


@sum_by_row.register_fake
def _(values, rows, num_rows):
    return values.new_empty(num_rows, values.shape[-1])
