"""Compare several ways of pretraining, each run with several seeds, on the same examples.

The interval is the multi-bootstrap (Sellam et al. 2021, "The MultiBERTs", arXiv 2106.16163, section 3): it resamples
the pretraining seeds and the test examples jointly, with replacement. The fine-tuning runs of a pretraining seed are
averaged and stay together, so their variance is part of the variance over pretraining seeds. All arms are scored on the
same examples and the same drawn seeds: seeds are paired, because equal seeds give equal initial weights and an equal
order of pairs wherever sizes and data agree, and pairing is also valid where they do not. With one pretraining seed the
fine-tuning seeds are resampled instead, and the interval says nothing about other pretraining seeds.

With few seeds this interval is too narrow: resampling S seeds captures (S - 1)/S of their variance. Therefore the
p-value is stricter: it is that of Student's t test of the difference to the reference. Its variance is the one over
seeds (from the differences by seed, S - 1 degrees of freedom) plus the one over examples (from the bootstrap), its
degrees of freedom are those of Welch and Satterthwaite (Satterthwaite 1946, Biometrics Bulletin 2, 110-114). A
difference counts as shown only if the interval excludes 0 and the p-value, corrected for the number of arms (Holm
1979), is below 5 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr

from bert_pipeline.evaluation.scoring.scores import INTERVAL, RESAMPLES, resampled_examples, score_of, stack
from bert_pipeline.evaluation.scoring.significance import SIGNIFICANCE, holm
from bert_pipeline.evaluation.tasks.task import Task


class Scores(NamedTuple):
    """Scores of all runs: (arms, pretraining seeds, fine-tuning seeds), and of RESAMPLES resampled sets of examples."""

    observed: np.ndarray
    resampled: np.ndarray  # (RESAMPLES, arms, pretraining seeds, fine-tuning seeds)


@dataclass(frozen=True)
class Difference:
    """An arm's mean score minus that of the reference."""

    difference: float
    low: float
    high: float
    """95 % multi-bootstrap interval of the difference."""
    p_value: float | None
    """Two-sided; None with a single pretraining seed."""
    corrected_p_value: float | None
    """After Holm's correction for the number of arms."""

    @property
    def shown(self) -> bool:
        """Whether the difference is shown at the 5 % level."""
        excludes_zero = not self.low <= 0 <= self.high
        return excludes_zero and self.corrected_p_value is not None and self.corrected_p_value < SIGNIFICANCE


@dataclass(frozen=True)
class Standing:
    """The score of one arm."""

    mean: float
    low: float
    high: float
    """95 % multi-bootstrap interval of the mean."""
    pretraining_sd: float | None
    """Sample standard deviation over pretraining seeds of the mean over fine-tuning seeds; None for a single seed."""
    finetuning_sd: float | None
    """Standard deviation over the fine-tuning seeds of one model, pooled over the models; None for a single seed."""
    to_reference: Difference | None
    """None for the reference itself."""


def score_runs(task: Task, runs: Sequence[Sequence[Sequence[np.ndarray]]], rng: np.random.Generator) -> Scores:
    """Score `runs[arm][pretraining seed][fine-tuning seed]`, each the `statistics` of one run on the same examples.

    Raises ValueError if the gold labels of the runs differ.
    """
    values = stack(task, [run for arm in runs for seed in arm for run in seed])
    shape = (len(runs), len(runs[0]), len(runs[0][0]))
    resampled = [score_of(task, np.tensordot(drawn, values, 1)) for drawn in resampled_examples(len(values), rng)]
    return Scores(
        score_of(task, values.sum(0)).reshape(shape),
        np.concatenate(resampled).reshape(RESAMPLES, *shape),
    )


def mean_over_tasks(scores: Sequence[Scores]) -> Scores:
    """The mean score over tasks. The examples of each task were resampled independently."""
    return Scores(*(np.mean(parts, axis=0) for parts in zip(*scores, strict=True)))


def compare_arms(scores: Scores, reference: int, rng: np.random.Generator) -> list[Standing]:
    """The standing of each arm. `reference`: number of the arm that the others are compared with."""
    num_seeds = scores.observed.shape[1]
    single = num_seeds == 1  # then fine-tuning seeds are the units
    by_unit = scores.observed[:, 0] if single else scores.observed.mean(-1)  # (arms, units)
    resampled = scores.resampled[:, :, 0] if single else scores.resampled.mean(-1)  # (resamples, arms, units)
    num_units = by_unit.shape[1]
    shares = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=RESAMPLES) / num_units
    means = np.einsum("rau,ru->ra", resampled, shares)
    differences = means - means[:, [reference]]
    p_values = {
        arm: _p_value(by_unit[arm] - by_unit[reference], (resampled[:, arm] - resampled[:, reference]).mean(-1))
        for arm in range(len(by_unit))
        if arm != reference and not single
    }
    corrected = holm(p_values)

    def difference(arm: int) -> Difference:
        low, high = np.percentile(differences[:, arm], INTERVAL)
        exact = float(by_unit[arm].mean() - by_unit[reference].mean())
        return Difference(exact, float(low), float(high), p_values.get(arm), corrected.get(arm))

    standings = []
    for arm, observed in enumerate(scores.observed):
        low, high = np.percentile(means[:, arm], INTERVAL)
        over_finetuning = observed.var(-1, ddof=1).mean() ** 0.5 if observed.shape[-1] > 1 else None
        standings.append(
            Standing(
                mean=float(observed.mean()),
                low=float(low),
                high=float(high),
                pretraining_sd=None if single else float(observed.mean(-1).std(ddof=1)),
                finetuning_sd=over_finetuning if over_finetuning is None else float(over_finetuning),
                to_reference=None if arm == reference else difference(arm),
            )
        )
    return standings


def _p_value(by_seed: np.ndarray, resampled: np.ndarray) -> float:
    """Two-sided p of the mean of `by_seed`, differences by seed; `resampled`: the mean on resampled examples."""
    over_seeds, over_examples = by_seed.var(ddof=1) / len(by_seed), resampled.var(ddof=1)
    variance, difference = over_seeds + over_examples, abs(by_seed.mean())
    if variance == 0:
        return 1.0 if difference == 0 else 0.0
    degrees = variance**2 / (over_seeds**2 / (len(by_seed) - 1)) if over_seeds else np.inf
    return float(2 * stdtr(degrees, -difference / variance**0.5))
