"""One fine-tuning run: the recipe of BLURB (Gu et al. 2021, arXiv 2007.15779, sections 2.4 and 2.5).

The whole model is trained, under dropout, by AdamW with linear warm-up and linear decay. The model after the last epoch
is scored: no epoch is selected on dev.

A run is a function of (model, data, settings, seed), with one thread count on one kind of device: its batches are one
of (seed, epoch), its dropout one of (seed, step). So a run that was killed goes on from its checkpoint bit for bit.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from bert_pipeline.core.randomness import DROPOUT, draw, new_stream
from bert_pipeline.evaluation.finetuning.batches import batches_by_length, epoch_batches, padded
from bert_pipeline.evaluation.finetuning.heads import build_task_model, read_logits
from bert_pipeline.evaluation.finetuning.inputs import Input, TaskInputs
from bert_pipeline.evaluation.finetuning.protocol import SCORED, Protocol, Run
from bert_pipeline.evaluation.scoring.scores import Label
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import PhaseRecipe
from bert_pipeline.training.checkpoint import Checkpoints
from bert_pipeline.training.model.optim import decay_groups, learning_rate, set_learning_rate

MAX_GRAD_NORM = 1.0
PREDICTION_TOKENS = 8_192
"""Padded tokens of a batch that is predicted. It keeps no activations, so it may be larger than one of training."""
SECONDS_BETWEEN_CHECKPOINTS = 120.0
"""The most that a kill costs; a checkpoint of a BERT-base is 1.3 GB."""

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    predicted: dict[str, list[Label]]
    """Of each example of dev and test."""
    epoch_losses: list[float]
    """Means over the steps of each epoch."""
    fresh_pooler: bool
    """The checkpoint lacks the layer between [CLS] and a head, so a random one was trained as part of the head."""


def finetune(
    model_dir: Path, inputs: TaskInputs, run: Run, protocol: Protocol, work: Path, on_step: Callable[[int, int], None]
) -> Outcome:
    """Fine-tune once and predict dev and test, from the newest checkpoint in `work` if there is one.

    `on_step` is told how many steps are done, and of how many: before the first that is made here, and after each.
    Raises FloatingPointError where a loss or a gradient is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(run.seed)  # of the head, and of the encoder where it is random
    model, fresh_pooler = build_task_model(model_dir, run.encoder, inputs.task)
    model.to(device).train()  # type: ignore[arg-type]  # transformers hides the signature of torch's method
    optimizer = torch.optim.AdamW(decay_groups(model, protocol.weight_decay), fused=True)
    rate, batch_size, num_epochs = run.setting
    learnable = inputs.learnable
    lengths = [len(each.input_ids) for each in learnable]
    epochs = [epoch_batches(lengths, batch_size, run.seed, epoch) for epoch in range(num_epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    schedule = PhaseRecipe(
        max_seq_length=protocol.max_seq_length,
        num_steps=len(batches),
        learning_rate=rate,
        warmup_steps=round(protocol.warmup_fraction * len(batches)),
    )

    checkpoints = Checkpoints(work / "checkpoints", run.name, kept=1)
    first, state = checkpoints.load_newest(model, optimizer) or (0, {"losses": []})
    losses: list[float] = state["losses"]
    on_device: list[torch.Tensor] = []  # (loss, gradient norm) of the steps since; no step waits for them
    saved = time.monotonic()
    on_step(first, len(batches))
    if first:
        log.info("%s: going on after step %d of %d", run.name, first, len(batches))
    for number, batch in enumerate(batches[first:], start=first):
        dropout = new_stream(run.seed, DROPOUT, row=number)
        torch.manual_seed(int(draw(dropout)) << 32 | int(draw(dropout)))
        tensors, labels = padded([learnable[n] for n in batch], inputs.pad_id)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            found = model(**{name: tensor.to(device) for name, tensor in tensors.items()}, labels=labels.to(device))
        found.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        set_learning_rate(optimizer, learning_rate((schedule,), number))
        optimizer.step()
        optimizer.zero_grad()
        on_device.append(torch.stack((found.loss.detach(), norm)))
        done = number + 1
        save = done < len(batches) and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS
        if save or done % len(epochs[0]) == 0:
            losses += _finite_losses(on_device, run)
            on_device = []
        if save:
            checkpoints.save(done, model, optimizer, {"losses": losses})
            saved = time.monotonic()
        on_step(done, len(batches))

    predicted = {split: predict(model, inputs.task, inputs.splits[split], inputs.pad_id) for split in SCORED}
    return Outcome(predicted, np.array(losses).reshape(num_epochs, -1).mean(1).tolist(), fresh_pooler)


def predict(
    model: PreTrainedModel, task: Task, examples: Sequence[Input], pad_id: int, tokens: int = PREDICTION_TOKENS
) -> list[Label]:
    """A label for every example, in batches of at most `tokens`."""
    model.eval()
    predicted: dict[int, Label] = {}
    for batch in batches_by_length([len(each.input_ids) for each in examples], tokens):
        chosen = [examples[n] for n in batch]
        tensors, _ = padded(chosen, pad_id)
        with torch.inference_mode():
            logits = model(**{name: tensor.to(model.device) for name, tensor in tensors.items()}).logits
        predicted |= zip(batch, read_logits(task, chosen, logits), strict=True)
    return [predicted[n] for n in range(len(examples))]


def circumstances() -> dict[str, Any]:
    """What the last bits of a run depend on, beside its settings."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"threads": torch.get_num_threads(), "device": device}


def _finite_losses(steps: Sequence[torch.Tensor], run: Run) -> list[float]:
    """The losses of (loss, gradient norm) pairs. Raises FloatingPointError where one is not finite."""
    rows = torch.stack(list(steps)).tolist()
    for loss, norm in rows:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"{run.encoder}, seed {run.seed}: the training loss is {loss}, the norm of its gradient {norm}; "
                f"remedy: a learning_rate below {run.setting.learning_rate:g}"
            )
    return [loss for loss, _ in rows]
