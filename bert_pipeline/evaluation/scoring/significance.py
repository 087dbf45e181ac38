"""Significance of the difference between two models on a task, given the variance over examples and over seeds.

The statistic is the difference of the mean scores over runs. No single test covers both sources of variance, so there
are two:

The interval is the pigeonhole bootstrap of `scores.interval`, applied to the difference: it resamples the examples,
jointly for both models, and the runs of each model separately. It covers other examples and other seeds, and tends to
be too wide rather than too narrow.

The p-value comes from approximate randomization (Noreen 1989, Computer Intensive Methods for Testing Hypotheses;
Yeh 2000, COLING, pages 947-953). Null hypothesis: on each example, the outputs of the two models are exchangeable.
Each of 10,000 draws swaps every example between the models with probability 1/2, in all pairs of runs at once; p is
the share of draws with a difference at least as large in absolute value. The unit is the example, not the example in
one run, because the runs of a model are right and wrong on the same examples. The test does not resample runs: if
seeds move the score of whole runs, p alone is too small. A difference is therefore called significant only if the
interval also excludes 0.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bert_pipeline.evaluation.scoring.scores import (
    INTERVAL,
    RESAMPLES,
    WEIGHTS_AT_ONCE,
    check_same_gold,
    mean_of_resampled_runs,
    resampled_examples,
    score_of,
    stack,
)
from bert_pipeline.evaluation.tasks.task import Task

Name = TypeVar("Name", bound=Hashable)

SIGNIFICANCE = 0.05
TOLERANCE = 1e-12
"""Score differences that differ by less than this (rounding errors) count as equal."""


@dataclass(frozen=True)
class Comparison:
    difference: float
    """Our mean score minus theirs."""
    low: float
    high: float
    """95 % interval of the difference, over examples and runs."""
    p_value: float
    """Two-sided, over examples."""

    @property
    def significant(self) -> bool:
        """At the 5 % level, over examples (p-value) and seeds (interval)."""
        return self.p_value < SIGNIFICANCE and not self.low <= 0 <= self.high


def compare(task: Task, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], seed: int) -> Comparison:
    """Compare two models by the `statistics` of their runs, on the same examples in the same order.

    Runs at equal positions form a pair (use equal seeds). If the numbers of runs differ, runs are paired in rotation,
    each of a model equally often. Raises ValueError if the gold labels of the examples differ.
    """
    our_values, their_values = stack(task, ours), stack(task, theirs)
    check_same_gold(task, ours[0], theirs[0], "the other model")
    difference = float(_mean_score(task, our_values.sum(0)) - _mean_score(task, their_values.sum(0)))
    low, high = _interval(task, our_values, their_values, np.random.default_rng([seed, 0]))
    p_value = _p_value(task, our_values, their_values, np.random.default_rng([seed, 1]))
    return Comparison(difference, low, high, p_value)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """The p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    corrected, at_least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        at_least = min(1.0, max(at_least, (len(p_values) - rank) * p_values[name]))
        corrected[name] = at_least
    return corrected


def _mean_score(task: Task, sums: np.ndarray) -> np.ndarray:
    """Reduce (..., runs, k) to (...)."""
    return score_of(task, sums).mean(-1)


def _interval(task: Task, ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    differences = []
    for weights in resampled_examples(len(ours), rng):
        our_mean, their_mean = (
            mean_of_resampled_runs(score_of(task, np.tensordot(weights, side, 1)), rng) for side in (ours, theirs)
        )
        differences.append(our_mean - their_mean)
    low, high = np.percentile(np.concatenate(differences), INTERVAL)
    return float(low), float(high)


def _p_value(task: Task, ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> float:
    pairs = np.arange(math.lcm(ours.shape[1], theirs.shape[1]))
    ours, theirs = ours[:, pairs % ours.shape[1]], theirs[:, pairs % theirs.shape[1]]
    our_sums, their_sums = ours.sum(0), theirs.sum(0)
    observed = abs(_mean_score(task, our_sums) - _mean_score(task, their_sums)) - TOLERANCE
    as_large = 0
    at_once = max(1, WEIGHTS_AT_ONCE // max(len(ours), ours[0].size))
    for start in range(0, RESAMPLES, at_once):
        exchanged = rng.integers(2, size=(min(at_once, RESAMPLES - start), len(ours)), dtype=np.uint8)
        moved = np.tensordot(exchanged.astype(float), theirs - ours, 1)
        differences = _mean_score(task, our_sums + moved) - _mean_score(task, their_sums - moved)
        as_large += int((np.abs(differences) >= observed).sum())
    return (as_large + 1) / (RESAMPLES + 1)  # the observed assignment counts as one of the draws
