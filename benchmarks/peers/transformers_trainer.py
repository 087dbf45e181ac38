"""transformers' Trainer with BertForPreTraining: same pairs, order, masks, initial weights, optimizer and schedule as
ours. It runs in our environment.

The rows are in memory. Nothing is logged, evaluated or saved except the loss of the first step.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.children import Answer, answer
from benchmarks.pretraining import read_recipe, train_dataset
from bert_pipeline.formats.pairs import IGNORE_INDEX, training_row
from bert_pipeline.formats.tokenizer import PAD_ID, read_tokenizer
from bert_pipeline.recipe import PretrainRecipe
from bert_pipeline.training.batches.dataset import Rows
from bert_pipeline.training.model.model import build_model

FILLED = {"input_ids": PAD_ID, "token_type_ids": 0, "attention_mask": 0, "labels": IGNORE_INDEX}
"""The padded columns of a batch and their padding values."""

Row = dict[str, Any]


def in_standard_view(rows: Rows) -> list[Row]:
    """Rows as from `hugging_face_dataset`, but not padded, and without `datasets`."""
    spans = zip(rows.offsets, rows.offsets[1:], rows.mask_offsets, rows.mask_offsets[1:], strict=False)
    return [
        training_row(
            rows.input_ids[begin:end],
            int(rows.segment_a_length[number]),
            int(rows.next_sentence_label[number]),
            rows.masked_positions[masks_begin:masks_end],
            rows.masked_input_ids[masks_begin:masks_end],
        )
        for number, (begin, end, masks_begin, masks_end) in enumerate(spans)
    ]


def collate(rows: list[Row], width: int | None) -> dict[str, torch.Tensor]:
    """Pad the rows to `width`, or to the longest one."""
    width = width or max(len(row["input_ids"]) for row in rows)
    batch = {name: np.full((len(rows), width), padding) for name, padding in FILLED.items()}
    for number, row in enumerate(rows):
        for name, values in batch.items():
            values[number, : len(row[name])] = row[name]
    batch["next_sentence_label"] = np.array([row["next_sentence_label"] for row in rows])
    return {name: torch.from_numpy(values) for name, values in batch.items()}


class Clock(TrainerCallback):
    """Measures the time from the end of the warm-up to the end of the last step."""

    def __init__(self, warm_up: int, num_steps: int, device: str) -> None:
        self.warm_up, self.num_steps, self.device = warm_up, num_steps, device

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in (self.warm_up, self.num_steps):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step == self.warm_up:
                self.started = now
            else:
                self.seconds = now - self.started


def optimizer_arguments(section: PretrainRecipe) -> dict[str, Any]:
    """The optimizer of a recipe with AdamW, as arguments of the Trainer."""
    return {
        "optim": "adamw_torch_fused",
        "adam_beta1": section.adam_beta1,
        "adam_beta2": section.adam_beta2,
        "adam_epsilon": section.adam_epsilon,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
    }


def train(
    model: torch.nn.Module,
    rows: Sequence[Row] | torch.utils.data.Dataset,
    out: Path,
    *,
    batch: int,
    places: int,
    max_seq_length: int,
    full_length: bool,
    callback: TrainerCallback,
    **arguments: Any,
) -> Trainer:
    """Train on the rows in their order; return the finished Trainer.

    `places`: most tokens of a micro-batch, including padding; larger batches are accumulated.
    """
    accumulated = 1
    while batch // accumulated * max_seq_length > places and batch % (2 * accumulated) == 0:
        accumulated *= 2
    chosen = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch // accumulated,
        gradient_accumulation_steps=accumulated,
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_first_step=True,
        logging_steps=arguments["max_steps"],
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **arguments,
    )
    training = Trainer(
        model,
        chosen,
        data_collator=partial(collate, width=max_seq_length if full_length else None),
        train_dataset=rows,
        callbacks=[callback],
    )
    # BertForPreTraining accepts a count to divide its loss by but ignores it: accumulated losses would be summed.
    training.model_accepts_loss_kwargs = False
    training.train()
    return training


def trainer(
    folder: str,
    max_seq_length: int,
    warm_up: int,
    num_steps: int,
    full_length: bool,
    compiled: bool,
    places: int,
    workers: int,
    device: str,
    precision: str,
) -> Answer:
    """The speed after `warm_up` steps; see `train` for `places`."""
    here = Path(folder)
    recipe = read_recipe(here, max_seq_length, num_steps)
    [phase], section = recipe.pretrain.phases, recipe.pretrain
    assert phase.learning_rate is not None and phase.warmup_steps is not None, "cut_down sets them"
    batch = phase.global_batch_size
    rows = in_standard_view(train_dataset(here, recipe, max_seq_length).samples(0, num_steps * batch, section.seed))
    model = build_model(recipe.model, read_tokenizer(here / "tokenizer").get_vocab_size(), section.seed)
    model.set_attn_implementation("sdpa")
    clock = Clock(warm_up, num_steps, device)
    training = train(
        model,
        rows,
        here / "trainer",
        batch=batch,
        places=places,
        max_seq_length=max_seq_length,
        full_length=full_length,
        callback=clock,
        max_steps=num_steps,
        learning_rate=phase.learning_rate,
        warmup_steps=phase.warmup_steps,
        **optimizer_arguments(section),
        seed=section.seed,
        use_cpu=device == "cpu",
        bf16=precision == "bf16",
        torch_compile=compiled,
        dataloader_num_workers=workers,
    )
    return {
        "tokens": sum(int(row["attention_mask"].sum()) for row in rows[warm_up * batch :]),
        "seconds": clock.seconds,
        "first_loss": training.state.log_history[0]["loss"],
    }


if __name__ == "__main__":
    answer(trainer)
