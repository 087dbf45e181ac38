"""The nsp_dataset: encode every corpus shard once, then pair its sentences for each sequence length and pass."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bert_pipeline.core.files import cached_digest
from bert_pipeline.data.pairs import RANDOM, PairPlan, TokenizedShard, plan_pairs, write_rows
from bert_pipeline.data.tokenizer.encoding import Encoder
from bert_pipeline.formats.corpus import CorpusShard, corpus_shards
from bert_pipeline.formats.pairs import PairShard, first_row_shard, pass_directory
from bert_pipeline.formats.tables import SPLITS, shard_key, write_table
from bert_pipeline.formats.tokenizer import continuation_pieces, read_tokenizer
from bert_pipeline.recipe import NspRecipe
from bert_pipeline.store.artifact import Facts
from bert_pipeline.store.shards import Shard, build_shards, total


def build_nsp_dataset(
    section: NspRecipe, max_seq_lengths: tuple[int, ...], raw_corpus: Path, tokenizer: Path, out: Path
) -> Facts:
    """Pair both splits of a corpus at every sequence length: `dupe_factor` passes over train, one over held-out."""
    digest = cached_digest(tokenizer / "tokenizer.json")
    rules = section.for_origin() | {"max_seq_lengths": max_seq_lengths, "tokenizer": digest}
    shards = [
        Shard(
            parts[0].name,
            rules | {"corpus": [part.digest for part in parts]},
            (section, max_seq_lengths, parts, (tokenizer, digest)),
        )
        for parts in _pools(raw_corpus)
    ]
    entries = build_shards("nsp_dataset", build_shard, shards, out)
    counts = total(entry.facts for entry in entries)
    facts = {f"len_{length}": _facts(counts[str(length)], length) for length in max_seq_lengths}
    return facts | {"example": _example(tokenizer, out, max_seq_lengths[0])}


def _pools(corpus: Path) -> list[list[CorpusShard]]:
    """Group the shards of a corpus so that each group has at least two documents, because the B segment of a random
    pair comes from another document. A shard with a single document joins the next shard of its split.
    """
    pools: list[list[CorpusShard]] = []
    for split in SPLITS:
        pool: list[CorpusShard] = []
        for shard in corpus_shards(corpus, split):
            pool.append(shard)
            if sum(each.num_documents for each in pool) > 1:
                pools.append(pool)
                pool = []
        if pool:
            pools[-1] += pool
    return pools


@lru_cache(maxsize=1)
def _open_tokenizer(directory: Path, digest: str) -> tuple[Encoder, np.ndarray, int]:
    """The encoder, the continuation pieces and the vocabulary size, cached per worker process."""
    tokenizer = read_tokenizer(directory)
    return Encoder(tokenizer), continuation_pieces(tokenizer), tokenizer.get_vocab_size()


def build_shard(
    folder: Path,
    section: NspRecipe,
    max_seq_lengths: tuple[int, ...],
    parts: list[CorpusShard],
    tokenizer: tuple[Path, str],
) -> Facts:
    """Write every pass and length of one shard; return its counts by sequence length."""
    encoder, is_continuation, vocab_size = _open_tokenizer(*tokenizer)
    shard = tokenize_shard(parts, encoder)
    split, name = parts[0].name.split("/")
    counts: Facts = {}
    for max_seq_length in max_seq_lengths:
        of_this_length: list[Facts] = []
        for pass_number in range(section.dupe_factor if split == "train" else 1):
            plan = plan_pairs(
                shard, is_continuation, section, max_seq_length, split, pass_number, shard_key(parts[0].path)
            )
            rows = write_rows(shard, plan)
            path = pass_directory(folder, max_seq_length, split, pass_number) / f"{name}.arrow"
            write_table(path, rows.table(vocab_size))
            of_this_length.append(_count(split, plan, np.diff(rows.offsets), max_seq_length))
        counts[str(max_seq_length)] = total(of_this_length)
    return counts


def _count(split: str, plan: PairPlan, lengths: np.ndarray, max_seq_length: int) -> Facts:
    counts = {f"{split}_pairs": len(lengths), f"{split}_tokens": int(lengths.sum())}
    if split == "heldout":
        return counts
    return counts | {
        "random": int((plan.labels == RANDOM).sum()),
        "forced": int(plan.forced.sum()),
        "truncated": int(plan.truncated.sum()),
        "lengths": np.histogram(lengths, _length_edges(max_seq_length))[0].tolist(),
    }


def _length_edges(max_seq_length: int) -> np.ndarray:
    """Edges of the histogram of row lengths: bin i counts edges[i] <= x < edges[i + 1]."""
    return np.unique(np.linspace(0, max_seq_length + 1, 33).astype(int))


def tokenize_shard(parts: list[CorpusShard], encoder: Encoder) -> TokenizedShard:
    """Encode the sentences of corpus shards; skip sentences and documents without a token.

    Raises ValueError if fewer than two documents have text.
    """
    documents = pa.concat_tables([part.read("sentences") for part in parts])["sentences"].combine_chunks()
    input_ids, ends = encoder.encode(documents.flatten())
    sentences_before = np.concatenate(
        [[0], np.cumsum(np.diff(ends) > 0)]
    )  # sentences with a token before each sentence
    document_offsets = _distinct(sentences_before[documents.offsets.to_numpy()])
    if len(document_offsets) < 3:
        raise ValueError(
            f"{parts[0].path} holds {len(document_offsets) - 1} document(s) with text, but a random next sentence "
            "needs another document; remedy: use a larger corpus, or raise corpus.heldout_fraction"
        )
    return TokenizedShard(input_ids, _distinct(ends), document_offsets)


def _distinct(ascending: np.ndarray) -> np.ndarray:
    return ascending[np.concatenate([[True], np.diff(ascending) > 0])]


def _facts(counts: dict[str, Any], max_seq_length: int) -> Facts:
    pairs = counts["train_pairs"]
    if not pairs or not counts["heldout_pairs"]:
        raise ValueError(
            f'the corpus gives no pair of {max_seq_length} tokens: with objective = "sop" a document needs two '
            "sentences; remedy: use another objective, or longer documents"
        )
    return {
        "train_pairs": pairs,
        "heldout_pairs": counts["heldout_pairs"],
        "train_tokens": counts["train_tokens"],
        "heldout_tokens": counts["heldout_tokens"],
        "random_fraction": counts["random"] / pairs,
        "forced_random_fraction": counts["forced"] / pairs,
        "free_random_fraction": (counts["random"] - counts["forced"]) / max(pairs - counts["forced"], 1),
        "truncated_fraction": counts["truncated"] / pairs,
        "fill_fraction": counts["train_tokens"] / (pairs * max_seq_length),
        "length_histogram": {"edges": _length_edges(max_seq_length).tolist(), "counts": counts["lengths"]},
    }


def _example(tokenizer: Path, out: Path, max_seq_length: int) -> str:
    """The first training row as text, with its label."""
    first = PairShard.read(first_row_shard(out, max_seq_length))
    row = first.input_ids[: first.offsets[1]].tolist()
    text = read_tokenizer(tokenizer).decode(row, skip_special_tokens=False)
    return f"{text}\nnext_sentence_label = {first.next_sentence_label[0]}"
