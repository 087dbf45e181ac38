"""transformers' Trainer with AutoModelForTokenClassification or AutoModelForSequenceClassification: the same examples,
initial weights, optimizer and schedule as ours, each batch padded to its longest row. It runs in our environment.

The examples are in memory, already cut into pieces. Nothing is logged, evaluated or saved.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from benchmarks.children import Answer, answer
from benchmarks.finetuning import inputs_of
from benchmarks.peers.transformers_trainer import Clock
from bert_pipeline.evaluation.finetuning.heads import build_task_model
from bert_pipeline.evaluation.finetuning.inputs import Input, TaskInputs
from bert_pipeline.evaluation.tasks.task import TAGGING
from bert_pipeline.formats.pairs import IGNORE_INDEX

WARMUP_FRACTION, WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.01, 1.0


def train(
    model: str,
    task_name: str,
    max_seq_length: int,
    setting: list,
    warm_up: int,
    precision: str,
    grouped: bool,
    compiled: bool,
) -> Answer:
    """`grouped`: batches of similar length."""
    inputs, (rate, batch, epochs) = inputs_of(model, task_name, max_seq_length), setting
    rows = _rows(inputs, inputs.learnable)
    a_epoch = -(-len(rows) // batch)
    clock = Clock(warm_up, a_epoch * epochs, "cpu")
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=round(WARMUP_FRACTION * a_epoch * epochs),
            optim="adamw_torch_fused",
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            seed=1,
            use_cpu=True,
            bf16=precision == "bf16",
            torch_compile=compiled,
            train_sampling_strategy="group_by_length" if grouped else "random",
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        _trainer(model, inputs, arguments, rows, [clock]).train()
    seen = warm_up // a_epoch * len(rows) + warm_up % a_epoch * batch
    return {"tokens": epochs * len(rows) - seen, "seconds": clock.seconds}


def predict(model: str, task_name: str, max_seq_length: int, precision: str, batch: int) -> Answer:
    inputs = inputs_of(model, task_name, max_seq_length)
    rows = _rows(inputs, inputs.splits["test"])
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            per_device_eval_batch_size=batch,
            use_cpu=True,
            bf16=precision == "bf16",
            train_sampling_strategy="group_by_length",  # also for prediction
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = _trainer(model, inputs, arguments, rows, [])
        trainer.predict(rows)  # type: ignore[arg-type]  # any sequence will do
        started = time.perf_counter()
        trainer.predict(rows)  # type: ignore[arg-type]
    return {"tokens": len(rows), "seconds": time.perf_counter() - started}


def _trainer(model: str, inputs: TaskInputs, arguments: TrainingArguments, rows: list, callbacks: list) -> Trainer:
    torch.manual_seed(1)
    built, _ = build_task_model(Path(model), "pretrained", inputs.task)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        shape = len(rows), max(len(row["input_ids"]) for row in rows)
        fillings = {"input_ids": inputs.pad_id, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORE_INDEX}
        batch = {}
        for name, filling in fillings.items():
            if name == "labels" and inputs.task.kind not in TAGGING:
                batch[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
                continue
            column = np.full(shape, filling)
            for n, row in enumerate(rows):
                column[n, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(column)
        return batch

    return Trainer(built, arguments, data_collator=collate, train_dataset=rows, callbacks=callbacks)  # type: ignore[arg-type]


def _rows(inputs: TaskInputs, examples: list[Input]) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": each.input_ids,
            "attention_mask": np.ones_like(each.input_ids),
            "token_type_ids": (np.arange(len(each.input_ids)) >= each.second).astype(np.int64),
            "labels": each.target,
        }
        for each in examples
    ]


if __name__ == "__main__":
    answer(train, predict)
