"""How fast this machine is on a task, from some timed steps; for plans (evaluation/plan.py)."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_pipeline.evaluation.finetuning.finetune import begin, predict, training_step
from bert_pipeline.evaluation.finetuning.inputs import Input, TaskInputs
from bert_pipeline.evaluation.finetuning.protocol import SCORED, Protocol, Run, Setting

STEPS, PREDICTIONS = 12, 256
"""Steps and predicted examples that are timed."""


class Pace(NamedTuple):
    """Seconds."""

    step: float
    prediction: float
    """Of dev and test together."""


def measure_pace(model_dir: Path, inputs: TaskInputs, batch_size: int, protocol: Protocol) -> Pace:
    """Time steps and predictions on examples of all lengths, after a warm-up on the same ones."""
    run = Run("random_init", Setting(protocol.learning_rates[0], batch_size, 1), 1)
    model, optimizer, _ = begin(model_dir, inputs, run, protocol, None)
    learnable = _by_length(inputs.learnable)
    batches = [learnable[first : first + batch_size] for first in range(0, len(learnable), batch_size)]
    scored = _by_length([each for split in SCORED for each in inputs.splits[split]])
    timed, predicted = _spread(batches, STEPS), _spread(scored, PREDICTIONS)
    steps = _seconds(lambda: [training_step(model, optimizer, batch, 1, n).tolist() for n, batch in enumerate(timed)])
    model.restore_vocabulary([], protocol.weight_decay)
    predictions = _seconds(lambda: predict(model, predicted))
    return Pace(steps / len(timed), predictions * len(scored) / len(predicted))


def _by_length(examples: Sequence[Input]) -> list[Input]:
    return sorted(examples, key=lambda each: len(each.input_ids))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced."""
    return [items[n] for n in np.unique(np.linspace(0, len(items) - 1, count).astype(int))]


def _seconds(work: Callable[[], object]) -> float:
    work()
    clock = time.monotonic()
    work()
    return time.monotonic() - clock
