"""The relation between loss, size and tokens, and the worth of tokens that are read again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.fitting.loss import RELATION, REPETITIONS, worth

AMOUNTS = st.floats(1e3, 1e12)
MEASURED = {
    (1.327e6, 1.778e6): 5.010,
    (1.327e6, 3.549e6): 4.390,
    (1.327e6, 10.64e6): 3.679,
    (1.327e6, 17.54e6): 3.636,
    (3.146e6, 1.778e6): 4.860,
    (3.146e6, 3.549e6): 4.258,
    (3.146e6, 10.64e6): 3.655,
    (10.62e6, 1.778e6): 4.791,
    (10.62e6, 3.549e6): 4.169,
    (10.62e6, 10.64e6): 3.572,
}
"""Losses by encoder weights and tokens: the runs of recipes/LOG.md."""


@given(AMOUNTS, AMOUNTS)
def test_tokens_that_are_read_again_are_worth_less(tokens, in_text):
    assert 0 < worth(tokens, in_text) <= tokens
    assert worth(tokens, in_text) <= in_text * (1 + REPETITIONS) * (1 + 1e-9)
    assert worth(2 * tokens, in_text) >= worth(tokens, in_text)


def test_a_few_repetitions_are_worth_almost_as_much_as_new_text():
    assert worth(4e6, 1e6) == pytest.approx(4e6, rel=0.1)
    assert worth(1e6, 1e6) == worth(1e6, 1e9) == 1e6


@pytest.mark.parametrize("run", MEASURED)
def test_the_relation_holds_for_the_runs_that_it_was_fitted_on(run):
    assert RELATION.loss(*run) == pytest.approx(MEASURED[run], rel=0.025)


def test_more_weights_or_tokens_mean_less_loss():
    assert RELATION.loss(2e6, 1e7) < RELATION.loss(1e6, 1e7) > RELATION.loss(1e6, 2e7)
    assert RELATION.loss(1e30, 1e30) == pytest.approx(RELATION.irreducible, rel=1e-3)
