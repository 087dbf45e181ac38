"""The multi-bootstrap of arXiv 2106.16163, section 3, one draw and one run at a time, and Student's t test by scipy.

It works on the labels of examples, not on sums: `score` maps (gold, predicted) to a number.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Runs = Sequence[Sequence[Sequence[Sequence]]]
"""Predicted labels: runs[arm][pretraining seed][fine-tuning seed][example]."""


def draws(gold: Sequence, runs: Runs, score: Callable, resamples: int, rng: random.Random) -> np.ndarray:
    """The mean score of each arm on each draw of seeds and examples: (resamples, arms)."""
    num_seeds, num_examples = len(runs[0]), len(gold)
    means = []
    for _ in range(resamples):
        seeds = rng.choices(range(num_seeds), k=num_seeds)
        examples = rng.choices(range(num_examples), k=num_examples)
        means.append([mean_score(gold, [arm[seed] for seed in seeds], score, examples) for arm in runs])
    return np.array(means)


def mean_score(gold: Sequence, of_seeds: Sequence, score: Callable, examples: Sequence[int]) -> float:
    """The mean over seeds of the mean over fine-tuning runs."""
    chosen = [gold[n] for n in examples]
    return float(np.mean([np.mean([score(chosen, [run[n] for n in examples]) for run in seed]) for seed in of_seeds]))


def p_value(gold: Sequence, ours: Sequence, theirs: Sequence, score: Callable, resamples: int, rng: random.Random):
    """Welch and Satterthwaite's t test of the difference: variance over seeds plus variance over examples."""
    everything = range(len(gold))
    by_seed = [
        mean_score(gold, [one], score, everything) - mean_score(gold, [other], score, everything)
        for one, other in zip(ours, theirs, strict=True)
    ]
    on_examples = []
    for _ in range(resamples):
        examples = rng.choices(everything, k=len(gold))
        on_examples.append(mean_score(gold, ours, score, examples) - mean_score(gold, theirs, score, examples))
    over_seeds, over_examples = np.var(by_seed, ddof=1) / len(by_seed), np.var(on_examples, ddof=1)
    degrees = (over_seeds + over_examples) ** 2 / (over_seeds**2 / (len(by_seed) - 1))
    return 2 * stats.t.sf(abs(np.mean(by_seed)) / (over_seeds + over_examples) ** 0.5, degrees)
