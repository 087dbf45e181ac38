"""Batches for fine-tuning and prediction: examples of similar length, padded to the longest in the batch."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bert_pipeline.evaluation.finetuning.inputs import Input
from bert_pipeline.formats.pairs import IGNORE_INDEX

BATCHES_SORTED_TOGETHER = 50
"""Examples are sorted by length within this many batches: little padding, but still random batches."""


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
    yield batch


def padded(examples: Sequence[Input], pad_id: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the model's inputs, int64 tensors of shape (examples, longest), and the labels.

    Labels have shape (examples, longest) for ner and pico, otherwise (examples,) or (examples, classes).
    """
    shape = (len(examples), max(len(each.input_ids) for each in examples))
    ids, mask, types = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    word_labels = np.full(shape, IGNORE_INDEX)
    for row, each in enumerate(examples):
        length = len(each.input_ids)
        ids[row, :length], mask[row, :length], types[row, each.second : length] = each.input_ids, 1, 1
        if each.num_words:
            word_labels[row, :length] = each.target
    labels = word_labels if examples[0].num_words else np.stack([each.target for each in examples])
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, torch.from_numpy(labels)
