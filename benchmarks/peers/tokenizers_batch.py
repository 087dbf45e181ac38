"""Encode whole sentences with the `tokenizers` library and compare its ids with ours."""

import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.children import Answer, answer
from benchmarks.ours import sentences_by_shard


def encode_batch(folder: str, ours: str, method: str, part: int, parts: int) -> Answer:
    """Encode one of `parts` slices of every shard; `difference` describes the first line with other ids than ours."""
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer", "tokenizer.json")))
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is plain text
    encode = getattr(tokenizer, method)
    tokens, seconds, difference = 0, 0.0, None
    for number, shard in enumerate(sentences_by_shard(Path(folder, "raw_corpus"))):
        first, end = (len(shard) * place // parts for place in (part, part + 1))
        texts = shard[first:end].to_pylist()
        started = time.perf_counter()
        encoded = [encoding.ids for encoding in encode(texts, add_special_tokens=False)]
        seconds += time.perf_counter() - started
        tokens += sum(map(len, encoded))
        with np.load(Path(ours, f"shard-{number:05d}.npz")) as saved:
            ids, offsets = saved["ids"].tolist(), saved["offsets"].tolist()
        if len(offsets) != len(shard) + 1:
            raise ValueError(f"shard {number}: {len(shard)} lines, but ours encoded {len(offsets) - 1}")
        for line, expected in enumerate(encoded, first):
            if difference is None and ids[offsets[line] : offsets[line + 1]] != expected:
                difference = f"shard {number}, line {line}: {shard[line].as_py()!r}: not {expected}"
    return {"tokens": tokens, "seconds": seconds, "difference": difference}


if __name__ == "__main__":
    answer(encode_batch)
