"""transformers 4.57: TextDatasetForNextSentencePrediction and DataCollatorForLanguageModeling, batches to disk.

The tokenizer is the fast class, the better setting for it. The dataset keeps a pickled cache beside the text and does
not truncate: its rows may be longer than they should be, and all of their tokens count.
"""

# mypy: disable-error-code="attr-defined"
# Names are those of the peer's own environment, not of ours.

import shutil
import time
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader

from benchmarks.children import Answer, answer


def transformers_nsp(text: str, tokenizer: str, out: str, max_seq_length: int) -> Answer:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    copied = shutil.copy(text, folder / "sentences.txt")  # the cache is written there
    fast = transformers.BertTokenizerFast(tokenizer_file=str(Path(tokenizer, "tokenizer.json")))
    started = time.perf_counter()
    dataset = transformers.TextDatasetForNextSentencePrediction(fast, str(copied), max_seq_length, overwrite_cache=True)
    collator = transformers.DataCollatorForLanguageModeling(fast, mlm=True, mlm_probability=0.15)
    tokens = 0
    for number, batch in enumerate(DataLoader(dataset, batch_size=256, shuffle=True, collate_fn=collator)):
        tokens += int(batch["attention_mask"].sum())
        torch.save(dict(batch), folder / f"batch-{number:05d}.pt")
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    answer(transformers_nsp)
