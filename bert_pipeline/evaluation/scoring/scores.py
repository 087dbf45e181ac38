"""The metrics of BLURB (Gu et al. 2021, arXiv 2007.15779, table 3).

A label is a set of items: the entities of a sentence, its words with a PICO label, the class of a pair, the classes of
a document. An item in both the gold and the predicted set is right. Every metric except the correlation is an F1 over
such items; accuracy is the F1 over all classes if every example has exactly one. Each metric is therefore a function of
sums over examples, and resampling the examples is one matrix product.

Entities are decoded like in conlleval and in seqeval's default mode, which BLURB uses: an entity may begin with I. The
strict scores require IOB2: a run that does not begin with B is not an entity. The gold labels are complete: entities
cut off by the input length count as missed.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bert_pipeline.evaluation.tasks.readers import Example, Sentence
from bert_pipeline.evaluation.tasks.task import TAGGING, Task

Label = Sequence[str] | str | float | frozenset[str]
"""Tags (ner, pico), a class (relation, qa), a score (similarity), or a set of classes (documents)."""

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)
"""Percentiles."""
WEIGHTS_AT_ONCE = 2**20
"""Bounds the memory of resampling: resamples x examples in memory at once."""
ROUNDING = 1e-12
"""A variance below this share of the sum of squares is rounding error and counts as 0."""


def gold_labels(examples: Iterable[Example]) -> list[Label]:
    return [example.tags if isinstance(example, Sentence) else example.label for example in examples]


def scores(task: Task, gold: Sequence[Label], predicted: Sequence[Label]) -> dict[str, float]:
    """Return `score`, the task's metric, and further scores as fractions (0 if nothing was found):

    ner         precision, recall, strict_precision, strict_recall, strict_f1; f1_<type> if there are several types
    pico        f1_<label>
    relation    precision, recall, macro_f1, f1_<class>, of the scored classes
    documents   precision, recall, macro_f1, f1_<class>
    qa          macro_f1, f1_<class>
    similarity  spearman, mse

    Raises ValueError as `statistics` does.
    """
    sums = statistics(task, gold, predicted).sum(0)
    found = {"score": float(score_of(task, sums))}
    if task.kind == "similarity":
        truth, guess = np.array(gold, dtype=float), np.array(predicted, dtype=float)
        found["spearman"] = float(_correlation(_moments(_ranks(truth), _ranks(guess)).sum(0)))
        found["mse"] = float(np.mean((guess - truth) ** 2)) if len(truth) else 0.0
        return found
    if task.kind in ("ner", "relation", "documents"):
        found |= _precision_and_recall(task, sums)
    if task.kind == "ner":
        strict = _counts(task, _items(task, gold, strict=True), _items(task, predicted, strict=True)).sum(0)
        found |= {f"strict_{name}": value for name, value in _precision_and_recall(task, strict).items()}
        found["strict_f1"] = float(score_of(task, strict))
    class_f1 = _f1(*_scored(task, sums))
    if task.kind in ("relation", "documents", "qa"):
        found["macro_f1"] = float(class_f1.mean())
    if len(class_f1) > 1:
        names = [name for name in task.labels if name not in task.unscored_labels]
        found |= {f"f1_{name}": float(f1) for name, f1 in zip(names, class_f1, strict=True)}
    return found


def statistics(task: Task, gold: Sequence[Label], predicted: Sequence[Label]) -> np.ndarray:
    """Return the contribution of each example to the sums from which the score is computed: float64 (examples, 3 m).

    Three parts of m columns: items in both gold and prediction, in the prediction, in gold. m is 2 for the correlation,
    otherwise the number of classes. Raises ValueError for an invalid label, with the example's number (from 1).
    """
    if len(gold) != len(predicted):
        raise ValueError(f"{task.name}: {len(predicted)} predictions for {len(gold)} examples; remedy: one per example")
    _check(task, "gold", gold)
    _check(task, "predicted", predicted)
    if task.kind == "similarity":
        return _moments(np.array(gold, dtype=float), np.array(predicted, dtype=float))
    if task.kind in TAGGING:
        _check_lengths(task, gold, predicted)
    return _counts(task, _items(task, gold), _items(task, predicted))


def score_of(task: Task, sums: np.ndarray) -> np.ndarray:
    """Compute the metric from sums (..., k) of `statistics`: float64 (...), 0 if nothing was found, never NaN."""
    if task.kind == "similarity":
        return _correlation(sums)
    right, guessed, true = _scored(task, sums)
    if task.kind == "pico":
        return _f1(right, guessed, true).mean(-1)
    return _f1(right.sum(-1), guessed.sum(-1), true.sum(-1))


def interval(task: Task, runs: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean score of `runs` (the `statistics` of each).

    Resamples both examples and runs with replacement, and scores all runs on the same examples: the pigeonhole
    bootstrap (Owen 2007, Annals of Applied Statistics 1(2)), which overestimates the variance of their interaction.
    With a single run it resamples only the examples, so the interval does not cover other seeds. With R runs it
    captures (R - 1)/R of their variance.
    """
    values = stack(task, runs)
    rng = np.random.default_rng(seed)
    means = [
        mean_of_resampled_runs(score_of(task, np.tensordot(weights, values, 1)), rng)
        for weights in resampled_examples(len(values), rng)
    ]
    low, high = np.percentile(np.concatenate(means), INTERVAL)
    return float(low), float(high)


def stack(task: Task, runs: Sequence[np.ndarray]) -> np.ndarray:
    """Stack runs to (examples, runs, k). Raises ValueError if there is none, or if the runs' gold labels differ."""
    if not runs or not len(runs[0]):
        raise ValueError(f"{task.name}: no run, or a run without examples; remedy: score at least one example")
    for n, run in enumerate(runs, start=1):
        check_same_gold(task, runs[0], run, f"run {n}")
    return np.stack(runs, axis=1)


def check_same_gold(task: Task, known: np.ndarray, other: np.ndarray, name: str) -> None:
    remedy = "remedy: compare predictions for the same file, in the same order"
    if known.shape != other.shape:
        raise ValueError(f"{task.name}: {name} has statistics of shape {other.shape}, not {known.shape}; {remedy}")
    gold = known.shape[1] // 3
    different = np.flatnonzero((known[:, -gold:] != other[:, -gold:]).any(1))
    if len(different):
        # Scores are standardised, so one different score changes all of them: the example is unknown.
        what = (
            "other gold scores" if task.kind == "similarity" else f"another gold label for example {different[0] + 1}"
        )
        raise ValueError(f"{task.name}: {name} has {what}; {remedy}")


def resampled_examples(num_examples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield how often each example was drawn: RESAMPLES rows in blocks of (resamples, examples)."""
    at_once = max(1, WEIGHTS_AT_ONCE // num_examples)
    for start in range(0, RESAMPLES, at_once):
        resamples = min(at_once, RESAMPLES - start)
        drawn = rng.integers(num_examples, size=(resamples, num_examples))
        drawn += np.arange(resamples)[:, None] * num_examples
        times = np.bincount(drawn.ravel(), minlength=drawn.size)
        yield times.reshape(drawn.shape).astype(float)


def mean_of_resampled_runs(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduce (resamples, runs) to (resamples,): the mean over runs drawn with replacement, as many as there are."""
    num_runs = scores.shape[1]
    times = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=len(scores))
    return (scores * times).sum(1) / num_runs


def entities(tags: Sequence[str], strict: bool = False) -> set[tuple[str, int, int]]:
    """Return (type, first word, end exclusive) of each entity; for plain tags (B without a type) the type is ""."""
    found = set()
    start, open_type = None, ""
    for n, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        continues = mark == "I" and start is not None and kind == open_type
        if start is not None and not continues:
            found.add((open_type, start, n))
            start = None
        if mark == "B" or (mark == "I" and start is None):
            start, open_type = n, kind
    return {(kind, start, end) for kind, start, end in found if tags[start].startswith("B") or not strict}


def _items(task: Task, labels: Sequence[Any], strict: bool = False) -> list[set[tuple]]:
    """Return the items of each label; the first element of an item is its class."""
    if task.kind == "ner":
        return [entities(tags, strict) for tags in labels]
    if task.kind == "pico":
        return [{(tag[2:], n) for n, tag in enumerate(tags) if tag != "O"} for tags in labels]
    return [{(name,) for name in _names(task, label)} for label in labels]


def _names(task: Task, label: Any) -> Iterable[str]:
    return [label] if task.kind in ("relation", "qa") else label


def _check(task: Task, side: str, labels: Sequence[Any]) -> None:
    if task.kind == "similarity":
        for n, score in enumerate(labels, start=1):
            if not math.isfinite(score):
                raise ValueError(f"{task.name}: the {side} score of example {n} is {score}; remedy: finite numbers")
        return
    known = task.tags if task.kind in TAGGING else task.labels
    if task.kind == "pico":
        known += tuple(f"B-{name}" for name in task.labels)
    for n, label in enumerate(labels, start=1):
        for name in _names(task, label):
            if name not in known:
                raise ValueError(
                    f"{task.name}: the {side} label of example {n} has {name!r}, not one of {', '.join(known)}; "
                    "remedy: correct it, or add it to the task's labels or label_aliases"
                )


def _check_lengths(task: Task, gold: Sequence[Any], predicted: Sequence[Any]) -> None:
    for n, (true, guess) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(true) != len(guess):
            raise ValueError(
                f"{task.name}: example {n} has {len(true)} words, but {len(guess)} predicted tags; "
                "remedy: one tag per word, O for words outside the model's input"
            )


def _counts(task: Task, gold: Sequence[set[tuple]], predicted: Sequence[set[tuple]]) -> np.ndarray:
    """Count the right, predicted and gold items per example and class: (examples, 3 classes)."""
    column = {name: n for n, name in enumerate(task.labels or [""])}
    counts = np.zeros((len(gold), 3, len(column)))
    for n, (true, guess) in enumerate(zip(gold, predicted, strict=True)):
        for part, items in enumerate((true & guess, guess, true)):
            for name, *_ in items:
                counts[n, part, column[name]] += 1
    return counts.reshape(len(gold), 3 * len(column))


def _scored(task: Task, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split sums of `_counts` into right, predicted and gold items, each (..., scored classes)."""
    scored = [n for n, name in enumerate(task.labels or [""]) if name not in task.unscored_labels]
    right, guessed, true = (part[..., scored] for part in np.split(sums, 3, axis=-1))
    return right, guessed, true


def _f1(right: np.ndarray, guessed: np.ndarray, true: np.ndarray) -> np.ndarray:
    return 2 * right / np.maximum(guessed + true, 1)  # counts are whole: below 1 means 0, and then none is right


def _precision_and_recall(task: Task, sums: np.ndarray) -> dict[str, float]:
    right, guessed, true = (part.sum() for part in _scored(task, sums))
    return {"precision": float(right / max(guessed, 1)), "recall": float(right / max(true, 1))}


def _moments(gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return (examples, 6): product and 1; prediction and its square; gold and its square. The values are standardised,
    which does not change the correlation and avoids cancellation in differences of sums."""
    x, y = _standardised(predicted), _standardised(gold)
    return np.stack([x * y, np.ones_like(x), x, x * x, y, y * y], axis=-1)


def _standardised(values: np.ndarray) -> np.ndarray:
    if not len(values) or values.min() == values.max():
        return np.zeros_like(values)  # rounding may make the mean differ from them; the deviation is 0
    centred = values - values.mean()
    centred /= np.abs(centred).max()  # so that squares neither overflow nor underflow
    return centred / np.sqrt(np.mean(centred * centred))


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation from sums of `_moments`; 0 if either side is constant."""
    xy, n, x, xx, y, yy = np.moveaxis(sums, -1, 0)
    n = np.maximum(n, 1)
    varies = (xx - x * x / n > ROUNDING * xx) & (yy - y * y / n > ROUNDING * yy)
    squared = np.where(varies, (xx - x * x / n) * (yy - y * y / n), 1)
    return np.where(varies, np.clip((xy - x * y / n) / np.sqrt(squared), -1, 1), 0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share the mean of their ranks."""
    _, which, times = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[which]
