"""Measurements of our fine-tuning and prediction, each in its own process (see children.py)."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.evaluation.tasks.task import Task, find_task, task_folder

SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
"""Of the model of recipes/small.toml."""
VOCAB_SIZE = 16_000
FLOAT32_PADDED = "float32", "padded"
"""The computation before rows were packed."""


def inputs_of(model: str, task_name: str, max_seq_length: int) -> Any:
    from bert_pipeline.evaluation.finetuning.inputs import encode_task

    known, data = read(task_name)
    return encode_task(Path(model), known, data, max_seq_length)


def read(name: str) -> tuple[Task, Any]:
    task = find_task(name)
    with tempfile.TemporaryDirectory() as generated:
        return task, read_task(task, task_folder(task, None, Path(generated)), other_data=True)


def build(folder: str, task_name: str) -> Answer:
    """Save a model of the size of `small` with random weights, and a tokenizer learnt from the task's training set."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForPreTraining, BertTokenizer

    from bert_pipeline.evaluation.tasks.readers import Sentence

    examples = read(task_name)[1].splits["train"]
    texts = [" ".join(each.tokens if isinstance(each, Sentence) else each.parts) for each in examples]
    learnt = BertWordPieceTokenizer()
    learnt.train_from_iterator(texts, vocab_size=VOCAB_SIZE, show_progress=False)
    BertTokenizer(tokenizer_object=learnt._tokenizer).save_pretrained(folder)
    torch.manual_seed(1)
    BertForPreTraining(BertConfig(vocab_size=VOCAB_SIZE, **SIZES)).save_pretrained(folder)
    return {}


def lengths(model: str, task_name: str, max_seq_length: int) -> Answer:
    inputs = inputs_of(model, task_name, max_seq_length)
    found = [len(each.input_ids) for each in inputs.learnable]
    return {"examples": len(found), "mean_length": sum(found) / len(found), "test_examples": len(inputs.splits["test"])}


def train(model: str, task_name: str, max_seq_length: int, setting: list, warm_up: int, before: bool) -> Answer:
    """Examples and seconds of a run after `warm_up` steps. `before`: in float32, on padded rows."""
    from bert_pipeline.evaluation.finetuning.batches import epoch_batches
    from bert_pipeline.evaluation.finetuning.engine import Computation
    from bert_pipeline.evaluation.finetuning.finetune import finetune
    from bert_pipeline.evaluation.finetuning.protocol import Run, Setting, protocol
    from bert_pipeline.recipe import TaskRecipe

    class Finished(Exception):
        """Prediction, which follows the last step, is measured apart."""

    inputs, run = inputs_of(model, task_name, max_seq_length), Run("pretrained", Setting(*setting), 1)
    clock: dict[int, float] = {}

    def on_step(done: int, of: int) -> None:
        clock[done] = time.perf_counter()
        if done == of:
            raise Finished

    how = Computation(*FLOAT32_PADDED) if before else None  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as work, contextlib.suppress(Finished):
        finetune(Path(model), inputs, run, protocol(inputs.task, TaskRecipe(name=task_name)), Path(work), on_step, how)
    counted = [len(each.input_ids) for each in inputs.learnable]
    sizes = [len(b) for epoch in range(run.setting.num_epochs) for b in epoch_batches(counted, setting[1], 1, epoch)]
    return {"tokens": sum(sizes[warm_up:]), "seconds": clock[len(sizes)] - clock[warm_up]}


def predict(model: str, task_name: str, max_seq_length: int, before: bool) -> Answer:
    """Examples and seconds of the prediction of the test set, the second time."""
    import torch

    from bert_pipeline.evaluation.finetuning.engine import Computation, TaskModel, usual_computation
    from bert_pipeline.evaluation.finetuning.finetune import predict
    from bert_pipeline.evaluation.finetuning.heads import build_task_model

    inputs = inputs_of(model, task_name, max_seq_length)
    built, _ = build_task_model(Path(model), "pretrained", inputs.task)
    usual = usual_computation(built.config, torch.device("cpu"))
    how = Computation(*FLOAT32_PADDED) if before else usual  # type: ignore[arg-type]
    task_model, test = TaskModel(built, inputs.task, inputs.pad_id, how), inputs.splits["test"]
    predict(task_model, test)
    started = time.perf_counter()
    predict(task_model, test)
    return {"tokens": len(test), "seconds": time.perf_counter() - started, **how._asdict()}


if __name__ == "__main__":
    answer(build, lengths, train, predict)
