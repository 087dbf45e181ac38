"""Text to token ids, each distinct word once.

BERT's normaliser works on single characters and its splitter cuts at every blank, so the pieces of a text are
those of its words between blanks, one after the other. A corpus repeats its words: a shard of abstracts has some
twenty times more words than distinct ones. So the distinct ones are encoded, and the rest is copying.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from bert_pipeline.formats import token_type


def encode_texts(tokenizer: Any, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, offsets): the ids of text n, as `tokenizer.encode(..., add_special_tokens=False)` gives them, are
    ids[offsets[n]:offsets[n + 1]]. ids are uint16 or uint32, offsets int64.
    """
    words = pc.split_pattern(texts, " ")
    coded = words.flatten().dictionary_encode()
    pieces = [word.ids for word in tokenizer.encode_batch_fast(coded.dictionary.to_pylist(), add_special_tokens=False)]
    ends = np.cumsum([0, *map(len, pieces)])
    table = np.fromiter((piece for word in pieces for piece in word), _dtype(tokenizer), ends[-1])
    return _gather(coded.indices.to_numpy(), words.offsets.to_numpy(), table, ends)


def _dtype(tokenizer: Any) -> np.dtype:
    return np.dtype(token_type(tokenizer.get_vocab_size()).to_pandas_dtype())


@njit(cache=True)
def _gather(words, word_offsets, table, ends):
    """Put the pieces of each word in its place. word_offsets (texts + 1,), table and ends: the words' pieces."""
    total = 0
    for word in words:
        total += ends[word + 1] - ends[word]
    ids = np.empty(total, table.dtype)
    offsets = np.empty(len(word_offsets), np.int64)
    offsets[0] = 0
    place = 0
    for text in range(len(word_offsets) - 1):
        for n in range(word_offsets[text] - word_offsets[0], word_offsets[text + 1] - word_offsets[0]):
            for piece in range(ends[words[n]], ends[words[n] + 1]):
                ids[place] = table[piece]
                place += 1
        offsets[text + 1] = place
    return ids, offsets
