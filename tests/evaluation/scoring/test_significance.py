import itertools

import numpy as np
import pytest
from scipy import stats

from bert_pipeline.evaluation.scoring import scores, significance
from bert_pipeline.evaluation.scoring.scores import score_of, statistics
from bert_pipeline.evaluation.scoring.significance import compare
from bert_pipeline.evaluation.tasks.task import Task


def task(kind, labels=()):
    given = {"score_range": (0.0, 4.0)} if kind == "similarity" else {"labels": labels}
    return Task(name=f"small-{kind}", title="", kind=kind, version="1", terms="", folder="small", **given)


NER, QA, SIMILARITY = task("ner"), task("qa", ("yes", "no")), task("similarity")


@pytest.fixture
def fewer_draws(monkeypatch):
    """For simulations that repeat a comparison hundreds of times."""
    monkeypatch.setattr(scores, "RESAMPLES", 999)
    monkeypatch.setattr(significance, "RESAMPLES", 999)


def runs_of_a_model(rng, gold, difficulty, num_runs, skill=0.0, luck=0.0):
    """Simulated NER counts: sentences with `gold` entities of varying difficulty; `luck` shifts a whole run."""
    runs = []
    for _ in range(num_runs):
        chance = 1 / (1 + np.exp(difficulty - 1.5 - skill - rng.normal(0, luck)))
        right = rng.binomial(gold, chance)
        runs.append(np.stack([right, right + rng.poisson(0.3 * (1 - chance)), gold], axis=1).astype(float))
    return runs


def two_models(rng, num_sentences=150, num_runs=2, skill=0.0, luck=0.0):
    gold, difficulty = rng.integers(0, 4, num_sentences), rng.normal(0, 1.5, num_sentences)
    return [runs_of_a_model(rng, gold, difficulty, num_runs, extra, luck) for extra in (skill, 0.0)]


def mean_score(of, runs):
    return np.mean([score_of(of, run.sum(0)) for run in runs])


def p_of_all_exchanges(of, ours, theirs):
    """Reference implementation: enumerates every way to exchange examples between paired runs."""
    differences = []
    for exchanged in itertools.product([False, True], repeat=len(ours[0])):
        mask = np.array(exchanged)[:, None]
        differences.append(
            mean_score(of, [np.where(mask, b, a) for a, b in zip(ours, theirs, strict=True)])
            - mean_score(of, [np.where(mask, a, b) for a, b in zip(ours, theirs, strict=True)])
        )
    return (np.abs(differences) >= abs(differences[0]) - 1e-9).mean()


@pytest.mark.parametrize("seed", range(4))
def test_p_is_the_share_of_all_exchanges(seed):
    ours, theirs = two_models(np.random.default_rng(seed), num_sentences=9, num_runs=2, skill=0.7 * seed)
    found = compare(NER, ours, theirs, seed=0)
    assert found.difference == pytest.approx(mean_score(NER, ours) - mean_score(NER, theirs), abs=1e-12)
    assert found.p_value == pytest.approx(p_of_all_exchanges(NER, ours, theirs), abs=0.015)


def test_p_of_a_correlation_is_the_share_of_all_exchanges():
    gold, good, bad = np.random.default_rng(3).normal(size=(3, 9))
    ours, theirs = [statistics(SIMILARITY, gold, gold + good)], [statistics(SIMILARITY, gold, gold + 3 * bad)]
    found = compare(SIMILARITY, ours, theirs, seed=0)
    assert found.difference == pytest.approx(
        stats.pearsonr(gold, gold + good)[0] - stats.pearsonr(gold, gold + 3 * bad)[0], abs=1e-12
    )
    assert found.p_value == pytest.approx(p_of_all_exchanges(SIMILARITY, ours, theirs), abs=0.015)


def test_p_is_about_uniform_where_the_models_are_alike(fewer_draws):
    rng = np.random.default_rng(4)
    p_values = [compare(NER, *two_models(rng), seed=n).p_value for n in range(300)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.085
    assert 0.42 <= np.mean(np.array(p_values) < 0.5) <= 0.58
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_variance_over_seeds_alone_is_not_significant(fewer_draws):
    """Seeds shift whole runs: p does not resample runs and is too small; the interval is not too narrow."""
    rng = np.random.default_rng(5)
    found = [compare(NER, *two_models(rng, num_runs=5, luck=0.3), seed=n) for n in range(100)]
    assert np.mean([comparison.p_value < 0.05 for comparison in found]) > 0.2
    assert np.mean([comparison.significant for comparison in found]) <= 0.09


def test_a_clear_difference_is_found():
    found = compare(NER, *two_models(np.random.default_rng(6), num_sentences=500, num_runs=3, skill=0.6), seed=0)
    assert found.significant
    assert found.p_value == pytest.approx(1 / 10_001), "no draw was as large; the observed assignment counts as one"
    assert 0 < found.low < found.difference < found.high


def test_the_interval_holds_the_true_difference(fewer_draws):
    rng = np.random.default_rng(7)
    truth = np.mean(
        [np.subtract(*(mean_score(NER, side) for side in two_models(rng, 20_000, 1, 0.4))) for _ in range(5)]
    )
    held = 0
    for n in range(100):
        found = compare(NER, *two_models(rng, num_sentences=200, num_runs=4, skill=0.4, luck=0.05), seed=n)
        held += found.low <= truth <= found.high
    assert held >= 90


@pytest.mark.parametrize("num_runs", [1, 3])
def test_swapping_the_models_changes_only_the_sign(num_runs):
    ours, theirs = two_models(np.random.default_rng(8), num_runs=num_runs, skill=0.2)
    found, swapped = compare(NER, ours, theirs, seed=1), compare(NER, theirs, ours, seed=1)
    assert (swapped.difference, swapped.p_value) == (-found.difference, found.p_value)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.003)


def test_identical_predictions_have_no_difference():
    run, other = two_models(np.random.default_rng(9), num_runs=2)[0]
    alone = compare(NER, [run], [run], seed=0)
    assert (alone.difference, alone.low, alone.high, alone.p_value) == (0.0, 0.0, 0.0, 1.0)
    both = compare(NER, [run, other], [run, other], seed=0)
    assert (both.difference, both.p_value, both.significant) == (0.0, 1.0, False)
    assert both.low < 0 < both.high, "the runs of each model are resampled separately"


def test_runs_of_unequal_number_weigh_alike():
    ours, (theirs, _) = two_models(np.random.default_rng(10), skill=0.2)
    found, repeated = compare(NER, ours, [theirs], seed=0), compare(NER, ours, [theirs, theirs], seed=0)
    assert (found.difference, found.p_value) == pytest.approx((repeated.difference, repeated.p_value), abs=1e-12)
    three, two = two_models(np.random.default_rng(11), num_sentences=9, num_runs=3, skill=1)
    found = compare(NER, three, two[:2], seed=0)
    assert found.difference == pytest.approx(mean_score(NER, three) - mean_score(NER, two[:2]), abs=1e-12)
    assert found.p_value == pytest.approx(p_of_all_exchanges(NER, three * 2, two[:2] * 3), abs=0.015)


def test_a_comparison_is_a_function_of_the_seed():
    models = two_models(np.random.default_rng(12))
    first, again, other = (compare(NER, *models, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_other_examples_are_refused():
    known = statistics(QA, ["yes", "no"], ["no", "no"])
    with pytest.raises(ValueError, match="the other model has another gold label for example 1"):
        compare(QA, [known], [statistics(QA, ["no", "no"], ["no", "no"])], seed=0)
    with pytest.raises(ValueError, match="the other model has statistics of shape"):
        compare(QA, [known], [statistics(QA, ["yes"], ["no"])], seed=0)
    with pytest.raises(ValueError, match="the other model has other gold scores"):
        compare(
            SIMILARITY,
            [statistics(SIMILARITY, [1.0, 2.0, 3.0], [0.0, 1.0, 2.0])],
            [statistics(SIMILARITY, [1.0, 2.0, 3.5], [0.0, 1.0, 2.0])],
            seed=0,
        )
    with pytest.raises(ValueError, match="no run"):
        compare(QA, [known], [], seed=0)
