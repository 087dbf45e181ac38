"""A fine-tuned model as a directory that plain transformers reads, ready for `pipeline("token-classification", DIR)`.

The labels have the form that pipelines join to spans: B-Chemical, not the B of a task file without types. A similarity
is on the scale of the task, not the 0 to 1 of the training. `task` in config.json holds what annotate.py needs.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from bert_pipeline.evaluation.finetuning.heads import silent_transformers
from bert_pipeline.evaluation.finetuning.inputs import score_range
from bert_pipeline.evaluation.tasks.readers import Example, Sentence
from bert_pipeline.evaluation.tasks.task import TAGGING, Task


def export_task_model(
    model: PreTrainedModel, task: Task, learnt: Sequence[Example], model_dir: Path, max_seq_length: int, out: Path
) -> None:
    """Write the model, moved to the CPU, and the tokenizer of `model_dir` into `out`. `learnt`: the training split."""
    config = model.config
    labels = exported_labels(task)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: n for n, label in enumerate(labels)}
    config.task = {
        "name": task.name,
        "kind": task.kind,
        "max_seq_length": max_seq_length,
        "joining": joining_characters(learnt),
    }
    if task.kind == "similarity":
        _scale_output(model, *score_range(task))
    model.to("cpu")  # type: ignore[arg-type]  # transformers hides the signature of torch's method
    with silent_transformers():
        model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it readable by the owner only
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = max_seq_length  # pipelines truncate or window by it
    tokenizer.save_pretrained(out)


def exported_labels(task: Task) -> tuple[str, ...]:
    """The names of the outputs: types after B- and I-, also if the files of the task have none."""
    if task.kind == "ner" and not task.labels:
        return ("O", f"B-{task.entity or task.name}", f"I-{task.entity or task.name}")
    return task.tags if task.kind in TAGGING else task.labels or ("score",)


def joining_characters(examples: Sequence[Example]) -> str:
    """The characters, neither letters nor digits, that occur more often between others in a token than as a token."""
    inside, alone = Counter[str](), Counter[str]()
    for example in examples:
        for token in example.tokens if isinstance(example, Sentence) else ():
            inside.update({char for char in token[1:-1] if not char.isalnum()})
            alone[token] += 1
    return "".join(sorted(char for char, count in inside.items() if count > alone[char]))


def _scale_output(model: PreTrainedModel, low: float, high: float) -> None:
    """Let the last layer compute low + (high - low) * output."""
    head: Any = model.classifier  # a linear layer, or the layers of a family's head
    last = [each for each in head.modules() if isinstance(each, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(high - low)
        last.bias.mul_(high - low).add_(low)
