"""transformers' DataCollatorForLanguageModeling in a torch DataLoader, on rows in memory."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from benchmarks.children import SECONDS, Answer, answer
from bert_pipeline.formats.pairs import PairShard, pass_directory, token_type_ids
from bert_pipeline.formats.tables import shard_paths
from bert_pipeline.formats.tokenizer import CLS_ID, SEP_ID

MAX_ROWS = 25_600


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows as from `datasets`, with the special_tokens_mask that the collator would otherwise compute for each row."""
    pairs = PairShard.read(path)
    rows = []
    for begin, end, length_a, label in zip(
        pairs.offsets,
        pairs.offsets[1:],
        pairs.segment_a_length.tolist(),
        pairs.next_sentence_label.tolist(),
        strict=False,
    ):
        ids = pairs.input_ids[begin:end].tolist()
        rows.append(
            {
                "input_ids": ids,
                "token_type_ids": token_type_ids(len(ids), length_a).tolist(),
                "attention_mask": [1] * len(ids),
                "special_tokens_mask": [int(token in (CLS_ID, SEP_ID)) for token in ids],
                "next_sentence_label": label,
            }
        )
    return rows


def collator(folder: str, max_seq_length: int, batch_size: int) -> Answer:
    """Batches of the first rows, shuffled again after each epoch."""
    shards = shard_paths(pass_directory(Path(folder, "nsp_dataset"), max_seq_length, "train"), "arrow")
    rows = list(islice((row for path in shards for row in rows_of(path)), MAX_ROWS))
    tokenizer = AutoTokenizer.from_pretrained(Path(folder, "tokenizer"))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=True, mlm_probability=0.15)
    loader: DataLoader[Any] = DataLoader(rows, batch_size, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    next(iter(loader))  # warm up
    tokens, seconds, started = 0, 0.0, time.perf_counter()
    while seconds < SECONDS:
        tokens += sum(int(batch["attention_mask"].sum()) for batch in loader)
        seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": seconds}


if __name__ == "__main__":
    answer(collator)
