from collections import Counter, deque
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training.runs import open_dataset

from bert_pipeline.core.randomness import permuted
from bert_pipeline.formats.pairs import MaskShard, PairShard, num_passes, pass_directory
from bert_pipeline.formats.tables import read_table, shard_paths, write_table
from bert_pipeline.training import batches
from bert_pipeline.training.batches.dataset import PairDataset


@pytest.fixture(scope="module")
def dataset(tiny, tiny_recipe):
    return open_dataset(tiny, tiny_recipe, 32)


def as_tuples(rows):
    """One tuple a row: (input_ids, segment_a_length, next_sentence_label, masked_positions, masked_input_ids)."""

    def spans(values, offsets):
        return [bytes(span) for span in np.split(values, offsets[1:-1])]

    columns = (
        spans(rows.input_ids, rows.offsets),
        rows.segment_a_length.tolist(),
        rows.next_sentence_label.tolist(),
        spans(rows.masked_positions, rows.mask_offsets),
        spans(rows.masked_input_ids, rows.mask_offsets),
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


def maps_of(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{folder}/")


def test_few_shards_are_open_at_once(dataset, tiny, tmp_path, monkeypatch):
    """Each row in a shard of its own, in two passes: the same rows as from one shard, through at most 20 maps."""
    for kind, number in [("nsp_dataset", 0), ("nsp_dataset", 1), ("masked_dataset", 0), ("masked_dataset", 1)]:
        folder = pass_directory(tiny[kind].path, 32, "train", number)
        table = read_table(shard_paths(folder, "arrow")[0]).slice(0, 150)
        for row in range(len(table)):
            path = pass_directory(tmp_path / kind, 32, "train", number) / f"shard-{row:015x}.arrow"
            write_table(path, pa.Table.from_pylist(table.slice(row, 1).to_pylist(), table.schema))
    split = PairDataset(tmp_path / "nsp_dataset", tmp_path / "masked_dataset", 32, "train")
    assert maps_of(tmp_path) == 0
    size = split.num_rows(0)
    assert size == split.num_rows(1) > 100, "the test would prove nothing"
    monkeypatch.setattr(batches.dataset, "MAX_OPEN_SHARDS", 20)
    monkeypatch.setattr(batches.dataset.Shards, "_opened", deque())
    assert as_tuples(split.rows(0, np.arange(size))) == as_tuples(dataset.rows(0, np.arange(size)))
    assert 2 <= maps_of(tmp_path) <= 20
    found = Counter(as_tuples(split.samples(0, 2 * size, seed=5)))
    expected = [row for epoch in (0, 1) for row in as_tuples(split.rows(epoch, np.arange(size)))]
    assert found == Counter(expected)
    assert maps_of(tmp_path) <= 20


def test_places_lead_to_the_rows_in_the_files(dataset, tiny):
    """Across the ends of epochs: each sample's row, looked up by path and number in the nsp_dataset."""
    begin, count = dataset.num_rows(0) - 10, 10 + dataset.num_rows(1) + 7
    spans = dataset.places(begin, count, seed=5)
    assert [span["epoch"] for span in spans] == [0, 1, 2]
    assert sum(len(rows) for span in spans for rows in span["rows"].values()) == count
    found = Counter()
    for span in spans:
        for name, rows in span["rows"].items():
            assert name.startswith(f"len-32/train/pass-{span['epoch'] % 2:03d}/shard-")
            shard = PairShard.read(tiny["nsp_dataset"].path / name)
            found.update(bytes(shard.input_ids[shard.offsets[n] : shard.offsets[n + 1]]) for n in rows)
    assert found == Counter(row[0] for row in as_tuples(dataset.samples(begin, count, seed=5)))


def test_static_masks_are_the_dynamic_ones(dataset, tiny, tiny_recipe):
    drawing = open_dataset(tiny, tiny_recipe, 32)
    drawing.masks = []  # nothing is read from disk any more
    for epoch in (0, 1):
        indices = np.arange(dataset.num_rows(epoch))[::3]
        assert as_tuples(drawing.rows(epoch, indices)) == as_tuples(dataset.rows(epoch, indices))


def test_later_epochs_mask_the_same_pairs_anew(dataset):
    early, late = dataset.rows(0, np.arange(50)), dataset.rows(2, np.arange(50))
    assert [row[0] for row in as_tuples(early)] == [row[0] for row in as_tuples(late)]
    assert as_tuples(early) != as_tuples(late)


def test_a_length_that_was_not_built_is_named(tiny, tiny_recipe):
    with pytest.raises(FileNotFoundError, match="no rows of 48 tokens for train"):
        open_dataset(tiny, tiny_recipe, 48)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
def test_shards_are_mapped_and_not_read(dataset):
    """Every column of every shard lies in a mapping of a file, so a corpus of any size costs no memory."""
    by_pass = [each for number in (0, 1) for each in (dataset.pairs[number], dataset.masks[number])]
    shards = [each.open(n) for each in by_pass for n in range(len(each.paths))]
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if fields[5:] and "/shard-" in fields[5]:
            mapped.append(tuple(int(end, 16) for end in fields[0].split("-")))
    columns = [np.asarray(column) for shard in shards for column in shard]
    assert columns
    for column in columns:
        begin = column.__array_interface__["data"][0]
        assert any(low <= begin and begin + column.nbytes <= high for low, high in mapped)


class SlowDataset:
    """The oracle: the files of a split, row by row."""

    def __init__(self, tiny, dataset):
        self.dataset = dataset
        length, split = dataset.max_seq_length, dataset.split
        nsp, masked = tiny["nsp_dataset"].path, tiny["masked_dataset"].path
        self.passes = []  # by pass: (key of the shard, its pairs, its masks, row) of each row
        for number in range(num_passes(nsp, length, split)):
            rows = []
            for path in shard_paths(pass_directory(nsp, length, split, number), "arrow"):
                pairs, masks = PairShard.read(path), MaskShard.read(masked / path.relative_to(nsp))
                key = int(path.stem.removeprefix("shard-"), 16)
                rows += [(key, pairs, masks, row) for row in range(len(pairs))]
            self.passes.append(rows)

    def sample(self, place, seed):
        """(input_ids, segment_a_length, next_sentence_label, masked_positions, masked_input_ids)."""
        epoch = 0
        while place >= len(self.passes[epoch % len(self.passes)]):
            place -= len(self.passes[epoch % len(self.passes)])
            epoch += 1
        rows = self.passes[epoch % len(self.passes)]
        key, pairs, masks, row = rows[permuted(np.array([place]), len(rows), seed, epoch)[0]]
        original = pairs.input_ids[pairs.offsets[row] : pairs.offsets[row + 1]]
        span = slice(masks.offsets[row], masks.offsets[row + 1])
        if epoch >= len(self.passes):
            masks = self.dataset.masker.mask(
                original,
                np.array([0, len(original)]),
                np.array([key]),
                np.array([row]),
                pass_number=epoch,
                split=self.dataset.split,
                max_seq_length=self.dataset.max_seq_length,
            )
            span = slice(None)
        return (
            original,
            int(pairs.segment_a_length[row]),
            int(pairs.next_sentence_label[row]),
            masks.positions[span],
            masks.input_ids[span],
        )


def assert_rows_are(rows, samples):
    for n, (original, segment_a_length, label, positions, replacements) in enumerate(samples):
        span = slice(rows.mask_offsets[n], rows.mask_offsets[n + 1])
        assert np.array_equal(rows.input_ids[rows.offsets[n] : rows.offsets[n + 1]], original)
        assert (rows.segment_a_length[n], rows.next_sentence_label[n]) == (segment_a_length, label)
        assert np.array_equal(rows.masked_positions[span], positions)
        assert np.array_equal(rows.masked_input_ids[span], replacements)


@pytest.fixture(scope="module")
def slow_and_fast(tiny, tiny_recipe):
    datasets = [open_dataset(tiny, tiny_recipe, length, split) for length in (32, 64) for split in ("train", "heldout")]
    return [(SlowDataset(tiny, dataset), dataset) for dataset in datasets]


@given(st.data())
@settings(max_examples=60)
def test_samples_are_those_of_the_row_by_row_oracle(slow_and_fast, data):
    """Several shards, both passes, read and drawn masks, counts that span the ends of epochs: equal to the bit."""
    slow, fast = data.draw(st.sampled_from(slow_and_fast))
    ends = np.cumsum([fast.num_rows(epoch) for epoch in range(6)]).tolist()
    near_an_end = st.builds(lambda end, before: max(0, end - before), st.sampled_from(ends), st.integers(0, 40))
    first = data.draw(st.integers(0, ends[-1]) | near_an_end)
    count, seed = (data.draw(st.integers(*limits)) for limits in ((1, 100), (0, 2**32 - 1)))
    rows = fast.samples(first, count, seed)
    samples = [slow.sample(place, seed) for place in range(first, first + count)]
    assert len(rows) == count
    assert rows.num_tokens == sum(len(sample[0]) for sample in samples)
    assert rows.num_masked == sum(len(sample[3]) for sample in samples)
    assert_rows_are(rows, samples)
