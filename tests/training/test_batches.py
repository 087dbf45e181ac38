from collections import Counter

import numpy as np
import pytest

from bert_pipeline.training.batches import PairDataset


@pytest.fixture(scope="module")
def dataset(tiny):
    return PairDataset(tiny["nsp_dataset"].path, tiny["masked_dataset"].path, tiny["tokenizer"].path, 32, "train")


def as_tuples(rows):
    columns = (
        map(bytes, rows.input_ids),
        rows.segment_a_length,
        rows.next_sentence_label,
        map(bytes, rows.masked_positions),
        map(bytes, rows.masked_input_ids),
    )
    return list(zip(*columns, strict=True))


def test_every_epoch_holds_every_row_of_its_pass_once(dataset):
    first, second = dataset.num_rows(0), dataset.num_rows(1)
    for begin, size, epoch in [(0, first, 0), (first, second, 1), (first + second, first, 2)]:
        shuffled = as_tuples(dataset.samples(begin, size, seed=5))
        plain = as_tuples(dataset.rows(epoch, np.arange(size)))
        assert Counter(shuffled) == Counter(plain)
        assert shuffled != plain


def test_the_order_can_be_entered_anywhere(dataset):
    """Batches of any size, from any sample on, across the ends of epochs, are windows of one sequence."""
    whole = as_tuples(dataset.samples(0, 3 * dataset.num_rows(0), seed=5))
    for begin, count in [(0, 7), (dataset.num_rows(0) - 3, 10), (dataset.num_rows(0) * 2, 31)]:
        assert as_tuples(dataset.samples(begin, count, seed=5)) == whole[begin : begin + count]


def test_static_masks_are_the_dynamic_ones(dataset, tiny):
    drawing = PairDataset(tiny["nsp_dataset"].path, tiny["masked_dataset"].path, tiny["tokenizer"].path, 32, "train")
    drawing.masks = []  # nothing is read from disk any more
    for epoch in (0, 1):
        indices = np.arange(dataset.num_rows(epoch))[::3]
        assert as_tuples(drawing.rows(epoch, indices)) == as_tuples(dataset.rows(epoch, indices))


def test_later_epochs_mask_the_same_pairs_anew(dataset):
    early, late = dataset.rows(0, np.arange(50)), dataset.rows(2, np.arange(50))
    assert [bytes(row) for row in early.input_ids] == [bytes(row) for row in late.input_ids]
    assert as_tuples(early) != as_tuples(late)


def test_a_length_that_was_not_built_is_named(tiny):
    with pytest.raises(FileNotFoundError, match="no rows of 48 tokens for train"):
        PairDataset(tiny["nsp_dataset"].path, tiny["masked_dataset"].path, tiny["tokenizer"].path, 48, "train")
