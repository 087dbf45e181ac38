"""The loss of Devlin et al. 2019, section A.2: mean MLM cross-entropy plus mean NSP cross-entropy.

The means are over the whole step: all micro-batches and all processes. A mean of micro-batch means would differ,
because micro-batches have different numbers of masked tokens. So the forward pass returns sums, and the training loop
divides by the counts of the step.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertForPreTraining

from bert_pipeline.formats.pairs import IGNORE_INDEX
from bert_pipeline.training.model.attention import PACKED, LastLayer


class LossSums(NamedTuple):
    """Sums over a micro-batch: scalars. Only the losses carry gradients."""

    mlm_loss: Tensor
    nsp_loss: Tensor
    mlm_correct: Tensor
    nsp_correct: Tensor


class PretrainingLoss(nn.Module):
    """The loss of BertForPreTraining on packed pairs. The last layer is computed only at [CLS] and at masked tokens,
    the logits over the vocabulary only at masked tokens.

    Switches the model to packed attention; `set_attn_implementation("sdpa")` switches it back.
    """

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        model.set_attn_implementation(PACKED)
        model.bert.encoder.layer[-1].__class__ = LastLayer
        embeddings = model.bert.embeddings
        for each in (embeddings.word_embeddings, embeddings.token_type_embeddings, embeddings.position_embeddings):
            each.__class__ = Embedding
        self.model = model

    def forward(
        self,
        input_ids: Tensor,  # (1, tokens) int64, like the next two
        token_type_ids: Tensor,
        position_ids: Tensor,
        offsets: Tensor,  # (pairs + 1,) int32: pair n is tokens offsets[n] to offsets[n + 1]
        output_positions: Tensor,  # (pairs + masked,) int64: tokens; for each pair [CLS], then its masked tokens
        output_offsets: Tensor,  # (pairs + 1,) int32: pair n is outputs output_offsets[n] to output_offsets[n + 1]
        masked: Tensor,  # (masked,) int64: which outputs are masked tokens
        masked_labels: Tensor,  # (masked,) int64; IGNORE_INDEX: no label
        next_sentence_label: Tensor,  # (pairs,) int64; IGNORE_INDEX: no label
    ) -> LossSums:
        bert, heads = self.model.bert, self.model.cls
        assert bert.pooler is not None  # for mypy: BertForPreTraining has one
        *layers, last = bert.encoder.layer
        hidden = bert.embeddings(input_ids, token_type_ids, position_ids)
        for layer in layers:
            hidden = layer(hidden, offsets=offsets)
        [hidden] = last(hidden, offsets=offsets, positions=output_positions, query_offsets=output_offsets)
        mlm_logits = heads.predictions(hidden.index_select(0, masked))
        first = hidden.index_select(0, output_offsets[:-1])  # [CLS] of each pair
        nsp_logits = heads.seq_relationship(bert.pooler(first[:, None])).float()
        mlm_loss, mlm_correct = sum_of_cross_entropy(mlm_logits, masked_labels)
        nsp_loss = cross_entropy(nsp_logits, next_sentence_label, ignore_index=IGNORE_INDEX, reduction="sum")
        nsp_correct = (nsp_logits.argmax(-1) == next_sentence_label).sum()
        return LossSums(mlm_loss, nsp_loss, mlm_correct, nsp_correct)


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


class _SumOfCrossEntropy(torch.autograd.Function):
    """cross_entropy(logits.float(), labels, reduction="sum"), and the number of labels with the highest logit.

    The logits over a vocabulary are the largest tensor of a step, so nothing else of their size is saved for backward.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        has_label = labels != IGNORE_INDEX
        total = logits.float().logsumexp(-1)
        found = logits.gather(-1, labels.clamp_min(0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, labels, total)
        correct = (logits.argmax(-1) == labels).sum()
        ctx.mark_non_differentiable(correct)
        return ((total - found) * has_label).sum(), correct

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, labels, total = ctx.saved_tensors
        target = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
        probabilities = (logits.float() - total[:, None]).exp_()
        scale = gradient * (labels != IGNORE_INDEX)[:, None]
        return probabilities.sub_(target.float()).mul_(scale).to(logits.dtype), None


sum_of_cross_entropy = _SumOfCrossEntropy.apply
