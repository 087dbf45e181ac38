"""Training of the word embeddings that occur in the training set, without the rest of the vocabulary.

A piece that does not occur has no gradient, and AdamW only decays its embedding. Some thousand sentences use a third to
a half of a vocabulary; the gradients and moments of the rest would be zeros that every step reads and writes.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bert_pipeline.evaluation.finetuning.inputs import Input


class OccurringPieces:
    """While it is in use, the word embeddings of a model have a row for each piece of some examples, and no others."""

    def __init__(self, model: PreTrainedModel, examples: Sequence[Input], pad_id: int) -> None:
        self.embedding = cast(nn.Embedding, model.get_input_embeddings())
        self.all: Tensor = self.embedding.weight.data
        pieces = np.unique(np.concatenate([[pad_id], *(each.input_ids for each in examples)]))
        self.pieces = torch.from_numpy(pieces).to(self.all.device)
        none = len(pieces)  # an error as a row, where -1 would be the last one
        self.row = torch.full((len(self.all),), none, device=self.all.device)
        self.row[self.pieces] = torch.arange(len(pieces), device=self.all.device)
        self.embedding.weight = nn.Parameter(self.all[self.pieces])
        # A piece, not a row. Padding needs no exception: no output reads it, so it has no gradient.
        self.padding_idx, self.embedding.padding_idx = self.embedding.padding_idx, None

    def rows(self, input_ids: Tensor) -> Tensor:
        """The rows of pieces of the examples."""
        return self.row[input_ids]

    def restore(self, learning_rates: Iterable[float], weight_decay: float) -> None:
        """Put the trained rows back into the whole vocabulary, whose other rows AdamW would have decayed: at each step
        by 1 - learning rate * weight decay (Loshchilov and Hutter 2019, algorithm 2).
        """
        self.all *= float(np.prod([1 - rate * weight_decay for rate in learning_rates]))
        self.all[self.pieces] = self.embedding.weight.data
        self.embedding.weight = nn.Parameter(self.all)
        self.embedding.padding_idx = self.padding_idx
