"""Which held-out pairs are measured, and what their means are."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from bert_pipeline.training.batches.dataset import PairDataset
from bert_pipeline.training.batches.packing import pack
from bert_pipeline.training.heldout import chosen_rows, heldout_scores
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model


@pytest.mark.parametrize(
    ("pairs", "num_rows", "rows"),
    [(4, 10, [0, 2, 5, 7]), (1, 10, [0]), (3, 3, [0, 1, 2]), (5, 3, [0, 1, 2]), (5, 0, [])],
)
def test_rows_are_spread_evenly_over_all_of_them(pairs, num_rows, rows):
    assert chosen_rows(pairs, num_rows).tolist() == rows


def test_a_part_of_the_rows_has_pairs_of_every_shard():
    """Three shards of one source each, as a corpus of three files has them: the parts are those of the whole."""
    shard = np.repeat([0, 1, 2], [600, 1500, 900])
    assert np.bincount(shard[chosen_rows(100, len(shard))]).tolist() == [20, 50, 30]


def test_scores_are_the_means_over_the_chosen_rows(tiny, tiny_recipe):
    dataset = PairDataset(tiny["nsp_dataset"].path, tiny["masked_dataset"].path, 64, "heldout")
    loss = PretrainingLoss(build_model(tiny_recipe.model, 800, 1))
    pairs = dataset.num_rows(0) // 3
    found = heldout_scores(loss, dataset, pairs, 512, Accelerator(cpu=True))
    with torch.inference_mode():
        rows = dataset.rows(0, np.arange(pairs) * dataset.num_rows(0) // pairs)
        sums = loss.eval()(**pack(rows))
    assert pairs > 3 and rows.num_labelled
    assert found["mlm_loss"] == pytest.approx(float(sums.mlm_loss) / rows.num_masked, rel=1e-5)
    assert found["nsp_loss"] == pytest.approx(float(sums.nsp_loss) / rows.num_labelled, rel=1e-5)
