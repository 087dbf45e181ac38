"""Runs the data stages on a sample and measures their time, disk space and memory.

It calls the stages' own functions shard by shard, as on the full corpus, in one worker process per stage and in a
temporary folder.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bert_pipeline import settings
from bert_pipeline.core.files import cached_digest
from bert_pipeline.data import masking, nsp
from bert_pipeline.data.corpus.build import MIN_DOCUMENTS
from bert_pipeline.data.corpus.shard import Pile, split_of, write_shard
from bert_pipeline.data.sources.records import Document
from bert_pipeline.data.tokenizer.build import VocabularySizeError, build_tokenizer, take_tokenizer_over
from bert_pipeline.data.tokenizer.counts import count_words
from bert_pipeline.data.tokenizer.encoding import Encoder
from bert_pipeline.formats.corpus import CorpusShard, corpus_shards, write_live
from bert_pipeline.formats.pairs import MaskShard, PairShard, pass_directory
from bert_pipeline.formats.tables import SPLITS, shard_name
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.planning.measured import measured
from bert_pipeline.planning.survey import Survey, num_characters
from bert_pipeline.recipe import Recipe, TokenizerRecipe
from bert_pipeline.stages import initial_directory
from bert_pipeline.store.artifact import Facts
from bert_pipeline.store.executors import end_idle_workers
from bert_pipeline.store.shards import INDEX, Shard, build_shards
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.job import Job
from bert_pipeline.training.launch.budget import Pace, measure_pace
from bert_pipeline.training.launch.build import per_device_tokens

FIRST = "first"
"""Split of a small shard that each worker builds first. It warms the worker up, and comparing its memory with that of a
larger shard gives the growth per character."""
FIRST_FRACTION = 1 / 8
COMPILING_SECONDS = 2.0
"""If the first shard takes this much longer than expected, numba compiled functions, which happens once per machine:
the stage is measured again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """Measurements of a stage on the sample."""

    seconds: float
    """CPU time in the stage's function."""
    overhead: float
    """Seconds to start a worker, and to hash and flush its files."""
    num_bytes: int
    highest: int
    """Peak memory of the worker in bytes."""
    largest: int
    """Characters of the largest shard."""
    growth: float
    """Bytes of memory per additional character of a shard."""

    def of(self, share: float) -> "Cost":
        """The cost of `share` times the text, in shards of the same size."""
        return replace(self, seconds=self.seconds * share, num_bytes=round(self.num_bytes * share))

    def peak_memory(self, characters: float) -> float:
        """Peak memory of a worker in bytes if the largest shard has this many characters."""
        return self.highest + self.growth * max(0.0, characters - self.largest)


@dataclass(frozen=True)
class Trial:
    """Results of running the data stages on the sample, without the first shard."""

    documents: int
    characters: int
    words: int
    num_tokens: int
    """Word pieces, without special tokens."""
    encoding_seconds: float
    """The part of nsp_dataset's seconds that does not grow with the number of passes."""
    stages: dict[str, Cost]
    tokenizer: Facts
    train_characters: int
    """Characters of the training shards; the vocabulary was learnt from them."""
    tokenizer_seconds: float
    counting_seconds: float
    """The part of them that grows with the text: counting words. The rest grows with distinct words, hardly at all."""
    tokenizer_bytes: int
    loads: dict[int, Load]
    """Load of one pass over the training shards, by sequence length."""


def run_trial(recipe: Recipe, found: Survey, folder: Path) -> Trial:
    """Run the data stages on the sample with one pass; write raw_corpus, tokenizer, ... under `folder`."""
    shards = _sample_shards(recipe, found)
    sizes = {name: sum(map(num_characters, documents)) for name, documents in shards.items()}
    out = {kind: folder / kind for kind in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")}
    stages: dict[str, Cost] = {}

    def run(kind: str, function: Callable[..., Facts], arguments: dict[str, tuple]) -> list[Facts]:
        log.info("plan: %s on a sample of %s characters", kind, f"{found.sample_characters:,}")
        stages[kind], facts = _run(function, arguments, sizes, out[kind])
        return facts

    run("raw_corpus", write_shard, {name: (recipe.corpus, name, each) for name, each in shards.items()})
    texts = {name: [_without_drops(out["raw_corpus"] / f"{name}.parquet")] for name in shards}
    write_live(out["raw_corpus"], [shard for [shard] in texts.values()])

    log.info("plan: tokenizer")
    clock = time.monotonic()
    about_tokenizer = _build_tokenizer(recipe, out["raw_corpus"], out["tokenizer"])
    tokenizer_seconds = time.monotonic() - clock
    tokenizer = out["tokenizer"], cached_digest(out["tokenizer"] / "tokenizer.json")

    clock = time.process_time()
    for shard in corpus_shards(out["raw_corpus"], "train"):
        sentences = (batch["sentences"].flatten() for batch in shard.batches("sentences"))
        count_words(read_tokenizer(tokenizer[0]), sentences)
    counting_seconds = time.process_time() - clock

    once, lengths = recipe.nsp.model_copy(update={"dupe_factor": 1}), recipe.max_seq_lengths
    run("nsp_dataset", nsp.build_shard, {name: (once, lengths, texts[name], tokenizer) for name in shards})

    # Most rows are for training; fewer tokens of held-out rows may be masked (HELDOUT_MASKED_LM_PROB).
    pairs = {name: [_pairs(name, length) for length in lengths] for name in shards if not name.startswith("heldout/")}
    arguments = {name: (recipe.masking, tokenizer, out["nsp_dataset"], paths) for name, paths in pairs.items()}
    run("masked_dataset", masking.build_shard, arguments)

    (first, *counted), (_, *train) = shards, pairs
    train_characters = sum(sizes[name] for name in train)
    stages["masked_dataset"] = stages["masked_dataset"].of(sum(sizes[name] for name in counted) / train_characters)
    encoder = Encoder(read_tokenizer(out["tokenizer"]))
    nsp.tokenize_shard(texts[first], encoder)  # loads compiled functions
    clock = time.process_time()
    num_tokens = sum(len(nsp.tokenize_shard(texts[name], encoder).input_ids) for name in counted)
    return Trial(
        documents=sum(texts[name][0].num_documents for name in counted),
        characters=sum(sizes[name] for name in counted),
        words=sum(pc.sum(texts[name][0].read("num_words")["num_words"]).as_py() or 0 for name in counted),
        num_tokens=num_tokens,
        encoding_seconds=time.process_time() - clock,
        stages=stages,
        tokenizer=about_tokenizer,
        train_characters=train_characters,
        tokenizer_seconds=tokenizer_seconds,
        counting_seconds=counting_seconds,
        tokenizer_bytes=sum(path.stat().st_size for path in out["tokenizer"].iterdir()),
        loads={length: _load(folder, [_pairs(name, length) for name in train]) for length in lengths},
    )


def measure_training(recipe: Recipe, folder: Path) -> Pace:
    """Time training on the pairs that `run_trial` wrote into `folder`. Raises ProbeFailed."""
    log.info("plan: pretraining")
    job = Job(
        section=recipe.pretrain,
        model=recipe.model,
        masking=recipe.masking,
        tokenizer=folder / "tokenizer",
        nsp_dataset=folder / "nsp_dataset",
        masked_dataset=folder / "masked_dataset",
        out=folder,
        per_device_tokens=per_device_tokens(),
    )
    return measure_pace(job, folder, settings.child_environment(settings.CPU_ENVIRONMENT))


def _sample_shards(recipe: Recipe, found: Survey) -> dict[str, list[Document]]:
    """Split the sample into shards of the recipe's size, by name.

    If the sample is the complete corpus, documents keep their splits. Otherwise a quarter is held out, so that the
    vocabulary is measured on text that it was not learnt from.
    """
    fraction = recipe.corpus.heldout_fraction
    splits = {split: [d for d in found.sample if split_of(d.document_id, fraction) == split] for split in SPLITS}
    if not found.is_whole or min(map(len, splits.values())) < MIN_DOCUMENTS:
        train = [document for number, document in enumerate(found.sample) if number % 4]
        splits = {"train": train, "heldout": found.sample[::4]}
    num_first = min(recipe.corpus.documents_per_shard, int(FIRST_FRACTION * len(found.sample)))
    parts = [(FIRST, found.sample[: max(MIN_DOCUMENTS, num_first)])]
    for split, documents in splits.items():
        pile = Pile(recipe.corpus.documents_per_shard)
        parts += [(split, leaving) for document in documents if (leaving := pile.add(document))]
        parts.append((split, pile.documents))
    return {f"{split}/{shard_name(documents[0].document_id)}": documents for split, documents in parts}


def _build_tokenizer(recipe: Recipe, raw_corpus: Path, out: Path) -> Facts:
    """Build the tokenizer, with fewer pieces if the sample does not yield all."""
    init_from = initial_directory(recipe)

    def build(section: TokenizerRecipe) -> Facts:
        out.mkdir()
        if init_from:
            return take_tokenizer_over(section, init_from, raw_corpus, out)
        return build_tokenizer(section, raw_corpus, out)

    try:
        return build(recipe.tokenizer)
    except VocabularySizeError as error:
        size = "extend" if init_from else "vocab_size"
        if not 0 < error.possible < getattr(recipe.tokenizer, size):
            raise
        log.warning("plan: on the sample: %s; planning with %d", error, error.possible)
        shutil.rmtree(out)
        return build(recipe.tokenizer.model_copy(update={size: error.possible}))


def _without_drops(path: Path) -> CorpusShard:
    """A shard with all its rows: duplicates are too few to matter."""
    return CorpusShard(path, cached_digest(path), pq.read_metadata(path).num_rows)


def _pairs(name: str, max_seq_length: int) -> str:
    split, shard = name.split("/")
    return str(pass_directory(Path(), max_seq_length, split) / f"{shard}.arrow")


def _load(folder: Path, paths: list[str]) -> Load:
    pairs = [PairShard.read(folder / "nsp_dataset" / path) for path in paths]
    lengths = np.concatenate([np.diff(shard.offsets) for shard in pairs]).astype(np.int64)
    masked = sum(len(MaskShard.read(folder / "masked_dataset" / path).positions) for path in paths)
    return Load(int(lengths.sum()), int((lengths**2).sum()), masked, len(lengths))


def _run(
    function: Callable[..., Facts], arguments: dict[str, tuple[Any, ...]], sizes: dict[str, int], out: Path
) -> tuple[Cost, list[Facts]]:
    """Build the shards of a stage in order; return the cost and the facts of all but the first."""
    name_of_first, *names = arguments
    for attempt in range(2):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        shards = [Shard(name, name, (function, *each)) for name, each in arguments.items()]
        clock = time.monotonic()
        with settings.one_worker():
            built = build_shards(f"plan: {out.name}", measured, shards, out)
            end_idle_workers()  # stage by stage, as with separate commands of bert-pipeline
        wall = time.monotonic() - clock
        facts = {entry.name: entry.facts for entry in built}
        seconds = sum(facts[name]["seconds"] for name in names)
        expected = seconds * sizes[name_of_first] / sum(sizes[name] for name in names)
        if attempt or facts[name_of_first]["seconds"] - expected < COMPILING_SECONDS:
            break
    peaks = {name: facts[name]["peak_memory"] for name in arguments}
    lines = (out / INDEX).read_text(encoding="utf-8").splitlines(keepends=True)
    cost = Cost(
        seconds=seconds,
        overhead=max(0.0, wall - seconds),
        num_bytes=sum(file["bytes"] for entry in built if entry.name in names for file in entry.files.values())
        + sum(len(line.encode()) for line in lines if name_of_first not in line),
        highest=max(peaks.values()),
        largest=max(sizes.values()),
        growth=max(0.0, (peaks[names[0]] - peaks[name_of_first]) / max(1, sizes[names[0]] - sizes[name_of_first])),
    )
    return cost, [facts[name]["facts"] for name in names]
