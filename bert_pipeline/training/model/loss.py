"""The loss of Devlin et al. 2019, section A.2: mean MLM cross-entropy plus mean NSP cross-entropy.

The means are over the whole step, all micro-batches and processes. A mean of micro-batch means would be
another number, because micro-batches hold different numbers of masked tokens. So the forward pass
returns sums, and the training loop divides by the step's counts.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertForPreTraining

from bert_pipeline.formats.pairs import IGNORE_INDEX
from bert_pipeline.training.model.attention import PACKED, LastLayer


class LossSums(NamedTuple):
    """Sums over a micro-batch; scalars, of which only the losses carry gradients."""

    mlm_loss: Tensor
    nsp_loss: Tensor
    mlm_correct: Tensor
    nsp_correct: Tensor


class PretrainingLoss(nn.Module):
    """BertForPreTraining on packed pairs. Only what the heads ask for is computed: the last layer at masked tokens and
    at [CLS], the vocabulary at masked tokens.

    The model computes attention within pairs from now on; `set_attn_implementation("sdpa")` gives it back.
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
        input_ids: Tensor,  # (1, tokens) int64, as are the next two
        token_type_ids: Tensor,
        position_ids: Tensor,
        offsets: Tensor,  # (pairs + 1,) int32: pair n is tokens offsets[n] to offsets[n + 1]
        asked: Tensor,  # (pairs + masked,) int64: places among the tokens, of each pair [CLS] and then the masked ones
        asked_offsets: Tensor,  # (pairs + 1,) int32: those of pair n are asked_offsets[n] to asked_offsets[n + 1]
        masked: Tensor,  # (masked,) int64: places of the masked tokens in `asked`
        masked_labels: Tensor,  # (masked,) int64; IGNORE_INDEX where none is asked for
        next_sentence_label: Tensor,  # (pairs,) int64; IGNORE_INDEX where not asked
    ) -> LossSums:
        bert, heads = self.model.bert, self.model.cls
        assert bert.pooler is not None  # BertForPreTraining has one
        *layers, last = bert.encoder.layer
        hidden = bert.embeddings(input_ids, token_type_ids, position_ids)
        for layer in layers:
            hidden = layer(hidden, offsets=offsets)
        [hidden] = last(hidden, offsets=offsets, places=asked, query_offsets=asked_offsets)
        mlm_logits = heads.predictions(hidden.index_select(0, masked))
        first = hidden.index_select(0, asked_offsets[:-1])  # the [CLS] of each pair
        nsp_logits = heads.seq_relationship(bert.pooler(first[:, None])).float()
        mlm_loss, mlm_correct = sum_of_cross_entropy(mlm_logits, masked_labels)
        nsp_loss = cross_entropy(nsp_logits, next_sentence_label, ignore_index=IGNORE_INDEX, reduction="sum")
        nsp_correct = (nsp_logits.argmax(-1) == next_sentence_label).sum()
        return LossSums(mlm_loss, nsp_loss, mlm_correct, nsp_correct)


class Embedding(nn.Embedding):
    """A stock embedding; on CPUs its gradient is summed in the order of the tokens.

    torch.compile would have the threads add to one another's rows, element by element: that takes its time, and no two
    runs are equal.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _Lookup.apply(self.weight, input) if self.weight.is_cpu else super().forward(input)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_rows = len(weight)
        return weight[places]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        [places] = ctx.saved_tensors
        return sum_by_row(gradient.flatten(0, -2), places.flatten(), ctx.num_rows), None


@torch.library.custom_op("bert_pipeline::sum_by_row", mutates_args=())
def sum_by_row(values: Tensor, places: Tensor, num_rows: int) -> Tensor:
    """(num_rows, width): at each place the sum of those (width,) values that belong there."""
    return values.new_zeros(num_rows, values.shape[-1]).index_add_(0, places, values)


@sum_by_row.register_fake
def _(values, places, num_rows):
    return values.new_empty(num_rows, values.shape[-1])


class _SumOfCrossEntropy(torch.autograd.Function):
    """cross_entropy(logits.float(), labels, reduction="sum") and how many labels have the highest logit.

    Over a vocabulary the logits are the largest tensor of a step: nothing else of their size is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        asked = labels != IGNORE_INDEX
        total = logits.float().logsumexp(-1)
        found = logits.gather(-1, labels.clamp_min(0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, labels, total)
        correct = (logits.argmax(-1) == labels).sum()
        ctx.mark_non_differentiable(correct)
        return ((total - found) * asked).sum(), correct

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, labels, total = ctx.saved_tensors
        target = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
        probabilities = (logits.float() - total[:, None]).exp_()
        asked = gradient * (labels != IGNORE_INDEX)[:, None]
        return probabilities.sub_(target.float()).mul_(asked).to(logits.dtype), None


sum_of_cross_entropy = _SumOfCrossEntropy.apply
