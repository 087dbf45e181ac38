"""How this machine computes a task model: on packed or padded rows, in bfloat16 or float32.

Neither is part of the recipe: packed and padded rows give the same loss and gradients, and bfloat16 rounds. The record
of each run names both.

Packed rows need an encoder with the modules of BertModel. Other families (DistilBERT, ModernBERT) run on padded rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import PretrainedConfig, PreTrainedModel

from bert_pipeline import settings
from bert_pipeline.core.processor import has_bf16_units
from bert_pipeline.evaluation.finetuning.batches import Rows, packed, padded, targets
from bert_pipeline.evaluation.finetuning.inputs import Input
from bert_pipeline.evaluation.finetuning.protocol import FIRST_POSITION_AFTER_PAD
from bert_pipeline.evaluation.finetuning.vocabulary import OccurringPieces
from bert_pipeline.evaluation.tasks.task import TAGGING, Kind, Task
from bert_pipeline.training.model.dropout import Dropout
from bert_pipeline.training.model.packed import compute_packed, packed_outputs

PACKABLE = {"bert", "camembert", "electra", "roberta", "xlm-roberta"}
"""Model types of transformers whose encoder has the modules of BertModel."""


class Computation(NamedTuple):
    precision: settings.Precision
    """Of matrix products; weights, losses and the optimizer stay float32."""
    rows: Rows


def usual_computation(config: PretrainedConfig, device: torch.device) -> Computation:
    """The computation of this machine for a model, which is not always the fastest: bfloat16 where the device has units
    for it, unless BERT_PIPELINE_FINETUNING_PRECISION sets the precision, and packed rows where the model allows them.
    """
    has_units = has_bf16_units(device)
    precision = settings.finetuning_precision() or ("bf16" if has_units else "float32")
    # A GPU packs with FlashAttention, which float32 does not have.
    packs = config.model_type in PACKABLE and (device.type == "cpu" or (precision == "bf16" and has_units))
    return Computation(precision, "packed" if packs else "padded")


class Head:
    """A model with the head of a kind of task (heads.py). Examples are fastest if sorted by length."""

    def __init__(self, model: PreTrainedModel, kind: Kind, pad_id: int, how: Computation) -> None:
        self.model, self.kind, self.pad_id, self.how = model, kind, pad_id, how
        config = model.config
        self.first_position = pad_id + 1 if config.model_type in FIRST_POSITION_AFTER_PAD else 0
        self.vocabulary: OccurringPieces | None = None
        """None: all pieces have their embedding."""
        if how.rows == "packed":
            compute_packed(model)
            for each in model.modules():
                if type(each) is nn.Dropout:
                    each.__class__ = Dropout

    def logits(self, examples: Sequence[Input]) -> Tensor:
        """(outputs, classes) float32, in the order of the examples. ner, pico: an output for each of `first_pieces`, of
        which every example has one; otherwise an output for each example.
        """
        with self.autocast():
            found = self._on_packed_rows(examples) if self.how.rows == "packed" else self._on_padded_rows(examples)
        return found.float()

    def autocast(self) -> torch.autocast:
        """Matrix products in the model's precision."""
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.how.precision == "bf16")

    def _on_packed_rows(self, examples: Sequence[Input]) -> Tensor:
        model: Any = self.model
        row = self._on_device(packed(examples, self.pad_id, self.first_position))
        if self.vocabulary:
            row["input_ids"] = self.vocabulary.rows(row["input_ids"])
        seed = torch.randint(2**62, ()) if model.training else None
        hidden = packed_outputs(model.base_model, **row, dropout_seed=seed)
        if self.kind in TAGGING:
            num_outputs = sum(len(each.first_pieces) for each in examples)
            return model.classifier(model.dropout(hidden[:num_outputs]))
        first = hidden[: len(examples), None]
        pooler = getattr(model.base_model, "pooler", None)
        return model.classifier(first) if pooler is None else model.classifier(model.dropout(pooler(first)))

    def _on_padded_rows(self, examples: Sequence[Input]) -> Tensor:
        logits = self.model(**self._on_device(padded(examples, self.pad_id))).logits
        if self.kind not in TAGGING:
            return logits
        rows = torch.arange(len(examples)).repeat_interleave(
            torch.tensor([len(each.first_pieces) for each in examples])
        )
        places = torch.cat([torch.from_numpy(each.first_pieces) for each in examples])
        return logits[rows.to(logits.device), places.to(logits.device)]

    def _on_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}


class TaskModel(Head):
    """A model with the head of a task, for training."""

    def __init__(self, model: PreTrainedModel, task: Task, pad_id: int, how: Computation) -> None:
        super().__init__(model, task.kind, pad_id, how)
        self.task = task

    def train_only_pieces_of(self, examples: Sequence[Input]) -> None:
        """Before the optimizer is built; see vocabulary.py. Until `restore_vocabulary` the model reads no other
        pieces.
        """
        self.vocabulary = OccurringPieces(self.model, examples, self.pad_id)

    def restore_vocabulary(self, learning_rates: Iterable[float], weight_decay: float) -> None:
        """Let the model read all pieces again. Its optimizer is of no more use."""
        if self.vocabulary:
            self.vocabulary.restore(learning_rates, weight_decay)
            self.vocabulary = None

    def loss(self, examples: Sequence[Input]) -> Tensor:
        """The mean over words (ner, pico), examples, or examples and classes (documents)."""
        logits, wanted = self.logits(examples), targets(examples).to(self.model.device)
        if self.kind == "similarity":
            return mse_loss(logits.squeeze(1), wanted)
        return (
            binary_cross_entropy_with_logits(logits, wanted)
            if self.kind == "documents"
            else cross_entropy(logits, wanted)
        )
