"""NVIDIA LDDL 0.1.0: its documents, pairs and static masks, in one process, written in its Parquet format.

The input has one sentence per line, so splitting at line ends replaces nltk's splitter, whose model is a download.
LDDL's download, shuffle and load-balancing steps are omitted.
"""

# mypy: disable-error-code="attr-defined"
# These names exist only in the peer's environment.

import random
import time
from pathlib import Path

import dask.bag
import dask.bytes
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import BertTokenizerFast

from benchmarks.children import Answer, answer

# LDDL imports it from here, as in its version of dask; it is not called.
dask.bytes.open_files = fsspec.open_files

from lddl.dask.bert import pretrain  # noqa: E402

SCHEMA = pa.schema(
    {
        "A": pa.string(),
        "B": pa.string(),
        "is_random_next": pa.bool_(),
        "num_tokens": pa.uint16(),
        "masked_lm_positions": pa.binary(),
        "masked_lm_labels": pa.string(),
    }
)


def lddl(text: str, tokenizer: str, out: str, max_seq_length: int) -> Answer:
    pretrain.nltk.tokenize.sent_tokenize = lambda document: document.split("\n")
    fast = BertTokenizerFast(tokenizer_file=str(Path(tokenizer, "tokenizer.json")))
    random.seed(12345)

    started = time.perf_counter()
    blocks = Path(text).read_text(encoding="utf-8").split("\n\n")
    bag = dask.bag.from_sequence([f"document-{number} {block}" for number, block in enumerate(blocks)], npartitions=1)
    documents = tuple(pretrain._get_documents(bag, fast).compute(scheduler="synchronous"))

    paired = time.perf_counter()
    words = tuple(fast.vocab.keys())
    pairs = []
    for index in range(len(documents)):
        pairs += pretrain.create_pairs_from_document(
            documents, index, max_seq_length=max_seq_length, masking=True, vocab_words=words
        )
    random.shuffle(pairs)

    written = time.perf_counter()
    Path(out).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(pairs, SCHEMA), Path(out, "part.0.parquet"))
    ended = time.perf_counter()
    return {
        "tokens": sum(pair["num_tokens"] for pair in pairs),
        "seconds": ended - started,
        "pairs_and_masks_seconds": written - paired,
    }


if __name__ == "__main__":
    answer(lddl)
