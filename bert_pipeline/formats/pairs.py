"""The nsp_dataset and the masked_dataset on disk, and their readers.

    nsp_dataset/      len-128/{train,heldout}/pass-000/shard-<key>.arrow     one row per pair
    masked_dataset/   the same paths; row n holds the masks of row n of the nsp_dataset

Both store only what cannot be derived. `training_row` and `hugging_face_dataset` (for a Hugging Face Trainer) derive
token_type_ids, attention_mask, position_ids and labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bert_pipeline.formats.tables import flat_list, list_array, read_table, shard_paths
from bert_pipeline.formats.tokenizer import token_id_type

IGNORE_INDEX = -100
"""Label of a position, or of a row, that does not enter the loss."""


def nsp_schema(vocab_size: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("input_ids", pa.list_(token_id_type(vocab_size)), nullable=False),  # [CLS] A [SEP] B [SEP]
            pa.field("segment_a_length", pa.uint16(), nullable=False),  # tokens of A without special tokens
            pa.field("next_sentence_label", pa.int8(), nullable=False),  # 0: B follows A, 1: B is random; -100: no loss
        ]
    )


def mask_schema(vocab_size: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("masked_positions", pa.list_(pa.uint16()), nullable=False),  # ascending
            pa.field("masked_input_ids", pa.list_(token_id_type(vocab_size)), nullable=False),  # the replacements
        ]
    )


def pass_directory(dataset: Path, max_seq_length: int, split: str, number: int = 0) -> Path:
    return dataset / f"len-{max_seq_length}" / split / f"pass-{number:03d}"


def first_row_shard(dataset: Path, max_seq_length: int) -> Path:
    """The first training shard with a row: in a small corpus, a pass over a shard may yield no pair."""
    paths = sorted(dataset.glob(f"len-{max_seq_length}/train/pass-*/shard-*.arrow"))
    return next(path for path in paths if read_table(path).num_rows)


def num_passes(dataset: Path, max_seq_length: int, split: str) -> int:
    return len(list((dataset / f"len-{max_seq_length}" / split).glob("pass-*")))


@dataclass(frozen=True)
class PairShard:
    """The pairs of one shard in one pass, as flat arrays."""

    input_ids: np.ndarray  # (tokens,) uint16 or uint32
    offsets: np.ndarray  # (rows + 1,) int32
    segment_a_length: np.ndarray  # (rows,) uint16
    next_sentence_label: np.ndarray  # (rows,) int8

    def __len__(self) -> int:
        return len(self.segment_a_length)

    @classmethod
    def read(cls, path: Path) -> "PairShard":
        table = read_table(path)
        input_ids, offsets = flat_list(table["input_ids"])
        return cls(input_ids, offsets, table["segment_a_length"].to_numpy(), table["next_sentence_label"].to_numpy())

    def table(self, vocab_size: int) -> pa.Table:
        columns = [
            list_array(self.input_ids, self.offsets),
            pa.array(self.segment_a_length),
            pa.array(self.next_sentence_label),
        ]
        return pa.Table.from_arrays(columns, schema=nsp_schema(vocab_size))


@dataclass(frozen=True)
class MaskShard:
    """The masks of one shard in one pass, as flat arrays; row n masks row n of its PairShard."""

    positions: np.ndarray  # (masked tokens,) uint16: position in the row
    input_ids: np.ndarray  # (masked tokens,) uint16 or uint32: the replacements
    offsets: np.ndarray  # (rows + 1,) int32

    @classmethod
    def read(cls, path: Path) -> "MaskShard":
        table = read_table(path)
        positions, offsets = flat_list(table["masked_positions"])
        return cls(positions, flat_list(table["masked_input_ids"])[0], offsets)

    def table(self, vocab_size: int) -> pa.Table:
        columns = [list_array(self.positions, self.offsets), list_array(self.input_ids, self.offsets)]
        return pa.Table.from_arrays(columns, schema=mask_schema(vocab_size))


def token_type_ids(length: int, segment_a_length: int) -> np.ndarray:
    """0 up to and including the first [SEP], then 1 (Devlin et al. 2019, figure 2). (length,) int64."""
    return (np.arange(length) >= segment_a_length + 2).astype(np.int64)


def training_row(
    original: np.ndarray,
    segment_a_length: int,
    next_sentence_label: int,
    positions: np.ndarray,
    replacements: np.ndarray,
    *,
    padded_length: int | None = None,
) -> dict[str, Any]:
    """Join one pair and its masks into the arguments of `BertForPreTraining.forward`.

    Arrays are (padded_length,) int64 (default: the row's own length); `next_sentence_label` is an int.
    """
    length = len(original)
    width = padded_length or length
    row = {name: np.zeros(width, np.int64) for name in ("input_ids", "token_type_ids", "attention_mask")}
    row["labels"] = np.full(width, IGNORE_INDEX, np.int64)
    row["position_ids"] = np.arange(width)
    row["input_ids"][:length] = original
    row["labels"][positions] = row["input_ids"][positions]
    row["input_ids"][positions] = replacements
    row["token_type_ids"][:length] = token_type_ids(length, segment_a_length)
    row["attention_mask"][:length] = 1
    return row | {"next_sentence_label": int(next_sentence_label)}


def hugging_face_dataset(
    nsp_dataset: Path, masked_dataset: Path, max_seq_length: int, split: str = "train", number: int = 0
):
    """One pass as a memory-mapped `datasets.Dataset` with the standard Hugging Face columns.

    Rows are padded to `max_seq_length` and hold input_ids, token_type_ids, position_ids, attention_mask,
    labels and next_sentence_label. These columns are computed when a row is read, so a Trainer needs
    `TrainingArguments(remove_unused_columns=False)`.
    """
    from datasets import Dataset, concatenate_datasets

    def column_wise(dataset: Path) -> Dataset:
        paths = shard_paths(pass_directory(dataset, max_seq_length, split, number), "arrow")
        return concatenate_datasets([Dataset.from_file(str(path)) for path in paths])

    def join(batch: dict[str, list]) -> dict[str, list]:
        rows = [
            training_row(np.asarray(original), a, label, positions, replacements, padded_length=max_seq_length)
            for original, a, label, positions, replacements in zip(
                batch["input_ids"],
                batch["segment_a_length"],
                batch["next_sentence_label"],
                batch["masked_positions"],
                batch["masked_input_ids"],
                strict=True,
            )
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    both = concatenate_datasets([column_wise(nsp_dataset), column_wise(masked_dataset)], axis=1)
    return both.with_transform(join)
