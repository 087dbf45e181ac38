"""Curves of loss over time."""

import pytest

from benchmarks import curves
from bert_pipeline.recipe_files import load_recipe, recipe_files


def test_the_clock_of_a_curve_leaves_compilation_out():
    seconds = [9.0] * curves.COMPILING + [0.5] * 20
    points = [{"step": 10, "mlm_loss": 6.0}, {"step": 40, "mlm_loss": 4.0}]
    assert [point["seconds"] for point in curves.with_seconds(seconds, points)] == [5.0, 20.0]


def test_the_time_to_a_loss_is_that_of_the_first_curve_that_reaches_it():
    slow = [{"seconds": 0.0, "mlm_loss": 7.0}, {"seconds": 100.0, "mlm_loss": 5.0}]
    fast = [{"seconds": 10.0, "mlm_loss": 6.5}, {"seconds": 30.0, "mlm_loss": 5.5}]
    assert curves.seconds_to(6.0, [slow]) == pytest.approx(50)
    assert curves.seconds_to(6.0, [slow, fast]) == pytest.approx(20)
    assert curves.seconds_to(5.2, [slow, fast]) == pytest.approx(90)
    assert curves.seconds_to(4.9, [slow, fast]) is None


@pytest.mark.parametrize("num_steps", [10, 1300])
def test_a_shortened_recipe_keeps_the_shares_of_its_phases(num_steps):
    recipe = load_recipe(recipe_files()["small"])
    shorter = curves.shortened(recipe, num_steps).pretrain
    assert shorter.num_steps == pytest.approx(num_steps, abs=len(shorter.phases))
    for before, after in zip(recipe.pretrain.phases, shorter.phases, strict=True):
        assert after.num_steps / shorter.num_steps == pytest.approx(
            before.num_steps / recipe.pretrain.num_steps, abs=0.1
        )
