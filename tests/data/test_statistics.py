"""Random draws compared with their exact expectation, within five standard deviations of large samples.

The seeds are fixed, so a test passes always or never.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.core.randomness import DROPOUT, HELDOUT, MASKS, ORDER, PAIRS, below, draw, new_stream
from bert_pipeline.data.masking import Masker
from bert_pipeline.data.pairs import FOLLOWS, RANDOM, TokenizedShard, plan_pairs
from bert_pipeline.formats.tokenizer import CLS_ID, MASK_ID, SEP_ID
from bert_pipeline.recipe import MaskingRecipe, NspRecipe

VOCABULARY = 1005
CONTINUES = np.arange(VOCABULARY) % 2 == 1  # the odd ids continue a word
CONTINUES[:5] = False
BEYOND_32_BITS = 2**32


def assert_share(count: int, total: int, probability: float) -> None:
    """A binomial count within five standard deviations."""
    deviation = (count - total * probability) / (total * probability * (1 - probability)) ** 0.5
    assert abs(deviation) < 5, f"{count:,} of {total:,}, expected {probability:g}: {deviation:.1f} standard deviations"


def assert_chi_square(statistic: float, freedom: int) -> None:
    """Within five standard deviations of the chi-square distribution (Wilson and Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    score = ((statistic / freedom) ** (1 / 3) - 1 + spread) / spread**0.5
    assert abs(score) < 5, f"chi-square {statistic:.0f} with {freedom} degrees of freedom: {score:.1f} deviations"


def assert_uniform(values: np.ndarray, low: int, high: int) -> None:
    """Values are uniform over low, ..., high."""
    assert values.min() >= low and values.max() <= high
    counts = np.bincount(values - low, minlength=high - low + 1)
    expected = len(values) / len(counts)
    assert expected > 50, "too few values for the chi-square distribution"
    assert_chi_square(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


# Random streams


places = st.tuples(
    st.integers(0, 2**32 - 1),
    st.sampled_from([what + split for what in (PAIRS, MASKS, ORDER, DROPOUT) for split in (0, HELDOUT)]),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**59 - 1),
    st.integers(0, 2**32 - 1),
)


@given(places, places)
def test_no_two_places_share_a_stream(one, other):
    assert (other == one) == (new_stream(*other)[:6].tolist() == new_stream(*one)[:6].tolist())


@given(places, st.integers(0, 4), st.integers(0, 58))
def test_places_that_differ_in_a_single_bit_have_two_streams(one, part, bit):
    width = (32, 5, 32, 59, 32)[part]
    other = [*one]
    other[part] ^= 1 << bit % width
    assert new_stream(*other)[:6].tolist() != new_stream(*one)[:6].tolist()


def test_streams_of_adjacent_places_start_with_different_draws():
    keys = [shard + high * BEYOND_32_BITS for shard in (0, 1, 77) for high in (0, 1, 2, 2**26)]
    seen = {
        tuple(int(draw(stream)) for _ in range(4))
        for seed in (0, 1, 12345)
        for what in (PAIRS, MASKS, PAIRS + HELDOUT, MASKS + HELDOUT)
        for number in range(3)
        for shard in keys
        for row in range(50)
        for stream in [new_stream(seed, what, number, shard, row)]
    }
    assert len(seen) == 3 * 4 * 3 * len(keys) * 50


@pytest.mark.parametrize("limit", [2, 3, 7, 1000, 3001])
def test_numbers_below_a_limit_are_uniform_within_a_stream_and_over_streams(limit):
    stream = new_stream(3, MASKS)
    assert_uniform(np.array([below(stream, limit) for _ in range(200_000)]), 0, limit - 1)
    over = [
        below(new_stream(3, MASKS, 0, shard * BEYOND_32_BITS, row), limit)
        for shard in range(4)
        for row in range(50_000)
    ]
    assert_uniform(np.array(over), 0, limit - 1)


# Masks


def equal_rows(count: int, length: int = 64, seed: int = 0) -> np.ndarray:
    """(count, length): rows of one length with the first separator in one place. Even ids: each piece is a word."""
    rows = 6 + 2 * np.random.default_rng(seed).integers(0, (VOCABULARY - 6) // 2, (count, length))
    rows[:, 0], rows[:, length // 2], rows[:, -1] = CLS_ID, SEP_ID, SEP_ID
    return rows.astype(np.uint16)


def draw_masks(rows: np.ndarray, section: MaskingRecipe, *, number: int = 0, shard: int = 5, split: str = "train"):
    """Two arrays like `rows`: True where masked, and the tokens after masking."""
    count, length = rows.shape
    masks = Masker(section, CONTINUES).mask(
        rows.ravel(), np.arange(count + 1) * length, np.full(count, shard), np.arange(count),
        pass_number=number, split=split, max_seq_length=length,
    )  # fmt: skip
    places = np.repeat(np.arange(count), np.diff(masks.offsets)), masks.positions
    hidden, now = np.zeros(rows.shape, bool), rows.copy()
    hidden[places], now[places] = True, masks.input_ids
    assert hidden.sum() == len(masks.positions), "no place is masked twice"
    return hidden, now


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_every_row_has_exactly_its_budget(share):
    for length in range(5, 513, 7):
        hidden, _ = draw_masks(equal_rows(40, length), MaskingRecipe(masked_lm_prob=share, max_predictions_per_seq=77))
        assert set(hidden.sum(1)) == {min(77, max(1, round(share * length)))}


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3])
def test_held_out_rows_have_fifteen_percent_whatever_the_training_rows_have(share):
    hidden, _ = draw_masks(equal_rows(40, 100), MaskingRecipe(masked_lm_prob=share), split="heldout")
    assert set(hidden.sum(1)) == {15}


def assert_uniform_choice(chosen: np.ndarray) -> None:
    """(rows, candidates) bool, k of m chosen in each row: every candidate equally often.

    The indicators of a row have the variance p (1 - p) and the covariance -p (1 - p) / (m - 1).
    """
    rows, m = chosen.shape
    share = chosen[0].mean()
    assert (chosen.sum(1) == chosen[0].sum()).all()
    deviations = chosen.sum(0) - rows * share
    assert_chi_square((deviations**2).sum() / (rows * share * (1 - share)) * (m - 1) / m, m - 1)


def test_masked_places_are_uniform_over_the_row():
    hidden, _ = draw_masks(equal_rows(100_000), MaskingRecipe())
    specials = [0, 32, 63]
    assert not hidden[:, specials].any()
    assert_uniform_choice(np.delete(hidden, specials, axis=1))


def test_masked_words_are_uniform_over_the_row():
    """Words of two pieces: an odd budget of nine tokens holds four of them."""
    rows = equal_rows(100_000, 61)
    rows[:, 2:30:2] += 1  # 1 2 | 3 4 | ... | 29 [SEP] | 31 32 | ... | 57 58 | 59 [SEP]
    rows[:, 32:59:2] += 1
    hidden, _ = draw_masks(rows, MaskingRecipe(do_whole_word_mask=True))
    pairs = np.r_[1:29:2, 31:59:2]
    assert (hidden[:, pairs] == hidden[:, pairs + 1]).all(), "whole words"
    assert set(hidden.sum(1)) == {8, 9}, "nine with one of the two words of a single piece"
    of_pairs = hidden[(hidden.sum(1) == 8)][:, pairs]
    assert_uniform_choice(of_pairs)


@pytest.mark.parametrize("section", [MaskingRecipe(), MaskingRecipe(do_whole_word_mask=True, replacement="word")])
def test_eighty_ten_ten_and_random_ids_are_uniform_over_ids_that_are_not_special(section):
    rows = equal_rows(200_000)
    hidden, now = draw_masks(rows, section)
    was, now = rows[hidden], now[hidden]
    assert len(was) == 2_000_000
    assert_share((now == MASK_ID).sum(), len(now), 0.8)
    by_chance = 0.1 / (VOCABULARY - 5)
    assert_share((now == was).sum(), len(now), 0.1 + by_chance)
    random = now[(now != MASK_ID) & (now != was)]
    assert_share(len(random), len(now), 0.1 - by_chance)
    assert_uniform(now[(now != MASK_ID) & CONTINUES[now]].astype(np.int64) // 2, 2, 501)  # odd ids: surely drawn
    assert random.min() >= 5 and random.max() == VOCABULARY - 1


def assert_independent(one: np.ndarray, other: np.ndarray) -> None:
    """(rows, candidates) bool, k of m chosen in each: the number of shared choices is hypergeometric."""
    rows, m = one.shape
    k = one[0].sum()
    mean, variance = k * k / m, k * k / m * (1 - k / m) * (m - k) / (m - 1)
    deviation = ((one & other).sum() - rows * mean) / (rows * variance) ** 0.5
    assert abs(deviation) < 5, f"{deviation:.1f} standard deviations"


OTHERS = {
    "pass": {"number": 1},
    "shard": {"shard": 6},
    "shard beyond 32 bits": {"shard": 5 + BEYOND_32_BITS},
    "split": {"split": "heldout"},
}


def test_masks_of_adjacent_rows_are_independent():
    hidden = np.delete(draw_masks(equal_rows(100_000), MaskingRecipe())[0], [0, 32, 63], axis=1)
    assert_independent(hidden[1:], hidden[:-1])
    assert_independent(hidden[2:], hidden[:-2])


@pytest.mark.parametrize("other", OTHERS)
def test_masks_of_another_pass_shard_or_split_are_independent(other):
    rows = equal_rows(100_000)
    hidden, now = draw_masks(rows, MaskingRecipe())
    there, now_there = draw_masks(rows, MaskingRecipe(), **OTHERS[other])
    assert_independent(*(np.delete(each, [0, 32, 63], axis=1) for each in (hidden, there)))
    both = hidden & there
    assert_share(((now == MASK_ID) & (now_there == MASK_ID))[both].sum(), both.sum(), 0.64)


# Pairs


def equal_documents(count: int, sentences: int, tokens: int) -> TokenizedShard:
    """`count` documents of `sentences` sentences of `tokens` tokens."""
    total = count * sentences * tokens
    ids = 6 + 2 * (np.arange(total) % ((VOCABULARY - 6) // 2))
    return TokenizedShard(
        ids.astype(np.uint16), np.arange(0, total + 1, tokens), np.arange(0, count * sentences + 1, sentences)
    )


def plan(shard: TokenizedShard, length: int = 64, *, key: int = 5, number: int = 0, **options):
    return plan_pairs(shard, CONTINUES, NspRecipe(**options), length, "train", number, key)


def first_of_documents(spans: np.ndarray, tokens_per_document: int) -> np.ndarray:
    """(rows,) bool: pairs whose A starts a document, so that no earlier draw has moved them."""
    begins = spans[:, 0] % tokens_per_document == 0
    assert begins.sum() == spans[:, 0].max() // tokens_per_document + 1, "one for each document"
    return begins


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_free_pairs_are_random_with_the_recipe_s_probability(probability):
    found = plan(equal_documents(100_000, 7, 11), nsp_prob=probability)
    free = ~found.forced
    assert free.sum() > 120_000 and (found.labels[found.forced] == RANDOM).all()
    assert_share((found.labels[free] == RANDOM).sum(), free.sum(), probability)


def test_an_order_is_swapped_half_of_the_time():
    found = plan(equal_documents(100_000, 7, 11), objective="sop")
    assert_share((found.labels == 1).sum(), len(found.labels), 0.5)


@pytest.mark.parametrize("sentences", [3, 8])
def test_the_end_of_a_is_uniform_over_the_sentences_of_the_chunk(sentences):
    found = plan(equal_documents(100_000, sentences, 1), short_seq_prob=0)
    first = first_of_documents(found.spans, sentences)
    num_a = found.spans[first, 1] - found.spans[first, 0]
    for label in (FOLLOWS, RANDOM):  # the split is drawn before the label
        assert_uniform(num_a[found.labels[first] == label], 1, sentences - 1)


@pytest.mark.parametrize("draw_for", ["document", "example"])
def test_a_short_target_is_uniform_from_two_to_the_longest(draw_for):
    """Sentences of one token: a real pair has as many as its target."""
    found = plan(equal_documents(100_000, 80, 1), 32, short_seq_prob=1, target_draw=draw_for)
    first = first_of_documents(found.spans, 80)
    rows = found.spans[first & (found.labels == FOLLOWS)]
    assert_uniform(rows[:, 3] - rows[:, 0], 2, 29)
    assert (rows[:, 1] == rows[:, 2]).all()


def test_targets_are_short_with_the_recipe_s_probability():
    found = plan(equal_documents(100_000, 80, 1), 32, short_seq_prob=0.1)
    first = first_of_documents(found.spans, 80) & (found.labels == FOLLOWS)
    lengths = found.spans[first, 3] - found.spans[first, 0]
    assert_share((lengths < 29).sum(), len(lengths), 0.1 * 27 / 28)


def test_a_random_b_begins_at_any_sentence_of_any_other_document():
    found = plan(equal_documents(60, 400, 9))
    for number in range(1, 40):
        more = plan(equal_documents(60, 400, 9), number=number)
        found = type(found)(
            *(np.concatenate(both) for both in zip(vars(found).values(), vars(more).values(), strict=True))
        )
    random = found.spans[found.labels == RANDOM]
    sentence = random[:, 2] // 9
    assert_uniform(sentence % 400, 0, 399)
    own, other = random[:, 0] // (400 * 9), sentence // 400
    assert (own != other).all()
    assert_uniform((other - own) % 60, 1, 59)


def test_random_segments_are_cut_equally_often():
    """Two sentences of 60 tokens for 61 places: 59 cuts, of which A takes half."""
    found = plan(equal_documents(50_000, 2, 60))
    two = found.labels == FOLLOWS
    kept = found.spans[two, 1] - found.spans[two, 0]
    assert (found.spans[two, 3] - found.spans[two, 2] + kept == 61).all()
    assert_share((60 - kept).sum(), 59 * two.sum(), 0.5)


def test_the_longer_segment_is_cut_equally_often_at_both_ends():
    found = plan(equal_documents(50_000, 2, 60), truncation="longest_first")
    two = found.labels == FOLLOWS
    assert set(found.spans[two, 1] - found.spans[two, 0]) == {31}
    from_the_front = found.spans[two, 0] % 120
    assert_share(from_the_front.sum(), 29 * two.sum(), 0.5)


@pytest.mark.parametrize("other", [{"number": 1}, {"key": 6}, {"key": 5 + BEYOND_32_BITS}, {"seed": 1}])
def test_labels_of_another_pass_shard_or_seed_are_independent(other):
    """The first pair of each document of two sentences."""
    shard = equal_documents(100_000, 2, 5)

    def labels(**place) -> np.ndarray:
        found = plan(shard, short_seq_prob=0, **place)
        return found.labels[first_of_documents(found.spans, 10)]

    here, there = labels(), labels(**other)
    assert_share((here == there).sum(), len(here), 0.5)
    assert_share((here[1:] == here[:-1]).sum(), len(here) - 1, 0.5)
