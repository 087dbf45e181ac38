"""A task as inputs of one model: piece ids, the position of each label, and how much of each example is cut off.

    ner, pico                        [CLS] the words' pieces [SEP], one label on the first piece of each word
    relation, documents              [CLS] text [SEP], one label
    similarity, qa                   [CLS] A [SEP] B [SEP], one label

Too long inputs are truncated at the end: for similarity the longer of the two texts, for qa only the context. Dummies
such as @GENE$ are ordinary text: no token is added to the model's vocabulary.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bert_pipeline.evaluation.finetuning.protocol import max_positions
from bert_pipeline.evaluation.scoring.scores import entities
from bert_pipeline.evaluation.tasks.readers import Example, Sentence, TaskData, Text
from bert_pipeline.evaluation.tasks.task import TAGGING, Task
from bert_pipeline.formats.pairs import IGNORE_INDEX

SPECIAL_PIECES = 3
"""[CLS] and two [SEP]."""


class Input(NamedTuple):
    """One example, truncated to the model's input."""

    input_ids: np.ndarray
    """(length,) int64."""
    second: int
    """Position of the second text; `length` if there is only one text."""
    target: np.ndarray
    """ner, pico: (length,) int64, the class of each word at its first piece, IGNORE_INDEX elsewhere. relation, qa: ()
    int64, the class. similarity: () float32, the score scaled to 0..1. documents: (classes,) float32, 1 for each class
    of the document."""
    words: np.ndarray
    """ner, pico: (n,) int64, the words whose first piece is in the input; without words that are cut off or that the
    tokenizer drops (control characters)."""
    first_pieces: np.ndarray
    """(n,) int64, the position in input_ids of the first piece of each of `words`."""
    num_words: int
    """ner, pico: words of the sentence, including those outside the input; otherwise 0."""


@dataclass(frozen=True)
class TaskInputs:
    task: Task
    splits: Mapping[str, list[Input]]
    out_of_input: Mapping[str, Mapping[str, int]]
    """Per split: `words` outside the input, and `gold` (in the task's unit) with a word outside the input.

    Words are the file's tokens for ner and pico, otherwise the tokenizer's pre-tokens. A word is outside if one of its
    pieces is cut off; for ner and pico only the first piece counts.
    """
    pad_id: int

    @property
    def learnable(self) -> list[Input]:
        """Training examples with at least one label in the input; the others have no loss."""
        return [each for each in self.splits["train"] if (each.target != IGNORE_INDEX).any()]


def encode_task(model_dir: Path, task: Task, data: TaskData, max_seq_length: int) -> TaskInputs:
    """Tokenize all splits, once for all runs.

    Raises ValueError if the tokenizer does not belong to the model or `max_seq_length` exceeds its positions.
    """
    positions = max_positions(model_dir)
    if max_seq_length > positions:
        raise ValueError(
            f"max_seq_length is {max_seq_length}, but {model_dir} has {positions} positions; "
            f"remedy: set max_seq_length to at most {positions}"
        )
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ValueError(f"{model_dir}: the tokenizer does not map pieces to words; remedy: add its tokenizer.json")
    num_embeddings = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if len(tokenizer) > num_embeddings:
        raise ValueError(
            f"{model_dir}: the tokenizer has {len(tokenizer):,} pieces, the model {num_embeddings:,}; "
            "remedy: use the model's own tokenizer"
        )
    splits, out_of_input = {}, {}
    for split, examples in data.splits.items():
        full, truncated = _encodings(tokenizer, task, examples, max_seq_length)
        inputs = [_input(task, example, encoding) for example, encoding in zip(examples, truncated, strict=True)]
        lost = [_lost(task, *each) for each in zip(examples, inputs, full, truncated, strict=True)]
        splits[split] = inputs
        out_of_input[split] = {"words": sum(words for words, _ in lost), "gold": sum(gold for _, gold in lost)}
    return TaskInputs(task, splits, out_of_input, tokenizer.pad_token_id)


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a blank belongs to the word after it (RoBERTa, ModernBERT), so that it decides how the word is cut."""
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    parts: Any = splitter if isinstance(splitter, pre_tokenizers.Sequence) else [splitter]
    return any(isinstance(part, pre_tokenizers.ByteLevel) for part in parts)


def _encodings(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], max_seq_length: int
) -> tuple[list[Encoding], list[Encoding]]:
    """Return every example in full, and truncated to `max_seq_length`."""

    def encode(chosen: Sequence[int], **truncation: Any) -> list[Encoding]:
        texts = zip(*(_texts(examples[n], before_words) for n in chosen), strict=True)
        in_words = task.kind in TAGGING
        return tokenizer(*map(list, texts), is_split_into_words=in_words, verbose=False, **truncation).encodings

    # Byte-level tokenizers cut words as in running text, as others do. Not all of them know `add_prefix_space`.
    before_words = " " if _is_byte_level(tokenizer) else ""
    full = encode(range(len(examples)))
    truncated = list(full)
    too_long = [n for n, encoding in enumerate(full) if len(encoding) > max_seq_length]
    # If the question alone fills the input, there is no context to truncate: then the question is truncated, too.
    room = max_seq_length - SPECIAL_PIECES
    context_only = {n for n in too_long if task.kind == "qa" and full[n].sequence_ids.count(0) < room}
    for strategy, chosen in (
        ("only_second", sorted(context_only)),
        ("longest_first", [n for n in too_long if n not in context_only]),
    ):
        if chosen:
            shorter = encode(chosen, truncation=strategy, max_length=max_seq_length)
            for n, encoding in zip(chosen, shorter, strict=True):
                truncated[n] = encoding
    return full, truncated


def _texts(example: Example, before_words: str) -> tuple:
    return ([before_words + word for word in example.tokens],) if isinstance(example, Sentence) else example.parts


def _input(task: Task, example: Example, encoding: Encoding) -> Input:
    ids = np.array(encoding.ids, dtype=np.int64)
    if isinstance(example, Text):
        second = encoding.type_ids.index(1) if 1 in encoding.type_ids else len(ids)
        no_words = np.zeros(0, dtype=np.int64)
        return Input(ids, second, _target(task, example.label), no_words, no_words, 0)
    word_of = np.array(encoding.word_ids, dtype=float)  # nan: [CLS] and [SEP]
    first_pieces = np.flatnonzero(~np.isnan(word_of) & (word_of != np.roll(word_of, 1)))
    words = word_of[first_pieces].astype(np.int64)
    target = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
    target[first_pieces] = np.array([task.tags.index(tag) for tag in example.tags])[words]
    return Input(ids, len(ids), target, words, first_pieces, len(example.tags))


def _target(task: Task, label: str | float | frozenset[str]) -> np.ndarray:
    if isinstance(label, frozenset):
        return np.array([name in label for name in task.labels], dtype=np.float32)
    if isinstance(label, str):
        return np.array(task.labels.index(label), dtype=np.int64)
    low, high = score_range(task)
    return np.array((label - low) / (high - low), dtype=np.float32)


def score_range(task: Task) -> tuple[float, float]:
    assert task.score_range is not None, "Task requires it for similarity"
    return task.score_range


def _lost(task: Task, example: Example, each: Input, full: Encoding, truncated: Encoding) -> tuple[int, int]:
    """Count the (words, gold) of an example that are outside the input."""
    if isinstance(example, Text):
        words = 0 if truncated is full else len(Counter(_words(full)) - Counter(_words(truncated)))
        return words, int(words > 0)
    seen = set(each.words.tolist())
    if len(seen) == len(example.tags):
        return 0, 0
    visible = [tag if n in seen else "O" for n, tag in enumerate(example.tags)]
    if task.kind == "pico":
        gold = sum(tag != now for tag, now in zip(example.tags, visible, strict=True))
    else:
        gold = len(set(entities(example.tags)) - set(entities(visible)))
    return len(example.tags) - len(seen), gold


def _words(encoding: Encoding) -> list[tuple[int | None, int]]:
    """The word of each piece as (text, index of the word in it)."""
    pairs = zip(encoding.sequence_ids, encoding.word_ids, strict=True)
    return [(text, word) for text, word in pairs if word is not None]
