"""Random access to the training and held-out pairs, with their masks.

Sample k of a run is a function of (seed, k) only: an epoch is the rows of one pass in a shuffled order that can be
computed from any position. So batch n is samples n * B to (n + 1) * B on any number of processes, and a resumed run
continues without reading anything twice.

The shards are memory-mapped when a row of theirs is first read; beyond MAX_OPEN_SHARDS the ones that were opened
first are closed. Python slices each row out of its shard in about a microsecond; loops over tokens are compiled and
release the interpreter to the training loop.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numba import njit

from bert_pipeline.core.randomness import permuted
from bert_pipeline.data.masking import Masker
from bert_pipeline.formats.pairs import IGNORE_INDEX, MaskShard, PairShard, num_passes, pass_directory
from bert_pipeline.formats.tables import shard_key, shard_paths
from bert_pipeline.formats.tokenizer import continuation_pieces, read_tokenizer
from bert_pipeline.recipe import MaskingRecipe

MAX_OPEN_SHARDS = 20_000
"""Linux allows a process 65,530 maps (vm.max_map_count). The rows of an epoch are spread over all shards of a pass, so
a pass should fit: all of PubMed has 3,600 shards of pairs and as many of masks."""

Columns = tuple[memoryview, ...]
"""The columns of a memory-mapped PairShard or MaskShard, in their order. Slicing a memoryview takes two thirds of the
time of slicing a numpy array."""


@dataclass(frozen=True)
class Load:
    """Amounts that determine how much training, or a part of it, computes."""

    tokens: float
    squared_lengths: float
    """Sum over rows of length**2: each token attends to all tokens of its row."""
    masked: float
    """Masked tokens."""
    pairs: float


@dataclass(frozen=True)
class Rows:
    """Pairs with their masks, unpadded: the columns of a PairShard and a MaskShard, for rows from any shards."""

    input_ids: np.ndarray  # (tokens,) before masking; row n is input_ids[offsets[n]:offsets[n + 1]]
    offsets: np.ndarray  # (rows + 1,) from 0
    segment_a_length: np.ndarray  # (rows,)
    next_sentence_label: np.ndarray  # (rows,)
    masked_positions: np.ndarray  # (masked tokens,) positions in the row
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

    @property
    def load(self) -> Load:
        """Amounts that determine how much a model computes on these rows."""
        return Load(self.num_tokens, int((self.lengths**2).sum()), self.num_masked, len(self))

    def take(self, places: np.ndarray) -> "Rows":
        """The rows with these numbers, in this order."""
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
    """The rows of one split at one sequence length, for any epoch.

    Epochs beyond the passes on disk repeat the pairs of a pass under new masks, which `masker` draws. The held-out
    split is read in epoch 0 only and needs no masker.
    """

    def __init__(
        self, nsp_dataset: Path, masked_dataset: Path, max_seq_length: int, split: str, masker: Masker | None = None
    ) -> None:
        """Raise FileNotFoundError if the dataset has no rows of this length and split."""
        self.max_seq_length, self.split, self.masker = max_seq_length, split, masker
        self.pairs: list[Shards] = []  # by pass
        self.masks: list[Shards] = []  # by pass
        self._keys: list[np.ndarray] = []  # by pass: (shards,) int64
        self._starts: list[np.ndarray] = []  # by pass: (shards + 1,) int64, the number of rows before each shard
        for number in range(num_passes(nsp_dataset, max_seq_length, split)):
            folder = pass_directory(nsp_dataset, max_seq_length, split, number)
            paths = shard_paths(folder, "arrow")
            masks = [masked_dataset / path.relative_to(nsp_dataset) for path in paths]
            for path in masks:
                MaskShard.read(path)  # a missing or damaged file is reported now, not in the epoch that needs it
            self.pairs.append(Shards(PairShard, paths))
            self.masks.append(Shards(MaskShard, masks))
            self._starts.append(_offsets([len(PairShard.read(path)) for path in paths]))
            self._keys.append(np.array([shard_key(path) for path in paths], np.int64))
        if not self.pairs:
            raise FileNotFoundError(
                f"{nsp_dataset} has no rows of {max_seq_length} tokens for {split}; remedy: build it with this recipe"
            )

    def num_rows(self, epoch: int) -> int:
        return int(self._starts[epoch % len(self.pairs)][-1])

    def rows(self, epoch: int, indices: np.ndarray) -> Rows:
        """Rows of pass `epoch` modulo the number of passes, with the masks of `epoch`."""
        number = epoch % len(self.pairs)
        shards, places = self._find(number, indices)
        pairs = _read_pairs(self.pairs[number], shards, places)
        if epoch < len(self.masks):
            masks = _read_masks(self.masks[epoch], shards, places)
        else:
            assert self.masker is not None, f"epoch {epoch} of {self.split} has no masks on disk"
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
        """Samples `first` to `first + count` of the endless sequence of shuffled epochs."""
        return _concatenated([self.rows(epoch, indices) for epoch, indices in self._spans(first, count, seed)])

    def places(self, first: int, count: int, seed: int) -> list[dict[str, Any]]:
        """The files and rows of these samples by epoch, as JSON values. File paths are relative to either dataset.

        The epoch identifies the masks: read from the masked_dataset's pass of this number, or drawn for this epoch.
        """
        found = []
        for epoch, indices in self._spans(first, count, seed):
            number = epoch % len(self.pairs)
            folder = pass_directory(Path(), self.max_seq_length, self.split, number)
            shards, places = self._find(number, indices)
            rows: dict[str, list[int]] = {}
            for shard, place in zip(shards.tolist(), places.tolist(), strict=True):
                name = folder / f"shard-{self._keys[number][shard]:015x}.arrow"
                rows.setdefault(str(name), []).append(place)
            found.append({"epoch": epoch, "rows": rows})
        return found

    def _spans(self, first: int, count: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, row numbers in its pass) of these samples, one entry for each epoch they belong to."""
        cycle = sum(self.num_rows(number) for number in range(len(self.pairs)))
        epoch, skipped = first // cycle * len(self.pairs), first % cycle
        while skipped >= self.num_rows(epoch):
            skipped -= self.num_rows(epoch)
            epoch += 1
        while count:
            size = self.num_rows(epoch)
            positions = np.arange(skipped, min(skipped + count, size))
            yield epoch, permuted(positions, size, seed, epoch)
            count -= len(positions)
            epoch, skipped = epoch + 1, 0

    def _find(self, number: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each row of a pass, and its row number in the shard."""
        shards = np.searchsorted(self._starts[number], indices, side="right") - 1
        return shards, indices - self._starts[number][shards]


def open_masker(section: MaskingRecipe, tokenizer: Path) -> Masker:
    return Masker(section, continuation_pieces(read_tokenizer(tokenizer)))


@njit(cache=True, nogil=True)
def _take_spans(values, offsets, places, taken_offsets):
    """Concatenate values[offsets[n]:offsets[n + 1]] for each n in `places`."""
    taken = np.empty(taken_offsets[-1], values.dtype)
    for k in range(len(places)):
        n = places[k]
        taken[taken_offsets[k] : taken_offsets[k + 1]] = values[offsets[n] : offsets[n + 1]]
    return taken


class Shards:
    """The columns of the shards of one pass, opened when first read."""

    _opened: ClassVar[deque[tuple["Shards", int]]] = deque()  # of all passes and datasets, in this order

    def __init__(self, kind: type[PairShard] | type[MaskShard], paths: Sequence[Path]) -> None:
        self.kind, self.paths = kind, paths
        self.columns: list[Columns | None] = [None] * len(paths)
        """None: not open. The loader looks here first, because a call would cost a sixth of its rate."""

    def open(self, number: int) -> Columns:
        """Open a shard, and close the one that was opened first if too many are open."""
        if len(self._opened) >= MAX_OPEN_SHARDS:
            shards, oldest = self._opened.popleft()
            shards.columns[oldest] = None
        columns = tuple(memoryview(column) for column in vars(self.kind.read(self.paths[number])).values())
        self.columns[number] = columns
        self._opened.append((self, number))
        return columns


def _read_pairs(pairs: Shards, shards: np.ndarray, places: np.ndarray) -> PairShard:
    """Row places[n] of shard shards[n], for every n."""
    # Copies, because a list of views is thousands of objects for Python's garbage collector to visit.
    originals, lengths, segment_a_lengths, labels = bytearray(), [], [], []
    columns = pairs.columns
    for shard, row in zip(shards.tolist(), places.tolist(), strict=True):
        input_ids, offsets, segment_a_length, next_sentence_label = columns[shard] or pairs.open(shard)
        start, end = offsets[row], offsets[row + 1]
        originals += input_ids[start:end]
        lengths.append(end - start)
        segment_a_lengths.append(segment_a_length[row])
        labels.append(next_sentence_label[row])
    token_type = (columns[0] or pairs.open(0))[0].format
    return PairShard(
        np.frombuffer(originals, token_type), _offsets(lengths), np.array(segment_a_lengths), np.array(labels)
    )


def _read_masks(masks: Shards, shards: np.ndarray, places: np.ndarray) -> MaskShard:
    """The masks of the same rows."""
    masked, replacements, counts = bytearray(), bytearray(), []
    columns = masks.columns
    for shard, row in zip(shards.tolist(), places.tolist(), strict=True):
        positions, input_ids, offsets = columns[shard] or masks.open(shard)
        start, end = offsets[row], offsets[row + 1]
        masked += positions[start:end]
        replacements += input_ids[start:end]
        counts.append(end - start)
    position_type, token_type = (column.format for column in (columns[0] or masks.open(0))[:2])
    return MaskShard(np.frombuffer(masked, position_type), np.frombuffer(replacements, token_type), _offsets(counts))


def _concatenated(parts: Sequence[Rows]) -> Rows:
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    for name in ("offsets", "mask_offsets"):
        columns[name] = _offsets(np.concatenate([np.diff(getattr(part, name)) for part in parts]))
    return Rows(**columns)


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n + 1,) int64: the start and end of n consecutive items with these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
