"""Intervals and p-values of several arms, against other code and in simulation."""

import random

import numpy as np
import pytest
from oracles import multibootstrap as oracle
from scipy import stats

from bert_pipeline.evaluation.scoring import multibootstrap, scores
from bert_pipeline.evaluation.scoring.multibootstrap import Scores, compare_arms, mean_over_tasks, score_runs
from bert_pipeline.evaluation.scoring.scores import statistics
from bert_pipeline.evaluation.scoring.significance import holm
from bert_pipeline.evaluation.tasks.task import Task

NER = Task(name="small-ner", title="", kind="ner", version="1", terms="", folder="small")


@pytest.fixture
def fewer_draws(monkeypatch):
    monkeypatch.setattr(scores, "RESAMPLES", 400)
    monkeypatch.setattr(multibootstrap, "RESAMPLES", 400)


def tags(rng: random.Random, num_examples: int) -> list[tuple[str, ...]]:
    return [tuple(rng.choices(("O", "B"), (3, 1), k=3)) for _ in range(num_examples)]


def predicted(rng: random.Random, gold, wrong: float) -> list[tuple[str, ...]]:
    flip = {"O": "B", "B": "O"}
    return [tuple(flip[tag] if rng.random() < wrong else tag for tag in sentence) for sentence in gold]


def runs_of(rng: random.Random, gold, skills, num_seeds: int, num_runs: int, luck: float):
    """Predictions by arm, pretraining seed and fine-tuning seed; each seed shifts the share of wrong tags."""
    return [
        [
            [predicted(rng, gold, max(0.0, wrong + shift)) for _ in range(num_runs)]
            for shift in [rng.gauss(0, luck) for _ in range(num_seeds)]
        ]
        for wrong in skills
    ]


def test_interval_and_p_agree_with_the_literal_procedure():
    rng = random.Random(3)
    gold = tags(rng, 60)
    runs = runs_of(rng, gold, (0.2, 0.14, 0.19), 4, 2, 0.02)
    values = [[[statistics(NER, gold, run) for run in seed] for seed in arm] for arm in runs]
    ours = compare_arms(score_runs(NER, values, np.random.default_rng(1)), 0, np.random.default_rng(2))

    def f1(true, guess):  # every entity is one word
        pairs = [pair for one, other in zip(true, guess, strict=True) for pair in zip(one, other, strict=True)]
        return 2 * pairs.count(("B", "B")) / sum((pair[0] == "B") + (pair[1] == "B") for pair in pairs)

    drawn = oracle.draws(gold, runs, f1, 700, random.Random(4))
    for arm, standing in enumerate(ours):
        assert standing.mean == pytest.approx(np.mean([[f1(gold, run) for run in seed] for seed in runs[arm]]))
        low, high = np.percentile(drawn[:, arm], (2.5, 97.5))
        tolerance = 0.12 * (high - low)
        assert (standing.low, standing.high) == (pytest.approx(low, abs=tolerance), pytest.approx(high, abs=tolerance))
    for arm in (1, 2):
        found = ours[arm].to_reference
        low, high = np.percentile(drawn[:, arm] - drawn[:, 0], (2.5, 97.5))
        tolerance = 0.12 * (high - low)
        assert (found.low, found.high) == (pytest.approx(low, abs=tolerance), pytest.approx(high, abs=tolerance))
        expected = oracle.p_value(gold, runs[arm], runs[0], f1, 700, random.Random(5))
        assert found.p_value == pytest.approx(expected, rel=0.25)
    assert ours[0].to_reference is None


def test_spreads_are_those_of_seeds_and_of_runs_within_a_seed():
    observed = np.array([[[0.5, 0.6], [0.7, 0.9]]])
    resampled = np.broadcast_to(observed, (scores.RESAMPLES, *observed.shape))
    [standing] = compare_arms(Scores(observed, resampled), 0, np.random.default_rng(1))
    assert standing.mean == pytest.approx(0.675)
    assert standing.pretraining_sd == pytest.approx(np.std([0.55, 0.8], ddof=1))
    assert standing.finetuning_sd == pytest.approx(np.sqrt((0.1**2 / 2 + 0.2**2 / 2) / 2))


def test_a_shift_of_all_arms_by_the_seed_is_no_difference(fewer_draws):
    """Seeds are paired: what a seed adds to every arm leaves the difference alone."""
    rng = np.random.default_rng(2)
    shift, noise = rng.normal(0, 0.1, 6), rng.normal(0, 1e-3, (2, 6))
    observed = (0.5 + shift + noise + np.array([[0.0], [0.01]]))[..., None]
    standings = compare_arms(Scores(observed, np.broadcast_to(observed, (400, 2, 6, 1))), 0, rng)
    found = standings[1].to_reference
    assert found.high - found.low < 0.01 < standings[0].high - standings[0].low
    assert found.shown and found.p_value == pytest.approx(stats.ttest_1samp(noise[1] - noise[0] + 0.01, 0).pvalue)


def test_one_pretraining_seed_shows_nothing(fewer_draws):
    rng = random.Random(1)
    gold = tags(rng, 40)
    runs = runs_of(rng, gold, (0.3, 0.05), 1, 3, 0.0)
    values = [[[statistics(NER, gold, run) for run in seed] for seed in arm] for arm in runs]
    first, second = compare_arms(score_runs(NER, values, np.random.default_rng(1)), 0, np.random.default_rng(2))
    assert first.pretraining_sd is None and first.finetuning_sd > 0 and first.high > first.low
    assert second.to_reference.low > 0 and second.to_reference.p_value is None and not second.to_reference.shown


def test_equal_arms_have_no_difference(fewer_draws):
    observed = np.full((2, 3, 2), 0.5)
    standings = compare_arms(Scores(observed, np.broadcast_to(observed, (400, 2, 3, 2))), 0, np.random.default_rng(1))
    assert standings[1].to_reference.p_value == 1.0 and not standings[1].to_reference.shown


def test_equal_seeds_leave_the_normal_distribution(fewer_draws):
    observed = np.broadcast_to([[[0.5]], [[0.51]]], (2, 3, 1))
    over_examples = np.random.default_rng(6).normal(0, 0.005, (400, 1, 1, 1)) * [[[0.0]], [[1.0]]]
    standings = compare_arms(Scores(observed, observed + over_examples), 0, np.random.default_rng(1))
    expected = 2 * stats.norm.sf(0.01 / over_examples[:, 1].std(ddof=1))
    assert standings[1].to_reference.p_value == pytest.approx(expected)


def test_the_mean_over_tasks_draws_the_same_seeds_for_all_tasks(fewer_draws):
    rng = np.random.default_rng(4)
    one, other = (Scores(rng.random((2, 3, 2)), rng.random((400, 2, 3, 2))) for _ in range(2))
    mean = mean_over_tasks([one, other])
    np.testing.assert_allclose(mean.observed, (one.observed + other.observed) / 2)
    np.testing.assert_allclose(mean.resampled, (one.resampled + other.resampled) / 2)


def test_equal_arms_are_rarely_found_different(fewer_draws):
    """Three arms, of which none differs: some difference counts as shown in at most about 5 % of the studies."""
    rng, studies, wrong = np.random.default_rng(5), 400, 0
    for _ in range(studies):
        by_seed = rng.normal(0.7, 0.02, (3, 3, 1))
        resampled = by_seed + rng.normal(0, 0.005, (400, 3, 1, 1))
        standings = compare_arms(Scores(by_seed, resampled), 0, rng)
        wrong += any(each.to_reference and each.to_reference.shown for each in standings)
    assert wrong / studies < 0.08


def test_holm_is_the_published_procedure():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}
