"""Measurements of ours, each in its own process (see children.py).

Imports are inside the functions: worker processes import this module, and its imports would count as their memory.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.children import SECONDS, Answer, answer
from benchmarks.text import recipe


def sentences_by_shard(raw_corpus: Path) -> list[Any]:
    from bert_pipeline.formats.corpus import corpus_shards

    tables = [shard.read("sentences") for shard in corpus_shards(raw_corpus, "train")]
    return [table["sentences"].combine_chunks().flatten() for table in tables]


def encode(folder: str, out: str) -> Answer:
    """Encode every shard; save the ids, which the peers are compared with."""
    import numpy as np
    import pyarrow as pa

    from bert_pipeline.data.tokenizer.encoding import Encoder
    from bert_pipeline.formats.tokenizer import read_tokenizer

    encoder = Encoder(read_tokenizer(Path(folder, "tokenizer")))
    shards = sentences_by_shard(Path(folder, "raw_corpus"))
    encoder.encode(pa.array(["warm up"]))
    Path(out).mkdir(parents=True, exist_ok=True)
    tokens, seconds = 0, 0.0
    for number, texts in enumerate(shards):
        started = time.perf_counter()
        ids, offsets = encoder.encode(texts)
        seconds += time.perf_counter() - started
        tokens += len(ids)
        np.savez(Path(out, f"shard-{number:05d}.npz"), ids=ids, offsets=offsets)
    return {"tokens": tokens, "seconds": seconds}


def pairs_and_masks(folder: str, max_seq_length: int) -> Answer:
    """Build pairs over tokenized shards, write them to rows and mask them; counts the tokens of the rows."""
    import numpy as np

    from bert_pipeline.data.masking import Masker
    from bert_pipeline.data.nsp import tokenize_shard
    from bert_pipeline.data.pairs import plan_pairs, write_rows
    from bert_pipeline.data.tokenizer.encoding import Encoder
    from bert_pipeline.formats.corpus import corpus_shards
    from bert_pipeline.formats.tokenizer import continuation_pieces, read_tokenizer

    chosen = recipe(Path(folder), max_seq_length)
    tokenizer = read_tokenizer(Path(folder, "tokenizer"))
    is_continuation = continuation_pieces(tokenizer)
    masker = Masker(chosen.masking, is_continuation)
    encoder = Encoder(tokenizer)
    shards = [tokenize_shard([part], encoder) for part in corpus_shards(Path(folder, "raw_corpus"), "train")]

    def run(number: int, pass_number: int) -> int:
        plan = plan_pairs(shards[number], is_continuation, chosen.nsp, max_seq_length, "train", pass_number, number)
        pairs = write_rows(shards[number], plan)
        rows = np.arange(len(pairs))
        masker.mask(
            pairs.input_ids,
            pairs.offsets,
            np.full(len(rows), number),
            rows,
            pass_number=pass_number,
            split="train",
            max_seq_length=max_seq_length,
        )
        return len(pairs.input_ids)

    run(0, 0)  # loads the compiled code
    tokens, pass_number, seconds, started = 0, 0, 0.0, time.perf_counter()
    while seconds < SECONDS:
        tokens += sum(run(number, pass_number) for number in range(len(shards)))
        pass_number += 1
        seconds = time.perf_counter() - started
    return {"tokens": tokens, "pairs_and_masks_seconds": seconds}


def whole_way(folder: str, max_seq_length: int, out: str, raw: bool) -> Answer:
    """Text to masked rows with the stages; tokenizer and worker processes exist before the clock starts.

    `raw`: read text.jsonl, clean it and split it into sentences; otherwise read one sentence per line, as the peers do.
    Memory is the peak resident size in MiB, as reported by the kernel.
    """
    from bert_pipeline.store.executors import map_shards

    shutil.rmtree(out, ignore_errors=True)
    tokenizer, here = Path(folder, "tokenizer"), Path(folder)
    sample = recipe(
        here, max_seq_length, source="sample", sample_documents=200, documents_per_shard=20, heldout_fraction=0.1
    )
    _make(sample, tokenizer, Path(out, "warm-up"))
    corpus = {} if raw else {"path": str(here / "all-sentences.txt"), "sentence_splitter": "lines"}
    made, stage_seconds = _make(recipe(here, max_seq_length, **corpus), tokenizer, Path(out, "timed"))
    tokens = made["nsp_dataset"].facts[f"len_{max_seq_length}"]["train_tokens"]
    return {
        "tokens": tokens,
        "seconds": sum(stage_seconds.values()),
        "stage_seconds": stage_seconds,
        "bytes_per_token": {kind: train_bytes(made[kind].path) / tokens for kind in ("nsp_dataset", "masked_dataset")},
        "worker_mib": max(map_shards("memory", peak_mib, [("worker", ())])),
        "main_mib": peak_mib(),
    }


def _make(chosen: Any, tokenizer: Path, out: Path) -> tuple[dict[str, Any], dict[str, float]]:
    from bert_pipeline.lineage import make_stage
    from bert_pipeline.store import artifact

    made, seconds = {"tokenizer": artifact.load(tokenizer)}, {}
    for kind in ("raw_corpus", "nsp_dataset", "masked_dataset"):
        started = time.perf_counter()
        made[kind] = make_stage(kind, chosen, made, out / kind)
        seconds[kind] = time.perf_counter() - started
    return made, seconds


def peak_mib() -> float:
    """The peak of this process since it was started. The kernel's figure for ended children would include the memory of
    this process at the moment when it started one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def train_bytes(dataset: Path) -> int:
    return sum(path.stat().st_size for path in dataset.glob("len-*/train/pass-*/*.arrow"))


def loader(folder: str, max_seq_length: int, batch_size: int) -> Answer:
    """Batches as tensors, from epochs whose masks are drawn as they are read."""
    from bert_pipeline.training.batches.dataset import PairDataset, open_masker
    from bert_pipeline.training.batches.packing import fill_up, micro_batches, pack

    here = Path(folder)
    masker = open_masker(recipe(here, max_seq_length).masking, here / "tokenizer")
    dataset = PairDataset(here / "nsp_dataset", here / "masked_dataset", max_seq_length, "train", masker)
    rows_on_disk = dataset.num_rows(0)  # of one pass; later rows get fresh masks

    def batch(number: int) -> int:
        rows = dataset.samples(rows_on_disk + number * batch_size, batch_size, seed=1)
        for part in micro_batches(rows, batch_size * max_seq_length):
            fill_up(pack(part))
        return rows.num_tokens

    batch(0)
    tokens, number, seconds, started = 0, 0, 0.0, time.perf_counter()
    while seconds < SECONDS:
        tokens += batch(number)
        number += 1
        seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": seconds}


if __name__ == "__main__":
    answer(encode, pairs_and_masks, whole_way, loader)
