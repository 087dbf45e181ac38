"""A task as one model reads it: piece ids, where each label sits, and what of each example lies beyond the input.

    ner, pico                        [CLS] the words' pieces [SEP], a label on the first piece of each word
    relation, documents              [CLS] text [SEP], a label of the whole
    similarity, qa                   [CLS] A [SEP] B [SEP], a label of the whole

What is too long is cut at its end: of the two texts of similarity the longer one, of qa the context alone. Dummies such
as @GENE$ are text like any other: no token is added to the model's vocabulary.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bert_pipeline.evaluation.finetuning.protocol import max_positions
from bert_pipeline.evaluation.scoring.scores import entities
from bert_pipeline.evaluation.tasks.readers import Example, Sentence, TaskData, Text
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.formats.pairs import IGNORE_INDEX

TAGGING = ("ner", "pico")
"""The kinds whose words bear labels."""
SPECIAL_PIECES = 3
"""[CLS] and two [SEP]."""


class Input(NamedTuple):
    """An example as the model reads it, cut to its input."""

    input_ids: np.ndarray
    """(length,) int64."""
    second: int
    """Where the second text begins; `length` where there is one alone."""
    target: np.ndarray
    """ner, pico: (length,) int64, the class of each word at its first piece, IGNORE_INDEX elsewhere. relation, qa: ()
    int64, the class. similarity: () float32, the score as a share of the range. documents: (classes,) float32, 1 where
    the class holds."""
    words: np.ndarray
    """ner, pico: (n,) int64, the words whose first piece is in the input. A word cut off, or one that is nothing to the
    tokenizer (a control character), is not among them."""
    first_pieces: np.ndarray
    """(n,) int64: where in input_ids each of `words` begins."""
    num_words: int
    """ner, pico: of the sentence, those out of the input among them."""


@dataclass(frozen=True)
class TaskInputs:
    task: Task
    splits: Mapping[str, list[Input]]
    out_of_input: Mapping[str, Mapping[str, int]]
    """Of each split: `words`; `gold`, in the task's unit, that has a word out of the input.

    Words of ner and pico are those of the file, others those that the tokenizer parts. A word counts when a piece of it
    is cut off, in ner and pico when its first piece is.
    """
    pad_id: int

    @property
    def learnable(self) -> list[Input]:
        """Training examples that bear a label: a sentence none of whose words is in the input has no loss."""
        return [each for each in self.splits["train"] if (each.target != IGNORE_INDEX).any()]


def encode_task(model_dir: Path, task: Task, data: TaskData, max_seq_length: int) -> TaskInputs:
    """Tokenize all splits once, for every run. Refuses a tokenizer or a length that the model cannot take."""
    positions = max_positions(model_dir)
    if max_seq_length > positions:
        raise ValueError(
            f"max_seq_length is {max_seq_length}, but {model_dir} has {positions} positions; "
            f"remedy: max_seq_length of at most {positions}"
        )
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    if not tokenizer.is_fast:
        raise ValueError(f"{model_dir}: its tokenizer cannot tell words from pieces; remedy: add its tokenizer.json")
    num_embeddings = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if len(tokenizer) > num_embeddings:
        raise ValueError(
            f"{model_dir}: the tokenizer has {len(tokenizer):,} pieces, the model {num_embeddings:,}; "
            "remedy: put the model's own tokenizer beside it"
        )
    splits, out_of_input = {}, {}
    for split, examples in data.splits.items():
        whole, cut = _encodings(tokenizer, task, examples, max_seq_length)
        inputs = [_input(task, example, encoding) for example, encoding in zip(examples, cut, strict=True)]
        lost = [_lost(task, *each) for each in zip(examples, inputs, whole, cut, strict=True)]
        splits[split] = inputs
        out_of_input[split] = {"words": sum(words for words, _ in lost), "gold": sum(gold for _, gold in lost)}
    return TaskInputs(task, splits, out_of_input, tokenizer.pad_token_id)


def _encodings(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example], max_seq_length: int
) -> tuple[list[Encoding], list[Encoding]]:
    """Each example as it is, and as it goes into the model."""

    def encode(chosen: Sequence[int], **truncation: Any) -> list[Encoding]:
        texts = zip(*(_texts(examples[n]) for n in chosen), strict=True)
        in_words = task.kind in TAGGING
        return tokenizer(*map(list, texts), is_split_into_words=in_words, verbose=False, **truncation).encodings

    whole = encode(range(len(examples)))
    cut = list(whole)
    too_long = [n for n, encoding in enumerate(whole) if len(encoding) > max_seq_length]
    # A question that fills the input alone leaves no context to cut, and is cut itself.
    room = max_seq_length - SPECIAL_PIECES
    context_only = {n for n in too_long if task.kind == "qa" and whole[n].sequence_ids.count(0) < room}
    for strategy, chosen in (
        ("only_second", sorted(context_only)),
        ("longest_first", [n for n in too_long if n not in context_only]),
    ):
        if chosen:
            shorter = encode(chosen, truncation=strategy, max_length=max_seq_length)
            for n, encoding in zip(chosen, shorter, strict=True):
                cut[n] = encoding
    return whole, cut


def _texts(example: Example) -> tuple:
    return (list(example.tokens),) if isinstance(example, Sentence) else example.parts


def _input(task: Task, example: Example, encoding: Encoding) -> Input:
    ids = np.array(encoding.ids, dtype=np.int64)
    if isinstance(example, Text):
        second = encoding.type_ids.index(1) if 1 in encoding.type_ids else len(ids)
        nowhere = np.zeros(0, dtype=np.int64)
        return Input(ids, second, _target(task, example.label), nowhere, nowhere, 0)
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
    assert task.score_range is not None, "a similarity task states it"
    return task.score_range


def _lost(task: Task, example: Example, each: Input, whole: Encoding, cut: Encoding) -> tuple[int, int]:
    """(words, gold) of an example that are out of the input."""
    if isinstance(example, Text):
        words = 0 if cut is whole else len(Counter(_words(whole)) - Counter(_words(cut)))
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
    """The word of each piece: which text, and which of its words."""
    pairs = zip(encoding.sequence_ids, encoding.word_ids, strict=True)
    return [(text, word) for text, word in pairs if word is not None]
