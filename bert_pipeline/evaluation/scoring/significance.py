"""Is one model better than another on a task, or was it the luck of the examples or of the seeds?

The difference is that of the mean scores over runs. Two answers, since no one test covers both kinds of luck:

The interval draws the examples anew, the same ones for both models, and the runs of each model by themselves: the
pigeonhole bootstrap of `scores.interval`, of a difference. It covers other examples and other seeds, and is rather
too wide than too narrow.

The p-value is that of approximate randomization (Noreen 1989, Computer Intensive Methods for Testing Hypotheses;
Yeh 2000, COLING, pages 947-953). Its null hypothesis: on any example, the outputs of one model's runs might as well
be those of the other's. So in each of 10,000 draws every example is exchanged between the models with probability
1/2, in all pairs of runs at once, and p is the share of draws whose difference is at least as large, to either side.
The example and not its single run is the unit, since the runs of a model are right and wrong on the same examples.
The runs are taken as they are: where seeds move whole runs up and down, p alone claims too much. A difference is
therefore called significant only where the interval, too, leaves out 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

TOLERANCE = 1e-12
"""Differences of scores that are equal but for rounding count as equal."""


@dataclass(frozen=True)
class Comparison:
    difference: float
    """Of the mean scores, ours less theirs."""
    low: float
    high: float
    """95 % interval of the difference, over examples and runs."""
    p_value: float
    """Two-sided, over examples."""

    @property
    def significant(self) -> bool:
        """At 5 %, over examples (p-value) and seeds (interval)."""
        return self.p_value < 0.05 and not self.low <= 0 <= self.high


def compare(task: Task, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], seed: int) -> Comparison:
    """Two models by the `statistics` of their runs, equal seeds at equal places, on the same examples in one order.

    Runs of unequal number are paired in rotation, each as often as the others of its side. Raises ValueError where
    the gold labels of the examples differ.
    """
    our_values, their_values = stack(task, ours), stack(task, theirs)
    check_same_gold(task, ours[0], theirs[0], "the other model")
    difference = float(_mean_score(task, our_values.sum(0)) - _mean_score(task, their_values.sum(0)))
    low, high = _interval(task, our_values, their_values, np.random.default_rng([seed, 0]))
    p_value = _p_value(task, our_values, their_values, np.random.default_rng([seed, 1]))
    return Comparison(difference, low, high, p_value)


def _mean_score(task: Task, sums: np.ndarray) -> np.ndarray:
    """(..., runs, k) to (...)."""
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
    seen = abs(_mean_score(task, our_sums) - _mean_score(task, their_sums)) - TOLERANCE
    as_large = 0
    at_once = max(1, WEIGHTS_AT_ONCE // max(len(ours), ours[0].size))
    for start in range(0, RESAMPLES, at_once):
        exchanged = rng.integers(2, size=(min(at_once, RESAMPLES - start), len(ours)), dtype=np.uint8)
        moved = np.tensordot(exchanged.astype(float), theirs - ours, 1)
        differences = _mean_score(task, our_sums + moved) - _mean_score(task, their_sums - moved)
        as_large += int((np.abs(differences) >= seen).sum())
    return (as_large + 1) / (RESAMPLES + 1)  # what was seen is one of the possible exchanges
