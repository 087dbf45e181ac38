"""Which pairs a step trains on, and how they become tensors.

Sample k of a run is a function of (seed, k) alone: the samples of an epoch are the rows of one pass, in
an order that can be entered anywhere. So batch n is samples n * B to (n + 1) * B, on any number of
processes, and a resumed run is where it was without reading anything twice.

The shards stay memory-mapped. Python cuts each row out of its shard, in about a microsecond; what goes
over tokens is compiled and leaves the interpreter to the training loop meanwhile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numba import njit

from bert_pipeline import artifact, formats
from bert_pipeline.data.masking import Masker
from bert_pipeline.formats import IGNORE_INDEX, PAD_ID, MaskShard, PairShard
from bert_pipeline.randomness import permuted
from bert_pipeline.recipe import MaskingRecipe

Columns = tuple[memoryview, ...]
"""The columns of a mapped PairShard or MaskShard, in their order. Rows are cut out of a memoryview in two
thirds of the time that numpy takes for it."""


@dataclass(frozen=True)
class Rows:
    """Pairs with their masks, before padding: the columns of a PairShard and of a MaskShard, for rows of any shards."""

    input_ids: np.ndarray  # (tokens,) the originals; row n is input_ids[offsets[n]:offsets[n + 1]]
    offsets: np.ndarray  # (rows + 1,) from 0
    segment_a_length: np.ndarray  # (rows,)
    next_sentence_label: np.ndarray  # (rows,)
    masked_positions: np.ndarray  # (masked tokens,) places in the row
    masked_input_ids: np.ndarray  # (masked tokens,)
    mask_offsets: np.ndarray  # (rows + 1,) from 0

    def __len__(self) -> int:
        return len(self.segment_a_length)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_masked(self) -> int:
        return len(self.masked_positions)

    @property
    def num_labelled(self) -> int:
        """Rows with a next-sentence label."""
        return int(np.count_nonzero(self.next_sentence_label != IGNORE_INDEX))

    def take(self, places: np.ndarray) -> "Rows":
        offsets = _offsets(self.lengths[places])
        mask_offsets = _offsets(np.diff(self.mask_offsets)[places])
        return Rows(
            _take_spans(self.input_ids, self.offsets, places, offsets),
            offsets,
            self.segment_a_length[places],
            self.next_sentence_label[places],
            _take_spans(self.masked_positions, self.mask_offsets, places, mask_offsets),
            _take_spans(self.masked_input_ids, self.mask_offsets, places, mask_offsets),
            mask_offsets,
        )


class PairDataset:
    """The rows of one split at one sequence length, over all passes and, by drawing masks anew, all epochs."""

    def __init__(
        self, nsp_dataset: Path, masked_dataset: Path, tokenizer: Path, max_seq_length: int, split: str
    ) -> None:
        self.max_seq_length, self.split = max_seq_length, split
        section = artifact.load(masked_dataset, "masked_dataset").record["origin"]["section"]
        vocabulary = formats.read_tokenizer(tokenizer)
        self.masker = Masker(MaskingRecipe(**section), formats.continuation_pieces(vocabulary))
        self.pairs: list[list[Columns]] = []  # by pass, by shard
        self.masks: list[list[Columns]] = []  # the same; the masks of epochs beyond these are drawn
        self._keys: list[np.ndarray] = []  # by pass: (shards,) int64
        self._starts: list[np.ndarray] = []  # by pass: (shards + 1,) int64, the number of rows before each shard
        for number in range(formats.num_passes(nsp_dataset, max_seq_length, split)):
            folder = formats.pass_directory(nsp_dataset, max_seq_length, split, number)
            paths = formats.shard_paths(folder, "arrow")
            pairs = [PairShard.read(path) for path in paths]
            masks = [MaskShard.read(masked_dataset / path.relative_to(nsp_dataset)) for path in paths]
            self.pairs.append([_columns(shard) for shard in pairs])
            self.masks.append([_columns(shard) for shard in masks])
            self._starts.append(_offsets([len(shard) for shard in pairs]))
            self._keys.append(np.array([formats.shard_key(path) for path in paths], np.int64))
        if not self.pairs:
            raise FileNotFoundError(
                f"{nsp_dataset} holds no rows of {max_seq_length} tokens for {split}; remedy: build it with this recipe"
            )

    def num_rows(self, epoch: int) -> int:
        return int(self._starts[epoch % len(self.pairs)][-1])

    def rows(self, epoch: int, indices: np.ndarray) -> Rows:
        """Rows of pass `epoch` modulo the number of passes, under the masks of `epoch`."""
        number = epoch % len(self.pairs)
        shards = np.searchsorted(self._starts[number], indices, side="right") - 1
        places = indices - self._starts[number][shards]
        pairs = _read_pairs(self.pairs[number], shards, places)
        if epoch < len(self.masks):
            masks = _read_masks(self.masks[epoch], shards, places)
        else:
            masks = self.masker.mask(
                pairs.input_ids,
                pairs.offsets,
                self._keys[number][shards],
                places,
                pass_number=epoch,
                split=self.split,
                max_seq_length=self.max_seq_length,
            )
        return Rows(*vars(pairs).values(), *vars(masks).values())

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
        return _concatenated(found)


def micro_batches(rows: Rows, tokens: int) -> Iterator[Rows]:
    """Cut rows, sorted by length, so that each part padded to its longest row has at most `tokens` places."""
    lengths = rows.lengths
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        width = max(1, tokens // int(lengths[order[0]]))
        yield rows.take(order[:width])
        order = order[width:]


def to_tensors(rows: Rows) -> dict[str, torch.Tensor]:
    """What PretrainingLoss.forward takes, padded to the longest row."""
    padded = np.empty((3, len(rows), int(rows.lengths.max())), np.int64)
    flat_positions, labels = np.empty((2, rows.num_masked), np.int64)
    _fill(
        rows.input_ids,
        rows.offsets,
        rows.segment_a_length,
        rows.masked_positions,
        rows.masked_input_ids,
        rows.mask_offsets,
        padded,
        flat_positions,
        labels,
    )
    input_ids, token_types, attention = torch.from_numpy(padded)
    return {
        "input_ids": input_ids,
        "token_type_ids": token_types,
        "attention_mask": attention,
        "masked_positions": torch.from_numpy(flat_positions),
        "masked_labels": torch.from_numpy(labels),
        "next_sentence_label": torch.from_numpy(rows.next_sentence_label.astype(np.int64)),
    }


@njit(cache=True, nogil=True)
def _fill(
    input_ids,
    offsets,
    segment_a_length,
    positions,
    replacements,
    mask_offsets,
    padded,  # (3, rows, width) to be filled: input_ids, token_type_ids, attention_mask
    flat_positions,  # (masked tokens,) to be filled
    labels,  # (masked tokens,) to be filled
):
    width = padded.shape[2]
    for n in range(len(segment_a_length)):
        start, length = offsets[n], offsets[n + 1] - offsets[n]
        segment_b = min(segment_a_length[n] + 2, length)  # after [CLS] A [SEP]
        padded[0, n, :length] = input_ids[start : start + length]
        padded[0, n, length:] = PAD_ID
        padded[1, n, :segment_b] = 0
        padded[1, n, segment_b:length] = 1
        padded[1, n, length:] = 0
        padded[2, n, :length] = 1
        padded[2, n, length:] = 0
        for k in range(mask_offsets[n], mask_offsets[n + 1]):
            place = positions[k]
            flat_positions[k] = n * width + place
            labels[k] = input_ids[start + place]
            padded[0, n, place] = replacements[k]


@njit(cache=True, nogil=True)
def _take_spans(values, offsets, places, taken_offsets):
    """values[offsets[n]:offsets[n + 1]] for each n of `places`, one after the other."""
    taken = np.empty(taken_offsets[-1], values.dtype)
    for k in range(len(places)):
        n = places[k]
        taken[taken_offsets[k] : taken_offsets[k + 1]] = values[offsets[n] : offsets[n + 1]]
    return taken


def _columns(shard: PairShard | MaskShard) -> Columns:
    return tuple(memoryview(column) for column in vars(shard).values())


def _read_pairs(columns: Sequence[Columns], shards: np.ndarray, places: np.ndarray) -> PairShard:
    """Row places[n] of shard shards[n], for every n."""
    # Copied one by one: a list of views is thousands of objects for Python's garbage collector to visit.
    originals, lengths, segment_a_lengths, labels = bytearray(), [], [], []
    for shard, row in zip(shards.tolist(), places.tolist(), strict=True):
        input_ids, offsets, segment_a_length, next_sentence_label = columns[shard]
        start, end = offsets[row], offsets[row + 1]
        originals += input_ids[start:end]
        lengths.append(end - start)
        segment_a_lengths.append(segment_a_length[row])
        labels.append(next_sentence_label[row])
    token_type = columns[0][0].format
    return PairShard(
        np.frombuffer(originals, token_type), _offsets(lengths), np.array(segment_a_lengths), np.array(labels)
    )


def _read_masks(columns: Sequence[Columns], shards: np.ndarray, places: np.ndarray) -> MaskShard:
    """The masks of the same rows."""
    masked, replacements, counts = bytearray(), bytearray(), []
    for shard, row in zip(shards.tolist(), places.tolist(), strict=True):
        positions, input_ids, offsets = columns[shard]
        start, end = offsets[row], offsets[row + 1]
        masked += positions[start:end]
        replacements += input_ids[start:end]
        counts.append(end - start)
    position_type, token_type = (column.format for column in columns[0][:2])
    return MaskShard(np.frombuffer(masked, position_type), np.frombuffer(replacements, token_type), _offsets(counts))


def _concatenated(parts: Sequence[Rows]) -> Rows:
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    for name in ("offsets", "mask_offsets"):
        columns[name] = _offsets(np.concatenate([np.diff(getattr(part, name)) for part in parts]))
    return Rows(**columns)


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n + 1,) int64: where n things of these lengths begin and end when they lie one after the other."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
