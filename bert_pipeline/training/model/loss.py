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
from bert_pipeline.training.model.packed import compute_packed, packed_outputs


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
        compute_packed(model)
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
        hidden = packed_outputs(
            bert, input_ids, token_type_ids, position_ids, offsets, output_positions, output_offsets
        )
        mlm_logits = heads.predictions(hidden.index_select(0, masked))
        first = hidden.index_select(0, output_offsets[:-1])  # [CLS] of each pair
        nsp_logits = heads.seq_relationship(bert.pooler(first[:, None])).float()
        mlm_loss, mlm_correct = sum_of_cross_entropy(mlm_logits, masked_labels)
        nsp_loss = cross_entropy(nsp_logits, next_sentence_label, ignore_index=IGNORE_INDEX, reduction="sum")
        nsp_correct = (nsp_logits.argmax(-1) == next_sentence_label).sum()
        return LossSums(mlm_loss, nsp_loss, mlm_correct, nsp_correct)


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
