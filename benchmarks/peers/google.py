"""The algorithm of google-research/bert's create_pretraining_data.py, in Python like the original.

- Words and pieces: BasicTokenizer and WordpieceTokenizer of transformers 4.57, copies of Google's tokenization.py.
- Pairs and masks: the oracle of this repository's tests, with draws from random.Random as in Google's code.
- Output: the padded features of Google's TFRecords as numpy arrays, because TensorFlow is not installed.
"""

# mypy: disable-error-code="attr-defined"
# These names exist only in the peer's environment.

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from oracles.google import masked_lm, pairs_of_document, truncate_longest_first

from benchmarks.children import Answer, answer
from bert_pipeline.formats.tokenizer import CLS_ID, MASK_ID, SEP_ID

MAX_PREDICTIONS = {128: 20, 512: 77}
"""The values of Google's README."""

Documents = list[list[list[int]]]
"""Sentences of token ids."""


class Draws(random.Random):
    """The draws of the algorithm; randint and shuffle are Python's."""

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def another(self, count: int, own: int) -> int:
        for _ in range(10):
            drawn = self.randint(0, count - 1)
            if drawn != own:
                break
        return drawn


def google(text: str, tokenizer: str, out: str, max_seq_length: int) -> Answer:
    from transformers.models.bert import tokenization_bert

    pieces = Path(tokenizer, "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    basic = tokenization_bert.BasicTokenizer(do_lower_case=True)
    wordpiece = tokenization_bert.WordpieceTokenizer(vocabulary, "[UNK]")

    started = time.perf_counter()
    documents: Documents = [[]]
    with Path(text).open(encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                documents.append([])
                continue
            tokens = [piece for word in basic.tokenize(line) for piece in wordpiece.tokenize(word)]
            if tokens:
                documents[-1].append([vocabulary[token] for token in tokens])
    documents = [document for document in documents if document]

    paired = time.perf_counter()
    rows = pairs_and_masks(documents, max_seq_length, len(vocabulary), Draws(12345))
    written = time.perf_counter()
    write(rows, max_seq_length, Path(out))
    ended = time.perf_counter()
    return {
        "tokens": sum(len(row) for row, *_ in rows),
        "seconds": ended - started,
        "pairs_and_masks_seconds": written - paired,
    }


def pairs_and_masks(
    documents: Documents, max_seq_length: int, vocab_size: int, rng: Draws
) -> list[tuple[list[int], int, int, list[tuple[int, int]]]]:
    """(row, length of A, label, masks) of every pair, shuffled."""
    rng.shuffle(documents)
    rows: list[Any] = []
    for index in range(len(documents)):
        pairs = pairs_of_document(
            documents,
            index,
            max_seq_length=max_seq_length,
            short_seq_prob=0.1,
            nsp_prob=0.5,
            per_example=False,
            truncate=truncate_longest_first,
            rng=rng,
        )
        for tokens_a, tokens_b, label, _ in pairs:
            row = [CLS_ID, *tokens_a, SEP_ID, *tokens_b, SEP_ID]
            masks = masked_lm(
                row,
                is_continuation=(),
                specials={CLS_ID, SEP_ID},
                masked_lm_prob=0.15,
                max_predictions=MAX_PREDICTIONS[max_seq_length],
                whole_words=False,
                per_word=False,
                mask_id=MASK_ID,
                vocab_size=vocab_size,
                rng=rng,
            )
            rows.append((row, len(tokens_a), label, masks))
    rng.shuffle(rows)
    return rows


def write(rows: list[tuple[list[int], int, int, list[tuple[int, int]]]], max_seq_length: int, out: Path) -> None:
    wide = (len(rows), max_seq_length)
    predicted = (len(rows), MAX_PREDICTIONS[max_seq_length])
    features = {name: np.zeros(wide, np.int32) for name in ("input_ids", "input_mask", "segment_ids")}
    features |= {name: np.zeros(predicted, np.int32) for name in ("masked_lm_positions", "masked_lm_ids")}
    features["masked_lm_weights"] = np.zeros(predicted, np.float32)
    features["next_sentence_labels"] = np.array([label for _, _, label, _ in rows], np.int32)
    for number, (row, length_a, _, masks) in enumerate(rows):
        positions = [position for position, _ in masks]
        features["input_ids"][number, : len(row)] = row
        features["input_ids"][number, positions] = [replacement for _, replacement in masks]
        features["input_mask"][number, : len(row)] = 1
        features["segment_ids"][number, length_a + 2 : len(row)] = 1
        features["masked_lm_positions"][number, : len(masks)] = positions
        features["masked_lm_ids"][number, : len(masks)] = [row[position] for position in positions]
        features["masked_lm_weights"][number, : len(masks)] = 1
    out.mkdir(parents=True, exist_ok=True)
    for name, values in features.items():
        np.save(out / f"{name}.npy", values)


if __name__ == "__main__":
    answer(google)
