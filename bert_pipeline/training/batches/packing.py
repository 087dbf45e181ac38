"""Packing: a micro-batch is one row of concatenated pairs, with padding only at its end.

Each pair attends only to itself and its position ids restart at 0, so the results equal those of a batch with one row
per pair (Krell et al. 2021, arXiv 2107.02027, section 3.3). Everything except attention runs on the row of tokens and
ignores the boundaries of pairs.
"""

import numpy as np
import torch
from numba import njit
from torch.nn.functional import pad as constant_pad

from bert_pipeline.formats.pairs import IGNORE_INDEX
from bert_pipeline.formats.tokenizer import PAD_ID
from bert_pipeline.training.batches.dataset import Rows

TOKEN_STEP, OUTPUT_STEP = 64, 32
"""Rows are padded to a multiple of TOKEN_STEP tokens and of OUTPUT_STEP output positions. oneDNN compiles its kernels,
about 35 a step, for each size that is not in its cache; larger multiples cost more than they save."""


def micro_batches(rows: Rows, tokens: int) -> list[Rows]:
    """Split rows into as few parts as possible with at most `tokens` tokens each; the parts are about equal.

    A longer row is a part by itself. Each part is sorted by length, which attention is fastest on.
    """
    lengths = rows.lengths
    order = np.argsort(-lengths, kind="stable")
    count = -(-rows.num_tokens // tokens)
    while True:
        parts = [order[first::count] for first in range(count)]
        if count >= len(order) or max(int(lengths[part].sum()) for part in parts) <= tokens:
            return [rows.take(part) for part in parts if len(part)]
        count += 1


def pack(rows: Rows) -> dict[str, torch.Tensor]:
    """Concatenate the rows into one; return the arguments of PretrainingLoss.forward."""
    tokens = np.empty((3, 1, rows.num_tokens), np.int64)
    outputs = np.empty(len(rows) + rows.num_masked, np.int64)
    masked = np.empty((2, rows.num_masked), np.int64)
    _fill(
        rows.input_ids,
        rows.offsets,
        rows.segment_a_length,
        rows.masked_positions,
        rows.masked_input_ids,
        rows.mask_offsets,
        tokens[:, 0],
        outputs,
        masked,
    )
    input_ids, token_type_ids, position_ids = torch.from_numpy(tokens)
    places, labels = torch.from_numpy(masked)
    output_offsets = rows.mask_offsets + np.arange(len(rows) + 1)
    return {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "offsets": torch.from_numpy(rows.offsets.astype(np.int32)),
        "output_positions": torch.from_numpy(outputs),
        "output_offsets": torch.from_numpy(output_offsets.astype(np.int32)),
        "masked": places,
        "masked_labels": labels,
        "next_sentence_label": torch.from_numpy(rows.next_sentence_label.astype(np.int64)),
    }


def fill_up(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Append a padding pair without labels, so that the row has one of few shapes; see TOKEN_STEP."""
    tokens, outputs, masked = packed["input_ids"].shape[1], len(packed["output_positions"]), len(packed["masked"])
    padding = TOKEN_STEP - tokens % TOKEN_STEP
    output_padding = OUTPUT_STEP - outputs % OUTPUT_STEP  # at least 1: each pair has an output at its first token
    masked_padding = -masked % OUTPUT_STEP
    more = {
        "input_ids": (padding, PAD_ID),
        "token_type_ids": (padding, 0),
        "position_ids": (padding, 0),
        "offsets": (1, tokens + padding),
        "output_positions": (output_padding, tokens),
        "output_offsets": (1, outputs + output_padding),
        "masked": (masked_padding, outputs),
        "masked_labels": (masked_padding, IGNORE_INDEX),
        "next_sentence_label": (1, IGNORE_INDEX),
    }
    return {name: constant_pad(packed[name], (0, count), value=value) for name, (count, value) in more.items()}


def pad(rows: Rows) -> dict[str, torch.Tensor]:
    """The rows as a stock BertForPreTraining takes them: (rows, longest) int64, with label -100 at tokens that are not
    masked.
    """
    packed = pack(rows)
    present = torch.arange(int(rows.lengths.max())) < torch.from_numpy(rows.lengths)[:, None]
    batch = {"attention_mask": present.long(), "next_sentence_label": packed["next_sentence_label"]}
    labels = torch.full((rows.num_tokens,), IGNORE_INDEX)
    labels[packed["output_positions"][packed["masked"]]] = packed["masked_labels"]
    columns = {
        "input_ids": (packed["input_ids"][0], PAD_ID),
        "token_type_ids": (packed["token_type_ids"][0], 0),
        "labels": (labels, IGNORE_INDEX),
    }
    for name, (values, filling) in columns.items():
        batch[name] = torch.full(present.shape, filling).masked_scatter(present, values)
    return batch


@njit(cache=True, nogil=True)
def _fill(
    input_ids,
    offsets,
    segment_a_length,
    positions,
    replacements,
    mask_offsets,
    tokens,  # (3, tokens), written: input_ids, token_type_ids, position_ids
    outputs,  # (pairs + masked tokens,), written: positions in the row of tokens
    masked,  # (2, masked tokens), written: positions in `outputs`; labels
):
    tokens[0] = input_ids
    for n in range(len(segment_a_length)):
        start, end = offsets[n], offsets[n + 1]
        segment_b = min(start + segment_a_length[n] + 2, end)  # after [CLS] A [SEP]
        tokens[1, start:segment_b] = 0
        tokens[1, segment_b:end] = 1
        tokens[2, start:end] = np.arange(end - start)
        outputs[mask_offsets[n] + n] = start
        for k in range(mask_offsets[n], mask_offsets[n + 1]):
            place = start + positions[k]
            outputs[k + n + 1] = place
            masked[0, k] = k + n + 1
            masked[1, k] = input_ids[place]
            tokens[0, place] = replacements[k]
