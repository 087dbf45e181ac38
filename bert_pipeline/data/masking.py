"""Masked language modelling: which tokens of a row are masked, and what replaces them.

Devlin et al. 2019, section 3.1 and appendix A.1, and google-research/bert, create_masked_lm_predictions.
The masks of a row are a pure function of (seed, pass, shard, row). The data loader calls the same function for epochs
beyond the passes that are stored on disk.
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numba import njit

from bert_pipeline.core.files import cached_digest
from bert_pipeline.core.randomness import HELDOUT, MASKS, below, happens, open_stream
from bert_pipeline.formats.pairs import MaskShard, PairShard, first_row_shard
from bert_pipeline.formats.tables import shard_key, write_table
from bert_pipeline.formats.tokenizer import (
    CLS_ID,
    MASK_ID,
    PAD_ID,
    SEP_ID,
    SPECIAL_TOKENS,
    continuation_pieces,
    read_tokenizer,
)
from bert_pipeline.recipe import MaskingRecipe
from bert_pipeline.store.artifact import Facts
from bert_pipeline.store.shards import Shard, build_shards, read_index, total

NUM_SPECIAL_TOKENS = len(SPECIAL_TOKENS)  # ids below this are special
HELDOUT_MASKED_LM_PROB = 0.15
"""Of held-out rows always the published share is masked, so that recipes with different shares can be compared."""


class Masker:
    """Draws masks by one [masking] section for rows over one vocabulary."""

    def __init__(self, section: MaskingRecipe, is_continuation: np.ndarray) -> None:
        self.section = section
        self.is_continuation = is_continuation  # (vocabulary,) bool: the `##` pieces

    def mask(
        self,
        input_ids: np.ndarray,
        offsets: np.ndarray,
        shards: np.ndarray,
        rows: np.ndarray,
        *,
        pass_number: int,
        split: str,
        max_seq_length: int,
    ) -> MaskShard:
        """Mask rows that are stored one after the other: row n is input_ids[offsets[n]:offsets[n + 1]].

        `shards` and `rows`, both (rows,) int64, give the shard key and the row number of each row; they seed its masks.
        """
        masked_lm_prob = HELDOUT_MASKED_LM_PROB if split == "heldout" else self.section.masked_lm_prob
        capacity = int(offsets[-1] - offsets[0])
        positions, replacements = np.empty(capacity, np.uint16), np.empty(capacity, input_ids.dtype)
        mask_offsets = np.empty(len(rows) + 1, np.int32)
        _mask(
            input_ids,
            offsets,
            shards,
            rows,
            self.is_continuation,
            masked_lm_prob,
            self.section.max_predictions_per_seq or math.ceil(masked_lm_prob * max_seq_length),
            self.section.do_whole_word_mask,
            self.section.replacement == "word",
            self.section.seed,
            MASKS + (HELDOUT if split == "heldout" else 0),
            pass_number,
            positions,
            replacements,
            mask_offsets,
        )
        used = mask_offsets[-1]
        return MaskShard(positions[:used], replacements[:used], mask_offsets)


@njit(cache=True, nogil=True)  # nogil: the loader's thread must not block the training loop
def _mask(
    input_ids,
    offsets,
    shards,
    rows,
    is_continuation,
    masked_lm_prob,
    max_predictions,
    whole_words,
    replace_words,
    seed,
    what,
    pass_number,
    positions,
    replacements,
    mask_offsets,
):
    vocab_size = len(is_continuation)
    longest = 0
    for n in range(len(rows)):
        longest = max(longest, offsets[n + 1] - offsets[n])
    starts, ends = np.empty(longest, np.int64), np.empty(longest, np.int64)
    chosen = np.empty(longest, np.int64)  # the replacement at each position; -1: not masked
    stream = np.zeros(11, np.uint32)
    written = 0
    mask_offsets[0] = 0
    for n in range(len(rows)):
        row = input_ids[offsets[n] : offsets[n + 1]]
        open_stream(stream, seed, what, pass_number, shards[n], rows[n])
        num_words = 0
        after_candidate = False
        for i in range(len(row)):
            chosen[i] = -1
            candidate = row[i] != CLS_ID and row[i] != SEP_ID and row[i] != PAD_ID
            if candidate:
                if whole_words and after_candidate and is_continuation[row[i]]:
                    ends[num_words - 1] = i + 1
                else:
                    starts[num_words], ends[num_words] = i, i + 1
                    num_words += 1
            after_candidate = candidate

        budget = min(max_predictions, max(1, round(masked_lm_prob * len(row))))
        count = 0
        for k in range(num_words):  # Fisher-Yates shuffle, stopped when the budget is used
            if count >= budget:
                break
            j = k + below(stream, num_words - k)
            starts[k], starts[j] = starts[j], starts[k]
            ends[k], ends[j] = ends[j], ends[k]
            if count + ends[k] - starts[k] > budget:
                continue
            count += ends[k] - starts[k]
            masks, keeps = False, False
            for i in range(starts[k], ends[k]):
                if i == starts[k] or not replace_words:
                    masks = happens(stream, 0.8)
                    keeps = not masks and happens(stream, 0.5)
                if masks:
                    chosen[i] = MASK_ID
                elif keeps:
                    chosen[i] = row[i]
                else:
                    chosen[i] = NUM_SPECIAL_TOKENS + below(stream, vocab_size - NUM_SPECIAL_TOKENS)

        for i in range(len(row)):
            if chosen[i] >= 0:
                positions[written], replacements[written] = i, chosen[i]
                written += 1
        mask_offsets[n + 1] = written


def build_masked_dataset(section: MaskingRecipe, tokenizer: Path, nsp_dataset: Path, out: Path) -> Facts:
    """Mask every pass of an nsp_dataset; each shard has the path and the rows of the shard that it masks."""
    pairs = read_index(nsp_dataset)
    digest = cached_digest(tokenizer / "tokenizer.json")
    rules = section.for_origin() | {"tokenizer": digest}
    shards = [
        Shard(name, rules | {"pairs": shard.digest}, (section, (tokenizer, digest), nsp_dataset, sorted(shard.files)))
        for name, shard in pairs.items()
    ]
    entries = build_shards("masked_dataset", build_shard, shards, out)
    counts = total(entry.facts for entry in entries)
    lengths = sorted(map(int, counts))
    facts = {f"len_{length}": _facts(counts[str(length)]) for length in lengths}
    return facts | {"example": _example(tokenizer, nsp_dataset, out, lengths[0])}


@lru_cache(maxsize=1)
def _open_tokenizer(directory: Path, digest: str) -> tuple[np.ndarray, int]:
    """The continuation pieces and the vocabulary size, cached per worker process."""
    tokenizer = read_tokenizer(directory)
    return continuation_pieces(tokenizer), tokenizer.get_vocab_size()


def build_shard(
    folder: Path, section: MaskingRecipe, tokenizer: tuple[Path, str], nsp_dataset: Path, names: list[str]
) -> Facts:
    """Mask every pass and length of one shard; return counts of its training rows by sequence length."""
    is_continuation, vocab_size = _open_tokenizer(*tokenizer)
    masker = Masker(section, is_continuation)
    counts: Facts = {}
    for name in names:
        length_folder, split, pass_folder, _ = Path(name).parts
        max_seq_length = int(length_folder.removeprefix("len-"))
        pairs = PairShard.read(nsp_dataset / name)
        masks = masker.mask(
            pairs.input_ids,
            pairs.offsets,
            np.full(len(pairs), shard_key(Path(name))),
            np.arange(len(pairs)),
            pass_number=int(pass_folder.removeprefix("pass-")),
            split=split,
            max_seq_length=max_seq_length,
        )
        write_table(folder / name, masks.table(vocab_size))
        if split == "train":
            counts = total([counts, {str(max_seq_length): _count(masker, pairs, masks)}])
    return counts


def _count(masker: Masker, pairs: PairShard, masks: MaskShard) -> Facts:
    """The counts from which `_facts` computes shares."""
    counted = _count_masks(pairs.input_ids, pairs.offsets, masks.positions, masks.input_ids, masks.offsets,
                           masker.is_continuation)  # fmt: skip
    names = ("mask", "kept", "joints", "whole")
    sizes = {"rows": len(pairs), "tokens": len(pairs.input_ids), "masked": len(masks.positions)}
    return sizes | dict(zip(names, counted.tolist(), strict=True))


@njit(cache=True)
def _count_masks(input_ids, offsets, positions, replacements, mask_offsets, is_continuation):
    """(4,) int64: masked positions that became [MASK]; masked positions that kept their token; joints (a piece and its
    continuation) with at least one side masked; joints with both sides masked.
    """
    counts = np.zeros(4, np.int64)
    for row in range(len(offsets) - 1):
        start, end = offsets[row], offsets[row + 1]
        masked_before = np.int64(-2)  # the previous masked position
        for k in range(mask_offsets[row], mask_offsets[row + 1]):
            place = np.int64(positions[k])
            token = input_ids[start + place]
            counts[0] += replacements[k] == MASK_ID
            counts[1] += replacements[k] == token
            before, after = start + place - 1, start + place + 1
            if is_continuation[token] and input_ids[before] != CLS_ID and input_ids[before] != SEP_ID:
                counts[2] += 1
                counts[3] += masked_before == place - 1
            if after < end and is_continuation[input_ids[after]]:
                counts[2] += not (k + 1 < mask_offsets[row + 1] and positions[k + 1] == place + 1)
            masked_before = place
    return counts


def _facts(counts: Facts) -> Facts:
    masked = counts["masked"]
    return {
        "masked_fraction": masked / counts["tokens"],
        "mask_token_fraction": counts["mask"] / masked,
        "random_token_fraction": (masked - counts["mask"] - counts["kept"]) / masked,
        "kept_fraction": counts["kept"] / masked,
        "whole_word_fraction": counts["whole"] / max(counts["joints"], 1),
        "predictions_per_row": masked / counts["rows"],
    }


def _example(tokenizer: Path, nsp_dataset: Path, out: Path, max_seq_length: int) -> str:
    """The first training row as the model sees it, and the tokens to predict."""
    vocabulary = read_tokenizer(tokenizer)
    path = first_row_shard(out, max_seq_length)
    pairs, masks = PairShard.read(nsp_dataset / path.relative_to(out)), MaskShard.read(path)
    row = pairs.input_ids[: pairs.offsets[1]].tolist()
    positions = masks.positions[: masks.offsets[1]].tolist()
    targets = [str(vocabulary.id_to_token(row[place])) for place in positions]
    for place, replacement in zip(positions, masks.input_ids[: masks.offsets[1]].tolist(), strict=True):
        row[place] = replacement
    return f"{vocabulary.decode(row, skip_special_tokens=False)}\nasked for: {' '.join(targets)}"
