"""The measured tasks of the pretraining benchmark; each runs in a process of its own (see children.py).

<folder>/recipe.json       the recipe, reduced to one pass over a text and one phase per length
<folder>/raw_corpus ...    its artifacts, up to masked_dataset

Our side is the regular stage `pretrained_checkpoint`: `accelerate launch`, metrics.jsonl, a checkpoint and the export
at the end. The clock of its metrics counts; the warm-up steps do not.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Answer, answer
from benchmarks.text import corpus_and_tokenizer
from bert_pipeline.recipe import PhaseRecipe, Recipe
from bert_pipeline.store import artifact

LEAST_STEPS = 4
WARM_UP_FRACTION = 0.25
"""Warm-up steps as a share of the timed steps: for compilation, and for the allocator to have seen all sizes."""
LEAST_WARM_UP = 3
LEARNING_RATE_WARM_UP = 100
"""Steps, used if the recipe's own warm-up is a share of its budget of minutes."""
HELDOUT_FRACTION = 0.02
"""Share of the documents: the fraction of a recipe for a large corpus may be less than one of these few."""


def cut_down(recipe: Recipe, corpus: dict[str, Any], max_seq_lengths: list[int]) -> Recipe:
    """Reduce a recipe to one pass over another corpus, random weights, and one phase per length.

    The phase of a length is the recipe's first phase of that length, else its first phase with the length changed. Each
    has a schedule of its own.
    """
    phases = recipe.pretrain.phases
    schedule = phases[0].model_dump(include={"learning_rate", "muon_learning_rate", "warmup_steps"})
    schedule["warmup_steps"] = schedule["warmup_steps"] or LEARNING_RATE_WARM_UP

    def phase(number: int, length: int) -> dict[str, Any]:
        like = next((each for each in phases if each.max_seq_length == length), phases[0])
        own = schedule | {name: value for name in schedule if (value := getattr(like, name))}
        steps = {"max_seq_length": length, "num_steps": 1, "global_batch_size": like.global_batch_size}
        return steps | own | {"learning_rate_handover": "restart" if number else None}

    chosen = recipe.model_dump(mode="json")
    chosen["corpus"] = corpus | {"source": "files", "heldout_fraction": HELDOUT_FRACTION}
    chosen["nsp"]["dupe_factor"] = 1
    cut = {"phases": [phase(*each) for each in enumerate(max_seq_lengths)], "budget_minutes": None, "init_from": ""}
    chosen["pretrain"] |= cut
    return Recipe.model_validate_json(json.dumps(chosen))


def prepare(folder: str, recipe: dict[str, Any], flops: float) -> Answer:
    """Build the datasets, and choose for each phase a number of steps that takes `flops` operations."""
    from bert_pipeline.lineage import make_stage

    here, started = Path(folder), time.perf_counter()
    chosen = Recipe.model_validate_json(json.dumps(recipe))
    (here / "recipe.json").write_text(chosen.model_dump_json(), encoding="utf-8")
    made = corpus_and_tokenizer(chosen, here)
    for kind in ("nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, chosen, made, here / kind)
    vocab_size = made["tokenizer"].facts["vocab_size"]
    return {
        "seconds": time.perf_counter() - started,
        "vocab_size": vocab_size,
        "words": made["raw_corpus"].facts["train_words"],
        "stretches": [stretch(here, chosen, phase, vocab_size, flops) for phase in chosen.pretrain.phases],
    }


def stretch(folder: Path, recipe: Recipe, phase: PhaseRecipe, vocab_size: int, flops: float) -> Answer:
    """The numbers of warm-up and timed steps of a phase, and the tokens and FLOPs of the timed ones."""
    from bert_pipeline.training.batches.dataset import Load
    from bert_pipeline.training.model.flops import training_flops

    dataset, batch = train_dataset(folder, recipe, phase.max_seq_length), phase.global_batch_size

    def load(first: int, count: int) -> Load:
        rows = dataset.samples(first * batch, count * batch, recipe.pretrain.seed)
        squared_lengths = int((rows.lengths.astype(np.int64) ** 2).sum())
        return Load(rows.num_tokens, squared_lengths, rows.num_masked, len(rows))

    counted = max(LEAST_STEPS, math.ceil(flops / training_flops(recipe.model, vocab_size, load(0, 1))))
    warm_up = max(LEAST_WARM_UP, math.ceil(counted * WARM_UP_FRACTION))
    timed = load(warm_up, counted)
    mean_length = timed.tokens / timed.pairs
    return {
        "max_seq_length": phase.max_seq_length,
        "global_batch_size": batch,
        "warm_up": warm_up,
        "num_steps": warm_up + counted,
        "tokens": int(timed.tokens),
        "flops": training_flops(recipe.model, vocab_size, timed),
        "mean_length": mean_length,
        "fill": mean_length / phase.max_seq_length,
    }


def train_dataset(folder: Path, recipe: Recipe, max_seq_length: int) -> Any:
    from bert_pipeline.training.batches.dataset import PairDataset, open_masker

    masker = open_masker(recipe.masking, folder / "tokenizer")
    return PairDataset(folder / "nsp_dataset", folder / "masked_dataset", max_seq_length, "train", masker)


def read_recipe(folder: Path, max_seq_length: int, num_steps: int) -> Recipe:
    """The recipe with only its phase of this length."""
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_bytes())
    [phase] = (each for each in recipe.pretrain.phases if each.max_seq_length == max_seq_length)
    alone = phase.model_copy(update={"num_steps": num_steps, "learning_rate_handover": None})
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"phases": (alone,)})})


def pretrain(folder: str, max_seq_length: int, warm_up: int, num_steps: int) -> Answer:
    """Train and delete the result. The environment sets device and precision."""
    from bert_pipeline.lineage import make_stage

    here, out = Path(folder), Path(folder, "pretrained_checkpoint")
    recipe = read_recipe(here, max_seq_length, num_steps)
    rarely = {"eval_every": num_steps, "checkpoint_every": num_steps, "checkpoints_kept": 1, "heldout_pairs": 8}
    section = recipe.pretrain.model_copy(update={"log_every": warm_up} | rarely)
    inputs = {kind: artifact.load(here / kind) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")}
    rows: list[dict[str, Any]] = []
    make_stage("pretrained_checkpoint", recipe.model_copy(update={"pretrain": section}), inputs, out, rows.append)
    shutil.rmtree(out)
    steps = [row for row in rows if "tokens" in row]
    counted = [row for row in steps if row["step"] > warm_up]
    seconds = [row["tokens"] / row["tokens_per_second"] for row in counted]

    def mean(name: str) -> float:
        return float(np.average([row[name] for row in counted], weights=seconds))

    return {
        "tokens": sum(row["tokens"] for row in counted),
        "seconds": sum(seconds),
        "first_loss": steps[0]["loss"],
        "data_wait_fraction": mean("data_wait_fraction"),
        "reported_utilization": mean("model_flops_utilization"),
    }


def matmul(device: str, precision: str) -> Answer:
    """Operations per second of matrix products, measured as for the training metrics."""
    import torch

    from bert_pipeline.training.utilization import matmul_peak

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device; remedy: --device cpu")
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    peak = max(matmul_peak(torch.device(device), dtype) for _ in range(3))
    return {"flops_per_second": peak, "device_name": torch.cuda.get_device_name() if device == "cuda" else "the CPU"}


if __name__ == "__main__":
    answer(prepare, pretrain, matmul)
