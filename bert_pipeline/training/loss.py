"""The loss of Devlin et al. 2019, section A.2: mean MLM cross-entropy plus mean NSP cross-entropy.

The means are over the whole step, all micro-batches and processes. A mean of micro-batch means would be
another number, because micro-batches hold different numbers of masked tokens. So the forward pass
returns sums, and the training loop divides by the step's counts.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertForPreTraining

from bert_pipeline.formats import IGNORE_INDEX


class LossSums(NamedTuple):
    """Sums over a micro-batch; scalars, of which only the losses carry gradients."""

    mlm_loss: torch.Tensor
    nsp_loss: torch.Tensor
    mlm_correct: torch.Tensor
    nsp_correct: torch.Tensor


class PretrainingLoss(nn.Module):
    """BertForPreTraining with its vocabulary projection computed on the masked positions alone."""

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,  # (rows, width) int64, as are the next two
        token_type_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_positions: torch.Tensor,  # (masked,) int64: places in the flattened (rows * width)
        masked_labels: torch.Tensor,  # (masked,) int64
        next_sentence_label: torch.Tensor,  # (rows,) int64; IGNORE_INDEX where not asked
    ) -> LossSums:
        encoded = self.model.bert(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask)
        hidden = encoded.last_hidden_state.flatten(0, 1).index_select(0, masked_positions)
        mlm_logits = self.model.cls.predictions(hidden).float()
        nsp_logits = self.model.cls.seq_relationship(encoded.pooler_output).float()
        return LossSums(
            cross_entropy(mlm_logits, masked_labels, reduction="sum"),
            cross_entropy(nsp_logits, next_sentence_label, ignore_index=IGNORE_INDEX, reduction="sum"),
            (mlm_logits.argmax(-1) == masked_labels).sum(),
            (nsp_logits.argmax(-1) == next_sentence_label).sum(),
        )
