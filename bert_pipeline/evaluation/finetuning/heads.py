"""The head for each kind of task (a standard head of transformers) and how its logits become labels.

    kind            head                             loss                     prediction
    ner, pico       linear on a word's first piece   cross-entropy            the likeliest tag; O for words cut off
    relation, qa    linear on the pooled [CLS]       cross-entropy            the likeliest class
    similarity      the same, one output             mean squared error       the output
    documents       the same, one output per class   binary cross-entropy     the classes whose logit is above 0

(Gu et al. 2021, arXiv 2007.15779, section 2.4.) Similarity scores are scaled from the task's range to 0..1 for
training: a fresh head outputs about 0, and with a range of 0 to 4 most of a short run would be spent on moving its
outputs there. The metric, a correlation, does not depend on the scale.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from bert_pipeline.evaluation.finetuning.inputs import Input, score_range
from bert_pipeline.evaluation.finetuning.protocol import EncoderWeights
from bert_pipeline.evaluation.scoring.scores import Label
from bert_pipeline.evaluation.tasks.task import TAGGING, Kind, Task

DROPOUT = 0.1
"""Gu et al. 2021, section 2.5. Set explicitly, because a small model may have been pretrained without dropout."""

PROBLEMS: dict[Kind, str] = {
    "relation": "single_label_classification",
    "qa": "single_label_classification",
    "similarity": "regression",
    "documents": "multi_label_classification",
}
"""The `problem_type` of transformers that selects the loss of a head on [CLS]."""


def build_task_model(model_dir: Path, encoder: EncoderWeights, task: Task) -> tuple[PreTrainedModel, bool]:
    """Return the encoder with a fresh head, and whether the pooler is fresh because the checkpoint has none.

    `random_init` uses the architecture without the weights. Raises ValueError if weights of the encoder are missing.
    """
    classes = task.tags if task.kind in TAGGING else task.labels or ("score",)
    config = AutoConfig.from_pretrained(
        model_dir,
        local_files_only=True,
        trust_remote_code=False,  # a directory must not run code of its own
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        problem_type=PROBLEMS.get(task.kind),
        id2label=dict(enumerate(classes)),
        label2id={label: n for n, label in enumerate(classes)},
    )
    auto = AutoModelForTokenClassification if task.kind in TAGGING else AutoModelForSequenceClassification
    if encoder == "random_init":
        return auto.from_config(config, dtype=torch.float32), False
    with silent_transformers():
        model, loaded = auto.from_pretrained(
            model_dir,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,  # a pickle can execute code
            output_loading_info=True,
        )
    pooler = f"{model.base_model_prefix}.pooler."
    of_encoder = [name for name in loaded["missing_keys"] if name.startswith(f"{model.base_model_prefix}.")]
    missing = sorted(name for name in of_encoder if not name.startswith(pooler))
    if missing:  # transformers would initialise them at random, and the score would not be the model's
        raise ValueError(
            f"{model_dir}: the weights lack {len(missing)} of the encoder's parameters, such as {missing[0]}; "
            "remedy: name a directory whose weights belong to its config.json"
        )
    return model, len(of_encoder) > len(missing)


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Suppress progress bars, and the warnings about dropped and newly initialised heads, which are intended here."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def read_logits(task: Task, examples: Sequence[Input], logits: torch.Tensor) -> list[Label]:
    """Return the predicted labels. Shape of the logits: (examples, classes); ner, pico: (first pieces, classes)."""
    if task.kind in TAGGING:
        return _tags(task, examples, logits.argmax(-1).cpu().numpy())
    if task.kind == "similarity":
        low, high = score_range(task)
        return [low + (high - low) * share for [share] in logits.tolist()]
    if task.kind == "documents":
        found = (logits > 0).tolist()
        return [frozenset(name for name, chosen in zip(task.labels, row, strict=True) if chosen) for row in found]
    return [task.labels[n] for n in logits.argmax(-1).tolist()]


def _tags(task: Task, examples: Sequence[Input], classes: np.ndarray) -> list[Label]:
    names = np.array(task.tags, dtype=object)
    found: list[Label] = []
    ends = np.cumsum([len(each.words) for each in examples])
    for each, row in zip(examples, np.split(classes, ends[:-1]), strict=True):
        tags = np.full(each.num_words, "O", dtype=object)
        tags[each.words] = names[row]
        found.append(tuple(tags.tolist()))
    return found
