"""One fine-tuning run, as in BLURB (Gu et al. 2021, arXiv 2007.15779, sections 2.4 and 2.5).

All weights are trained, with dropout, by AdamW with linear warm-up and linear decay. The model after the last epoch is
scored; no epoch is selected on dev.

For a given thread count, device type and computation (engine.py), a run is a function of (model, data, settings, seed):
its batches depend on (seed, epoch) and its dropout on (seed, step). On CPUs a killed run therefore resumes from its
checkpoint bit for bit, in both precisions. On GPUs torch is set to deterministic algorithms, but the backward pass of
its FlashAttention has none here.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_pipeline.core.randomness import DROPOUT, draw, new_stream
from bert_pipeline.evaluation.finetuning.batches import batches_by_length, epoch_batches
from bert_pipeline.evaluation.finetuning.engine import Computation, TaskModel, usual_computation
from bert_pipeline.evaluation.finetuning.heads import build_task_model, read_logits
from bert_pipeline.evaluation.finetuning.inputs import Input, TaskInputs
from bert_pipeline.evaluation.finetuning.protocol import SCORED, Protocol, Run
from bert_pipeline.evaluation.scoring.scores import Label
from bert_pipeline.recipe import PhaseRecipe
from bert_pipeline.training.checkpoint import Checkpoints
from bert_pipeline.training.model.optim import decay_groups, learning_rate, set_learning_rate

MAX_GRAD_NORM = 1.0
PREDICTION_TOKENS = {"cpu": 2_048, "cuda": 8_192}
"""Tokens per prediction batch, with padding, by device. On two CPU threads larger batches are slower (LOG.md)."""
STEPS_BETWEEN_CHECKS = 100
"""Losses stay on the device for so many steps before they are checked."""
SECONDS_BETWEEN_CHECKPOINTS = 120.0
"""A kill loses at most this much work; a checkpoint of a BERT-base is 1.3 GB."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    predicted: dict[str, list[Label]]
    """A label for each example of dev and test."""
    epoch_losses: list[float]
    """Mean training loss of each epoch."""
    fresh_pooler: bool
    """The checkpoint has no pooler, so a randomly initialised one was trained as part of the head."""
    model: TaskModel = field(compare=False, repr=False)


def finetune(
    model_dir: Path,
    inputs: TaskInputs,
    run: Run,
    protocol: Protocol,
    work: Path,
    on_step: Callable[[int, int], None],
    how: Computation | None = None,
) -> Outcome:
    """Fine-tune once and predict dev and test. Resumes from the newest checkpoint in `work`, if there is one.

    `on_step(steps done, steps in all)` is called before the first step and after each. `how`: the usual one of
    this machine if None. Raises FloatingPointError if a loss or a gradient norm is not finite.
    """
    training = Training(model_dir, inputs, run, protocol, work, how)
    training.train(len(training.batches), on_step)
    training.restore_vocabulary()
    predicted = {split: predict(training.model, inputs.splits[split]) for split in SCORED}
    by_epoch = np.array(training.losses).reshape(run.setting.num_epochs, -1)
    return Outcome(predicted, by_epoch.mean(1).tolist(), training.fresh_pooler, training.model)


def finetune_half(
    model_dir: Path, inputs: TaskInputs, run: Run, protocol: Protocol, work: Path, on_step: Callable[[int, int], None]
) -> list[Label] | None:
    """Fine-tune for half of the epochs, rounded down, save a checkpoint, and predict dev; None if the newest checkpoint
    in `work` is later. `finetune` resumes the run.
    """
    training = Training(model_dir, inputs, run, protocol, work, None)
    half = len(training.batches) // run.setting.num_epochs * (run.setting.num_epochs // 2)
    if training.done > half:
        return None
    training.train(half, on_step)
    training.save()
    training.restore_vocabulary()
    return predict(training.model, inputs.splits["dev"])


class Training:
    """A run between its checkpoints."""

    def __init__(
        self, model_dir: Path, inputs: TaskInputs, run: Run, protocol: Protocol, work: Path, how: Computation | None
    ) -> None:
        """Build the model and restore the newest checkpoint in `work`, if there is one."""
        self.run, self.protocol, self.learnable = run, protocol, inputs.learnable
        self.model, self.optimizer, self.fresh_pooler = begin(model_dir, inputs, run, protocol, how)
        rate, batch_size, num_epochs = run.setting
        lengths = [len(each.input_ids) for each in self.learnable]
        epochs = [epoch_batches(lengths, batch_size, run.seed, epoch) for epoch in range(num_epochs)]
        self.batches = [batch for epoch in epochs for batch in epoch]
        self.schedule = PhaseRecipe(
            max_seq_length=protocol.max_seq_length,
            num_steps=len(self.batches),
            learning_rate=rate,
            warmup_steps=round(protocol.warmup_fraction * len(self.batches)),
        )
        # A checkpoint of another computation is left alone: a run is of one precision.
        self.checkpoints = Checkpoints(work / "-".join(("checkpoints", *self.model.how)), run.name, kept=1)
        found = self.checkpoints.load_newest(self.model.model, self.optimizer)
        self.done, state = found or (0, {"losses": []})
        self.losses: list[float] = state["losses"]
        if found:
            log.info("%s: resuming after step %d of %d", run.name, self.done, len(self.batches))

    def train(self, until: int, on_step: Callable[[int, int], None]) -> None:
        """Train up to step `until`, with checkpoints in between."""
        recent: list[torch.Tensor] = []  # (loss, gradient norm) of steps, on the device to avoid a sync per step
        saved = time.monotonic()
        on_step(self.done, len(self.batches))
        for number in range(self.done, until):
            set_learning_rate(self.optimizer, learning_rate((self.schedule,), number))
            batch = [self.learnable[n] for n in self.batches[number]]
            recent.append(training_step(self.model, self.optimizer, batch, self.run.seed, number))
            self.done = number + 1
            save = self.done < until and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS
            if save or self.done == until or len(recent) == STEPS_BETWEEN_CHECKS:
                self.losses += _finite_losses(recent, self.run)
                recent = []
            if save:
                self.save()
                saved = time.monotonic()
            on_step(self.done, len(self.batches))

    def restore_vocabulary(self) -> None:
        """For prediction. Nothing can be trained or saved afterwards."""
        rates = (learning_rate((self.schedule,), number) for number in range(self.done))
        self.model.restore_vocabulary(rates, self.protocol.weight_decay)

    def save(self) -> None:
        self.checkpoints.save(self.done, self.model.model, self.optimizer, {"losses": self.losses})


def begin(
    model_dir: Path, inputs: TaskInputs, run: Run, protocol: Protocol, how: Computation | None
) -> tuple[TaskModel, torch.optim.Optimizer, bool]:
    """Return the model on its device, its optimizer, and whether the pooler is fresh. On packed rows, the model has the
    word embeddings of the training examples only.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(run.seed)  # initialises the head, and the encoder of random_init
    built, fresh_pooler = build_task_model(model_dir, run.encoder, inputs.task)
    built.to(device).train()  # type: ignore[arg-type]  # transformers hides the signature of torch's method
    model = TaskModel(built, inputs.task, inputs.pad_id, how or usual_computation(built.config, device))
    if model.how.rows == "packed":
        model.train_only_pieces_of(inputs.learnable)
    return model, torch.optim.AdamW(decay_groups(built.parameters(), protocol.weight_decay), fused=True), fresh_pooler


def training_step(
    model: TaskModel, optimizer: torch.optim.Optimizer, examples: Sequence[Input], seed: int, number: int
) -> torch.Tensor:
    """Update the weights once; return the loss and the gradient norm. The dropout is a function of (seed, number)."""
    dropout = new_stream(seed, DROPOUT, row=number)
    torch.manual_seed(int(draw(dropout)) << 32 | int(draw(dropout)))
    loss = model.loss(examples)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack((loss.detach(), norm))


def predict(model: TaskModel, examples: Sequence[Input], tokens: int | None = None) -> list[Label]:
    """Predict a label for every example, in batches of at most `tokens` (None: PREDICTION_TOKENS) with padding."""
    model.model.eval()
    tokens = tokens or PREDICTION_TOKENS[model.model.device.type]
    predicted: dict[int, Label] = {}
    # Without a piece of any word there is nothing to compute: all tags are O.
    wordless = [n for n, each in enumerate(examples) if each.num_words and not len(each.words)]
    predicted |= {n: ("O",) * examples[n].num_words for n in wordless}
    rest = [n for n in range(len(examples)) if n not in predicted]
    # Within one autocast, and outside of inference mode, which keeps no copies, the weights are cast only once.
    with torch.no_grad(), model.autocast():
        for batch in batches_by_length([len(examples[n].input_ids) for n in rest], tokens):
            chosen = [examples[rest[n]] for n in batch]
            found = read_logits(model.task, chosen, model.logits(chosen))
            predicted |= zip((rest[n] for n in batch), found, strict=True)
    return [predicted[n] for n in range(len(examples))]


def circumstances() -> dict[str, Any]:
    """Return the thread count and the device: besides the settings, they determine the last bits of a run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"threads": torch.get_num_threads(), "device": device}


def _finite_losses(steps: Sequence[torch.Tensor], run: Run) -> list[float]:
    """Return the losses of (loss, gradient norm) pairs. Raises FloatingPointError if a value is not finite."""
    rows = torch.stack(list(steps)).tolist()
    for loss, norm in rows:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"{run.encoder}, seed {run.seed}: the training loss is {loss}, its gradient norm {norm}; "
                f"remedy: a learning_rate below {run.setting.learning_rate:g}"
            )
    return [loss for loss, _ in rows]
