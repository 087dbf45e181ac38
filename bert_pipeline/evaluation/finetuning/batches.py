"""Batches for fine-tuning and prediction: examples of similar length, packed into one row or padded to the longest.

A packed row is that of pretraining (training/batches/packing.py): each example attends only to itself and has its own
positions, and the last layer is computed only where the head reads.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from bert_pipeline.evaluation.finetuning.inputs import Input
from bert_pipeline.training.batches.packing import OUTPUT_STEP, TOKEN_STEP

Rows = Literal["packed", "padded"]

BATCHES_SORTED_TOGETHER = 50
"""Examples are sorted by length within this many batches: little padding and few shapes for attention, but still
random batches. Packed and padded rows have the same batches."""


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the indices of each batch of an epoch: every example once. Depends only on the arguments."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    pool = BATCHES_SORTED_TOGETHER * batch_size
    for start in range(0, len(order), pool):
        together = order[start : start + pool]
        together = together[np.argsort(np.asarray(lengths)[together], kind="stable")]
        batches += [together[first : first + batch_size] for first in range(0, len(together), batch_size)]
    return [batches[n] for n in rng.permutation(len(batches))]


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield the indices of each batch, shortest examples first: at most `tokens` after padding, or a single example."""
    batch: list[int] = []
    for n in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[n] > tokens:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def packed(examples: Sequence[Input], pad_id: int, first_position: int = 0) -> dict[str, torch.Tensor]:
    """Return the arguments of `packed_outputs`: the examples, and a padding example so that few shapes occur.

    The outputs are the first pieces of ner and pico, otherwise the first piece of each example; those of the padding
    are the last. `first_position`: position of the first piece; RoBERTa's is not 0.
    """
    outputs = [each.first_pieces if each.num_words else FIRST_PIECE for each in examples]
    num_tokens, num_outputs = sum(len(each.input_ids) for each in examples), sum(map(len, outputs))
    padding = np.full(TOKEN_STEP - num_tokens % TOKEN_STEP, pad_id)
    ids = [each.input_ids for each in examples] + [padding]
    outputs = [*outputs, np.repeat(FIRST_PIECE, OUTPUT_STEP - num_outputs % OUTPUT_STEP)]
    second = [each.second for each in examples] + [len(padding)]

    lengths, counts = np.array(list(map(len, ids))), np.array(list(map(len, outputs)))
    offsets, output_offsets = (np.concatenate(([0], np.cumsum(each))) for each in (lengths, counts))
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    types = positions >= np.repeat(second, lengths)
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids)[None]),
        "token_type_ids": torch.from_numpy(types.astype(np.int64)[None]),
        "position_ids": torch.from_numpy(positions[None] + first_position),
        "offsets": torch.from_numpy(offsets.astype(np.int32)),
        "output_positions": torch.from_numpy(np.concatenate(outputs) + np.repeat(offsets[:-1], counts)),
        "output_offsets": torch.from_numpy(output_offsets.astype(np.int32)),
    }


FIRST_PIECE = np.zeros(1, dtype=np.int64)


def padded(examples: Sequence[Input], pad_id: int) -> dict[str, torch.Tensor]:
    """Return the arguments of a model of transformers: int64 tensors of shape (examples, longest)."""
    shape = (len(examples), max(len(each.input_ids) for each in examples))
    ids, mask, types = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, each in enumerate(examples):
        length = len(each.input_ids)
        ids[row, :length], mask[row, :length], types[row, each.second : length] = each.input_ids, 1, 1
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def targets(examples: Sequence[Input]) -> torch.Tensor:
    """Return what the head is to say at each output: (outputs,) int64 for classes, (examples,) or (examples, classes)
    float32 otherwise.
    """
    if examples[0].num_words:
        return torch.from_numpy(np.concatenate([each.target[each.first_pieces] for each in examples]))
    return torch.from_numpy(np.stack([each.target for each in examples]))
