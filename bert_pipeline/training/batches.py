"""Which pairs a step trains on, and how they become tensors.

Sample k of a run is a function of (seed, k) alone: the samples of an epoch are the rows of one pass, in
an order that can be entered anywhere. So batch n is samples n * B to (n + 1) * B, on any number of
processes, and a resumed run is where it was without reading anything twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from bert_pipeline import artifact, formats
from bert_pipeline.data.masking import Masker
from bert_pipeline.formats import PAD_ID, MaskShard, PairShard
from bert_pipeline.randomness import permuted
from bert_pipeline.recipe import MaskingRecipe


@dataclass(frozen=True)
class Rows:
    """Pairs with their masks, before padding: lists of equal length."""

    input_ids: list[np.ndarray]  # the originals
    segment_a_length: list[int]
    next_sentence_label: list[int]
    masked_positions: list[np.ndarray]
    masked_input_ids: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_masked(self) -> int:
        return sum(len(positions) for positions in self.masked_positions)

    @property
    def num_tokens(self) -> int:
        return sum(len(row) for row in self.input_ids)

    def take(self, places: np.ndarray) -> "Rows":
        return Rows(*([column[n] for n in places.tolist()] for column in vars(self).values()))


class PairDataset:
    """The rows of one split at one sequence length, over all passes and, by drawing masks anew, all epochs."""

    def __init__(
        self, nsp_dataset: Path, masked_dataset: Path, tokenizer: Path, max_seq_length: int, split: str
    ) -> None:
        self.max_seq_length, self.split = max_seq_length, split
        section = artifact.load(masked_dataset, "masked_dataset").record["origin"]["section"]
        vocabulary = formats.read_tokenizer(tokenizer)
        self.masker = Masker(MaskingRecipe(**section), formats.continuation_pieces(vocabulary))
        self.pairs: list[list[PairShard]] = []  # by pass, by shard
        self.masks: list[list[MaskShard]] = []
        for number in range(formats.num_passes(nsp_dataset, max_seq_length, split)):
            folder = formats.pass_directory(nsp_dataset, max_seq_length, split, number)
            paths = formats.shard_paths(folder, "arrow")
            self.pairs.append([PairShard.read(path) for path in paths])
            self.masks.append([MaskShard.read(masked_dataset / path.relative_to(nsp_dataset)) for path in paths])
        if not self.pairs:
            raise FileNotFoundError(
                f"{nsp_dataset} holds no rows of {max_seq_length} tokens for {split}; remedy: build it with this recipe"
            )
        self._ends = [np.cumsum([len(shard) for shard in shards]) for shards in self.pairs]

    def num_rows(self, epoch: int) -> int:
        return int(self._ends[epoch % len(self.pairs)][-1])

    def rows(self, epoch: int, indices: np.ndarray) -> Rows:
        """Rows of pass `epoch` modulo the number of passes, under the masks of `epoch`."""
        number = epoch % len(self.pairs)
        shards = np.searchsorted(self._ends[number], indices, side="right")
        starts = np.concatenate([[0], self._ends[number]])
        places = indices - starts[shards]
        where = list(zip(shards.tolist(), places.tolist(), strict=True))
        pairs = self.pairs[number]
        input_ids = [pairs[s].input_ids[pairs[s].offsets[r] : pairs[s].offsets[r + 1]] for s, r in where]
        if epoch < len(self.masks):
            masks = self.masks[epoch]
            spans = [(masks[s], masks[s].offsets[r], masks[s].offsets[r + 1]) for s, r in where]
        else:
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in input_ids])])
            drawn = self.masker.mask(
                np.concatenate(input_ids),
                offsets,
                shards,
                places,
                pass_number=epoch,
                split=self.split,
                max_seq_length=self.max_seq_length,
            )
            spans = [(drawn, drawn.offsets[n], drawn.offsets[n + 1]) for n in range(len(where))]
        return Rows(
            input_ids,
            [int(pairs[s].segment_a_length[r]) for s, r in where],
            [int(pairs[s].next_sentence_label[r]) for s, r in where],
            [mask.positions[i:j] for mask, i, j in spans],
            [mask.input_ids[i:j] for mask, i, j in spans],
        )

    def samples(self, first: int, count: int, seed: int) -> Rows:
        """Samples first to first + count of the endless sequence of shuffled epochs."""
        cycle = sum(self.num_rows(number) for number in range(len(self.pairs)))
        epoch, skipped = first // cycle * len(self.pairs), first % cycle
        while skipped >= self.num_rows(epoch):
            skipped -= self.num_rows(epoch)
            epoch += 1
        found: list[Rows] = []
        while count:
            size = self.num_rows(epoch)
            positions = np.arange(skipped, min(skipped + count, size))
            found.append(self.rows(epoch, permuted(positions, size, seed, epoch)))
            count -= len(positions)
            epoch, skipped = epoch + 1, 0
        if len(found) == 1:
            return found[0]
        return Rows(
            *(list(chain.from_iterable(columns)) for columns in zip(*(vars(r).values() for r in found), strict=True))
        )


def micro_batches(rows: Rows, tokens: int) -> Iterator[Rows]:
    """Cut rows, sorted by length, so that each part padded to its longest row has at most `tokens` places."""
    lengths = np.array([len(row) for row in rows.input_ids])
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        width = max(1, tokens // int(lengths[order[0]]))
        yield rows.take(order[:width])
        order = order[width:]


def to_tensors(rows: Rows) -> dict[str, torch.Tensor]:
    """What PretrainingLoss.forward takes, padded to the longest row."""
    width = max(len(row) for row in rows.input_ids)
    input_ids = np.full((len(rows), width), PAD_ID, np.int64)
    token_types = np.zeros_like(input_ids)
    attention = np.zeros_like(input_ids)
    labels, flat_positions = [], []
    for n, original in enumerate(rows.input_ids):
        input_ids[n, : len(original)] = original
        token_types[n, : len(original)] = formats.token_type_ids(len(original), rows.segment_a_length[n])
        attention[n, : len(original)] = 1
        places = rows.masked_positions[n].astype(np.int64)
        labels.append(original[places].astype(np.int64))
        flat_positions.append(places + n * width)
        input_ids[n, places] = rows.masked_input_ids[n]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "token_type_ids": torch.from_numpy(token_types),
        "attention_mask": torch.from_numpy(attention),
        "masked_positions": torch.from_numpy(np.concatenate(flat_positions)),
        "masked_labels": torch.from_numpy(np.concatenate(labels)),
        "next_sentence_label": torch.tensor(rows.next_sentence_label),
    }
