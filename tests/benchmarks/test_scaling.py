"""The fitted relation of loss to size and tokens."""

import pytest

from benchmarks import scaling
from bert_pipeline.recipe_files import load_recipe, recipe_files


def test_scaling_fits_the_relation_that_made_the_losses(tmp_path):
    made = scaling.Relation(1.5, 0.8, 0.4, 5.0, 0.35)
    grid = [(weights, tokens) for weights in (2e6, 3e6, 1e7) for tokens in (2e6, 4e6, 1.2e7, 5e7)]
    runs = [{"weights": w, "tokens": t, "mlm_loss": made.loss(w, t)} for w, t in grid]
    found, error = scaling.fit(runs)
    assert error < 1e-3
    assert found.loss(5e6, 2e7) == pytest.approx(made.loss(5e6, 2e7), rel=1e-3)
    with pytest.raises(ValueError, match="4 runs; remedy: at least 5"):
        scaling.fit(runs[:4])
    widths = {2e6: 192, 3e6: 256, 1e7: 384}
    scaling.draw(
        [run | {"width": widths[run["weights"]]} for run in runs],
        found,
        load_recipe(recipe_files()["small"]),
        tmp_path / "losses.png",
    )
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
