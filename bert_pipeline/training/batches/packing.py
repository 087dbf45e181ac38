"""Pairs packed into rows of tokens: but for a few at the end of a row, no place is padding.

A micro-batch is one row that holds its pairs one after the other. Each pair attends to itself alone and its positions
restart at 0, so the numbers are those of a batch with a row for each pair (Krell et al. 2021, arXiv 2107.02027,
section 3.3), and everything but attention is computed on tokens, whatever pair they belong to.
"""

import numpy as np
import torch
from numba import njit
from torch.nn.functional import pad as constant_pad

from bert_pipeline.formats.pairs import IGNORE_INDEX
from bert_pipeline.formats.tokenizer import PAD_ID
from bert_pipeline.training.batches.dataset import Rows

TOKEN_STEP, ASKED_STEP = 64, 32
"""Rows are filled up to multiples of so many tokens, and of so many places that the heads ask for. For each number
that it has not seen of late oneDNN compiles its kernels, some 35 a step; larger multiples cost more than that."""


def micro_batches(rows: Rows, tokens: int) -> list[Rows]:
    """Deal rows, longest first, to as few parts as hold at most `tokens` tokens each; the parts are about equal.

    A row that is longer is a part by itself. Each part is in the order of length, as attention likes it.
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
    """What PretrainingLoss.forward takes: all rows in one."""
    tokens = np.empty((3, 1, rows.num_tokens), np.int64)
    asked = np.empty(len(rows) + rows.num_masked, np.int64)
    masked = np.empty((2, rows.num_masked), np.int64)
    _fill(
        rows.input_ids,
        rows.offsets,
        rows.segment_a_length,
        rows.masked_positions,
        rows.masked_input_ids,
        rows.mask_offsets,
        tokens[:, 0],
        asked,
        masked,
    )
    input_ids, token_type_ids, position_ids = torch.from_numpy(tokens)
    places, labels = torch.from_numpy(masked)
    asked_offsets = rows.mask_offsets + np.arange(len(rows) + 1)
    return {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "offsets": torch.from_numpy(rows.offsets.astype(np.int32)),
        "asked": torch.from_numpy(asked),
        "asked_offsets": torch.from_numpy(asked_offsets.astype(np.int32)),
        "masked": places,
        "masked_labels": labels,
        "next_sentence_label": torch.from_numpy(rows.next_sentence_label.astype(np.int64)),
    }


def fill_up(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same in one of few shapes: a pair of padding at the end, of which nothing has a label, fills the row."""
    tokens, asked, masked = packed["input_ids"].shape[1], len(packed["asked"]), len(packed["masked"])
    padding = TOKEN_STEP - tokens % TOKEN_STEP
    asking = ASKED_STEP - asked % ASKED_STEP  # at least the padding's first token: each pair asks for its own
    masking = -masked % ASKED_STEP
    more = {
        "input_ids": (padding, PAD_ID),
        "token_type_ids": (padding, 0),
        "position_ids": (padding, 0),
        "offsets": (1, tokens + padding),
        "asked": (asking, tokens),
        "asked_offsets": (1, asked + asking),
        "masked": (masking, asked),
        "masked_labels": (masking, IGNORE_INDEX),
        "next_sentence_label": (1, IGNORE_INDEX),
    }
    return {name: constant_pad(packed[name], (0, count), value=value) for name, (count, value) in more.items()}


def pad(rows: Rows) -> dict[str, torch.Tensor]:
    """The same rows as a stock BertForPreTraining takes them: (rows, longest) int64, labels of -100 where no token is
    asked for.
    """
    packed = pack(rows)
    present = torch.arange(int(rows.lengths.max())) < torch.from_numpy(rows.lengths)[:, None]
    batch = {"attention_mask": present.long(), "next_sentence_label": packed["next_sentence_label"]}
    labels = torch.full((rows.num_tokens,), IGNORE_INDEX)
    labels[packed["asked"][packed["masked"]]] = packed["masked_labels"]
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
    tokens,  # (3, tokens) to be filled: input_ids, token_type_ids, position_ids
    asked,  # (pairs + masked tokens,) to be filled: places among the tokens
    masked,  # (2, masked tokens) to be filled: places in `asked`, labels
):
    tokens[0] = input_ids
    for n in range(len(segment_a_length)):
        start, end = offsets[n], offsets[n + 1]
        segment_b = min(start + segment_a_length[n] + 2, end)  # after [CLS] A [SEP]
        tokens[1, start:segment_b] = 0
        tokens[1, segment_b:end] = 1
        tokens[2, start:end] = np.arange(end - start)
        asked[mask_offsets[n] + n] = start
        for k in range(mask_offsets[n], mask_offsets[n + 1]):
            place = start + positions[k]
            asked[k + n + 1] = place
            masked[0, k] = k + n + 1
            masked[1, k] = input_ids[place]
            tokens[0, place] = replacements[k]
