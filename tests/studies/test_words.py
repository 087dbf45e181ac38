"""The numbers that the sentences of a study state."""

import numpy as np
import pytest

from bert_pipeline.studies.words import COVERAGE, p_text


@pytest.mark.parametrize("seeds", COVERAGE)
def test_the_stated_coverage_is_that_of_a_simulation(seeds):
    rng = np.random.default_rng(seeds)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=1000) / seeds
    differences = rng.normal(size=(4000, seeds))
    low, high = np.percentile(differences @ weights.T, (2.5, 97.5), axis=1)
    covered = ((low <= 0) & (high >= 0)).mean()
    assert 100 * covered == pytest.approx(COVERAGE[seeds], abs=2.5)


@pytest.mark.parametrize(("p_value", "text"), [(3e-9, "< 0.0001"), (0.0123, "0.012"), (0.456, "0.46"), (1.0, "1.00")])
def test_p_values_have_two_digits(p_value, text):
    assert p_text(p_value) == text
