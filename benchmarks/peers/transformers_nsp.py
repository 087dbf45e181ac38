"""transformers 4.57: TextDatasetForNextSentencePrediction and DataCollatorForLanguageModeling, batches to disk.

It uses the fast tokenizer, which suits it best. The dataset keeps a pickled cache beside the text and does not
truncate: rows may exceed max_seq_length, and all of their tokens count.
"""

# mypy: disable-error-code="attr-defined"
# These names exist only in the peer's environment.

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
