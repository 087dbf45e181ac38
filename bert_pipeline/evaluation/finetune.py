"""Fine-tuning a BERT to tag words: the recipe of BLURB (Gu et al. 2021, sections 2.4 and 2.5).

A linear layer on the encoder reads the first piece of each word; the other pieces bear no label. The model
after the last epoch is scored: the dev set is reported, not selected on. A run is a function of (model, data,
settings, seed), with one thread count on one kind of device.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging as transformers_logging

from bert_pipeline.evaluation.tasks import Sentence
from bert_pipeline.formats import IGNORE_INDEX
from bert_pipeline.progress import Progress
from bert_pipeline.recipe import TaskRecipe

Encoder = Literal["pretrained", "random_init"]
TAGS = ("O", "B", "I")
MAX_GRAD_NORM = 1.0
DROPOUT = 0.1
"""Section 2.5; said here, because a small model may have been pretrained without any."""
BATCHES_SORTED_TOGETHER = 50
"""Sentences are sorted by length among those of so many batches: little padding, still random batches."""


class Example(NamedTuple):
    """A sentence as the model reads it, cut to its input."""

    input_ids: list[int]
    words: list[int]
    """The words whose first piece is in the input. A word cut off, or one that is nothing to the tokenizer
    (a control character), is not among them."""
    first_pieces: list[int]
    """Where in input_ids each of `words` begins."""
    tags: Sequence[str]
    """Gold, for all words of the sentence."""


@dataclass(frozen=True)
class TaskExamples:
    """A task in the eyes of one model."""

    splits: Mapping[str, list[Example]]
    pad_id: int

    @property
    def learnable(self) -> list[Example]:
        """Training sentences with at least one word in the input: without a label there is no loss."""
        return [example for example in self.splits["train"] if example.words]

    def num_steps(self, settings: TaskRecipe) -> int:
        """Optimizer steps of one run."""
        return settings.num_epochs * math.ceil(len(self.learnable) / settings.batch_size)


@dataclass(frozen=True)
class Run:
    """What one fine-tuning gives: a tag for every word of dev and test, and the mean loss of the last epoch."""

    dev_tags: list[list[str]]
    test_tags: list[list[str]]
    last_epoch_loss: float


def encode_task(model_dir: Path, sentences: Mapping[str, Sequence[Sentence]], max_seq_length: int) -> TaskExamples:
    """Tokenize all splits once, for every seed. Refuses a tokenizer or a length that the model cannot take."""
    if not (model_dir / "config.json").is_file():
        raise FileNotFoundError(
            f"{model_dir} has no config.json; remedy: name a Hugging Face model directory (config.json, "
            "model.safetensors, tokenizer files)"
        )
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    if max_seq_length > config.max_position_embeddings:
        raise ValueError(
            f"max_seq_length is {max_seq_length}, but {model_dir} has {config.max_position_embeddings} positions; "
            f"remedy: max_seq_length of at most {config.max_position_embeddings}"
        )
    if not tokenizer.is_fast:
        raise ValueError(f"{model_dir}: its tokenizer cannot tell words from pieces; remedy: add its tokenizer.json")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{model_dir}: the tokenizer has {len(tokenizer):,} pieces, the model {config.vocab_size:,}; "
            "remedy: put the model's own tokenizer beside it"
        )
    splits = {split: _encode(tokenizer, rows, max_seq_length) for split, rows in sentences.items()}
    return TaskExamples(splits, tokenizer.pad_token_id)


def _encode(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence], max_seq_length: int) -> list[Example]:
    encoded = tokenizer(
        [list(sentence.tokens) for sentence in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=max_seq_length,
    )
    examples = []
    for n, sentence in enumerate(sentences):
        first_piece: dict[int, int] = {}
        for position, word in enumerate(encoded.word_ids(n)):
            if word is not None:  # None: [CLS] and [SEP]
                first_piece.setdefault(word, position)
        examples.append(Example(encoded["input_ids"][n], [*first_piece], [*first_piece.values()], sentence.tags))
    return examples


def finetune_ner(
    model_dir: Path, encoder: Encoder, examples: TaskExamples, settings: TaskRecipe, seed: int, progress: Progress
) -> Run:
    """Fine-tune once and tag dev and test. `progress` counts optimizer steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = token_classifier(model_dir, encoder)
    model.to(device)  # type: ignore[arg-type]  # transformers hides the signature of torch's method
    torch.manual_seed(seed)  # loading drew random numbers; both encoders shall see the same dropout
    learnable = examples.learnable
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, fused=True
    )
    num_steps = examples.num_steps(settings)
    schedule = get_linear_schedule_with_warmup(optimizer, round(settings.warmup_fraction * num_steps), num_steps)

    model.train()
    for epoch in range(settings.num_epochs):
        losses = []
        for batch in epoch_batches([len(example.input_ids) for example in learnable], settings.batch_size, seed, epoch):
            chosen = [learnable[n] for n in batch]
            inputs = {name: tensor.to(device) for name, tensor in _padded(chosen, examples.pad_id).items()}
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(**inputs).loss  # mean over the labelled words of the batch
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            progress.advance(note=f"{encoder}, seed {seed}, epoch {epoch + 1}/{settings.num_epochs}")
    last_epoch_loss = float(torch.stack(losses).mean())
    if not np.isfinite(last_epoch_loss):
        raise FloatingPointError(
            f"{settings.name}, {encoder}, seed {seed}: the training loss is {last_epoch_loss}; "
            f"remedy: a learning_rate below {settings.learning_rate}"
        )
    dev_tags, test_tags = (tag(model, examples.splits[split], examples.pad_id) for split in ("dev", "test"))
    return Run(dev_tags, test_tags, last_epoch_loss)


def token_classifier(model_dir: Path, encoder: Encoder) -> PreTrainedModel:
    """The encoder under a fresh linear layer; `random_init` has the same architecture and none of the weights."""
    config = AutoConfig.from_pretrained(
        model_dir,
        local_files_only=True,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        id2label=dict(enumerate(TAGS)),
        label2id={label: n for n, label in enumerate(TAGS)},
    )
    if encoder == "random_init":
        return AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    with _silent_transformers():
        model, loaded = AutoModelForTokenClassification.from_pretrained(
            model_dir, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    absent = sorted(name for name in loaded["missing_keys"] if not name.startswith("classifier."))
    if absent:  # transformers would fill them with random numbers, and the score would be called the model's
        raise ValueError(
            f"{model_dir}: its weights lack {len(absent)} of the encoder's parameters, such as {absent[0]}; "
            "remedy: name a directory whose weights belong to its config.json"
        )
    return model


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """It would report, run after run, the head that was left out and the one that was made: both are meant here."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Indices of each batch of an epoch: every example once, a function of (lengths, batch_size, seed, epoch)."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    pool = BATCHES_SORTED_TOGETHER * batch_size
    for start in range(0, len(order), pool):
        together = order[start : start + pool]
        together = together[np.argsort(np.asarray(lengths)[together], kind="stable")]
        batches += [together[first : first + batch_size] for first in range(0, len(together), batch_size)]
    return [batches[n] for n in rng.permutation(len(batches))]


def tag(model: PreTrainedModel, examples: Sequence[Example], pad_id: int, batch_size: int = 64) -> list[list[str]]:
    """A tag for every word of every sentence; O for the words that are not in the model's input."""
    model.eval()
    tags = [["O"] * len(example.tags) for example in examples]
    by_length = sorted(range(len(examples)), key=lambda n: len(examples[n].input_ids))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        inputs = _padded([examples[n] for n in batch], pad_id)
        del inputs["labels"]
        with torch.inference_mode():
            logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits
        for n, best in zip(batch, logits.argmax(-1).tolist(), strict=True):
            for word, position in zip(examples[n].words, examples[n].first_pieces, strict=True):
                tags[n][word] = TAGS[best[position]]
    return tags


def _padded(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """The batch as tensors of (examples, longest of them)."""
    shape = (len(examples), max(len(example.input_ids) for example in examples))
    input_ids, attention_mask = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORE_INDEX)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        attention_mask[row, : len(example.input_ids)] = 1
        labels[row, example.first_pieces] = [TAGS.index(example.tags[word]) for word in example.words]
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Biases and LayerNorm, the parameters of one dimension, do not decay."""
    decaying = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
