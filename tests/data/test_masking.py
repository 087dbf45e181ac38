import numpy as np
import pytest
from oracles import google

from bert_pipeline.core.randomness import HELDOUT, MASKS
from bert_pipeline.data.masking import Masker, _count
from bert_pipeline.formats.pairs import MaskShard, PairShard
from bert_pipeline.formats.tokenizer import CLS_ID, MASK_ID, PAD_ID, SEP_ID, UNK_ID
from bert_pipeline.recipe import MaskingRecipe

VOCABULARY = 500
CONTINUES = np.arange(VOCABULARY) % 2 == 1
CONTINUES[:5] = False


def make_rows(seed, count, longest=60):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        a = rng.integers(1, longest // 2)
        b = rng.integers(1, longest // 2)
        ids = rng.integers(5, VOCABULARY, a + b + 3)
        ids[rng.random(len(ids)) < 0.02] = UNK_ID
        ids[0], ids[a + 1], ids[-1] = CLS_ID, SEP_ID, SEP_ID
        rows.append(ids)
    return rows


def mask(rows, section, *, pass_number=0, split="train", numbers=None, shard=0, max_seq_length=64):
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    numbers = np.arange(len(rows)) if numbers is None else np.asarray(numbers)
    masks = Masker(section, CONTINUES).mask(
        np.concatenate(rows).astype(np.uint16), offsets, np.full(len(rows), shard), numbers,
        pass_number=pass_number, split=split, max_seq_length=max_seq_length,
    )  # fmt: skip
    return [
        list(zip(masks.positions[i:j].tolist(), masks.input_ids[i:j].tolist(), strict=True))
        for i, j in zip(masks.offsets[:-1], masks.offsets[1:], strict=True)
    ]


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("replacement", ["piece", "word"])
@pytest.mark.parametrize("most", [0, 4])
def test_masks_equal_the_google_algorithm_under_the_same_draws(whole_words, replacement, most):
    rows = make_rows(1, 300)
    section = MaskingRecipe(
        do_whole_word_mask=whole_words, replacement=replacement, max_predictions_per_seq=most, seed=9
    )
    for split, number, shard in [("train", 0, 0), ("train", 5, 3), ("heldout", 0, 1)]:
        expected = [
            google.masked_lm(
                row.tolist(),
                is_continuation=CONTINUES,
                specials={CLS_ID, SEP_ID, PAD_ID},
                masked_lm_prob=0.15,
                max_predictions=most or 10,  # ceil(0.15 * 64)
                whole_words=whole_words,
                per_word=replacement == "word",
                mask_id=MASK_ID,
                vocab_size=VOCABULARY,
                rng=google.Draws(9, MASKS + (HELDOUT if split == "heldout" else 0), number, shard, n),
            )
            for n, row in enumerate(rows)
        ]
        assert mask(rows, section, pass_number=number, split=split, shard=shard) == expected


def test_masks_depend_on_shard_and_row_number_alone():
    """Masks drawn for single rows in any order equal the masks drawn for the whole shard."""
    rows = make_rows(2, 100)
    section = MaskingRecipe(do_whole_word_mask=True)
    whole = mask(rows, section, pass_number=3, shard=7)
    order = np.random.default_rng(0).permutation(100)[:30]
    assert mask([rows[n] for n in order], section, pass_number=3, shard=7, numbers=order) == [whole[n] for n in order]


def test_shares_follow_the_paper():
    rows = make_rows(3, 20_000)
    masks = mask(rows, MaskingRecipe(max_predictions_per_seq=64))
    flat = [(row[place], now) for row, found in zip(rows, masks, strict=True) for place, now in found]
    total = len(flat)
    assert abs(total / sum(len(row) for row in rows) - 0.15) < 0.005  # rounding per row
    deviation = 5 / total**0.5
    assert abs(np.mean([now == MASK_ID for _, now in flat]) - 0.8) < 0.4 * deviation
    kept = np.mean([now == was for was, now in flat])
    assert abs(kept - 0.1 - 0.1 / (VOCABULARY - 5)) < 0.3 * deviation
    drawn = np.bincount([now for was, now in flat if now not in (MASK_ID, was)], minlength=VOCABULARY)
    assert drawn[:5].sum() == 0, "random tokens are never special"
    assert (drawn[5:] > 0).all()


def test_budget_specials_and_unknown():
    rows = make_rows(4, 2000)
    masked_unknown = 0
    for row, found in zip(rows, mask(rows, MaskingRecipe()), strict=True):
        places = [place for place, _ in found]
        assert places == sorted(set(places))
        assert len(places) == min(10, max(1, round(0.15 * len(row))))
        assert not {row[place] for place in places} & {CLS_ID, SEP_ID, PAD_ID}
        masked_unknown += sum(row[place] == UNK_ID for place in places)
    assert masked_unknown > 0, "[UNK] is a candidate"


def test_whole_words_are_whole_and_never_cross_a_separator():
    rows = make_rows(5, 2000)
    for row, found in zip(rows, mask(rows, MaskingRecipe(do_whole_word_mask=True)), strict=True):
        hidden = np.zeros(len(row), bool)
        hidden[[place for place, _ in found]] = True
        for i in range(1, len(row)):
            same_word = CONTINUES[row[i]] and row[i - 1] not in (CLS_ID, SEP_ID)
            if same_word:
                assert hidden[i] == hidden[i - 1]
        assert hidden.sum() <= 10


def test_one_draw_for_a_word_or_one_for_a_piece():
    rows = make_rows(6, 3000)

    def mixed(replacement):
        """Words of two pieces of which exactly one became [MASK]."""
        count = 0
        section = MaskingRecipe(do_whole_word_mask=True, replacement=replacement)
        for row, found in zip(rows, mask(rows, section), strict=True):
            now = dict(found)
            for i in range(1, len(row)):
                if i in now and i - 1 in now and CONTINUES[row[i]]:
                    count += (now[i] == MASK_ID) != (now[i - 1] == MASK_ID)
        return count

    assert mixed("word") == 0
    assert mixed("piece") > 100


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_counts_behind_the_facts_equal_a_slow_count(whole_words):
    rows = make_rows(4, 200)
    masks = mask(rows, MaskingRecipe(do_whole_word_mask=whole_words))
    expected = dict.fromkeys(("rows", "tokens", "masked", "mask", "kept", "joints", "whole"), 0)
    for row, masked in zip(rows, masks, strict=True):
        hidden = {place for place, _ in masked}
        expected["rows"] += 1
        expected["tokens"] += len(row)
        expected["masked"] += len(masked)
        expected["mask"] += sum(now == MASK_ID for _, now in masked)
        expected["kept"] += sum(now == row[place] for place, now in masked)
        for place in range(1, len(row)):
            if CONTINUES[row[place]] and row[place - 1] not in (CLS_ID, SEP_ID):
                expected["joints"] += place in hidden or place - 1 in hidden
                expected["whole"] += place in hidden and place - 1 in hidden
    lengths, counts = [len(row) for row in rows], [len(masked) for masked in masks]
    pairs = PairShard(np.concatenate(rows).astype(np.uint16), np.cumsum([0, *lengths]), np.zeros(200), np.zeros(200))
    flat = np.array([pair for masked in masks for pair in masked])
    found = _count(
        Masker(MaskingRecipe(), CONTINUES), pairs, MaskShard(flat[:, 0], flat[:, 1], np.cumsum([0, *counts]))
    )
    assert found == expected and expected["joints"] > 300
