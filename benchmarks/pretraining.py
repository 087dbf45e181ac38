"""What is measured of pretraining, each in a process of its own (see children.py).

<folder>/recipe.json       the recipe as it stands
<folder>/raw_corpus ...    one pass over them, at each length, up to masked_dataset

Ours is the stage `pretrained_checkpoint` as everybody runs it: `accelerate launch`, metrics.jsonl, a checkpoint and
the export at the end. What counts are its steps after the first ones, by the clock of its metrics.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.children import Answer, answer
from benchmarks.text import corpus_and_tokenizer
from bert_pipeline.recipe import PhaseRecipe, Recipe

LEAST_STEPS = 4
WARM_UP_FRACTION = 0.25
"""Steps before those that count, as a share of them: for compilation, and for the allocator to have seen all sizes."""
LEAST_WARM_UP = 3
HELDOUT_FRACTION = 0.02
"""Of the documents: a recipe for a large corpus may ask for less than one of these few."""


def prepare(folder: str, recipe: dict[str, Any], max_seq_lengths: list[int], flops: float) -> Answer:
    """The datasets, and of each length the stretch of training that takes so many operations."""
    from bert_pipeline.stages import make_stage

    here, started = Path(folder), time.perf_counter()
    asked = Recipe.model_validate_json(json.dumps(recipe))
    corpus = asked.corpus.model_copy(update={"heldout_fraction": HELDOUT_FRACTION})
    phases = tuple(phase_of(asked, length) for length in max_seq_lengths)
    chosen = asked.model_copy(
        update={
            "corpus": corpus,
            "nsp": asked.nsp.model_copy(update={"dupe_factor": 1}),
            "pretrain": asked.pretrain.model_copy(update={"phases": phases}),
        }
    )
    made = corpus_and_tokenizer(chosen, here)
    for kind in ("nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, chosen, made, here / kind)
    (here / "recipe.json").write_text(asked.model_dump_json(), encoding="utf-8")
    vocab_size = made["tokenizer"].facts["vocab_size"]
    return {
        "seconds": time.perf_counter() - started,
        "vocab_size": vocab_size,
        "words": made["raw_corpus"].facts["train_words"],
        "stretches": [stretch(here, chosen, phase, vocab_size, flops) for phase in phases],
    }


def phase_of(recipe: Recipe, max_seq_length: int) -> PhaseRecipe:
    """The recipe's first phase at this length, else its first one stretched to it, with a schedule of its own."""
    phases = recipe.pretrain.phases
    first = next((phase for phase in phases if phase.max_seq_length == max_seq_length), phases[0])
    starts = first if first.learning_rate else phases[0]
    return PhaseRecipe(
        max_seq_length=max_seq_length,
        num_steps=first.num_steps,
        global_batch_size=first.global_batch_size,
        learning_rate=starts.learning_rate,
        warmup_steps=starts.warmup_steps,
    )


def stretch(folder: Path, recipe: Recipe, phase: PhaseRecipe, vocab_size: int, flops: float) -> Answer:
    """How many steps are taken, how many of them are no more than warm-up, and what the others compute on."""
    import numpy as np

    from bert_pipeline.planning.hardware import Load, training_flops

    dataset, batch, seed = train_dataset(folder, phase.max_seq_length), phase.global_batch_size, recipe.pretrain.seed

    def load(first: int, count: int) -> Load:
        rows = dataset.samples(first * batch, count * batch, seed)
        squared_lengths = int((rows.lengths.astype(np.int64) ** 2).sum())
        return Load(rows.num_tokens, squared_lengths, rows.num_masked, len(rows))

    one_step = training_flops(recipe.model, vocab_size, load(0, 1))
    counted = max(LEAST_STEPS, math.ceil(flops / one_step))
    warm_up = max(LEAST_WARM_UP, math.ceil(counted * WARM_UP_FRACTION))
    asked = load(warm_up, counted)
    mean_length = asked.tokens / asked.pairs
    return {
        "max_seq_length": phase.max_seq_length,
        "global_batch_size": batch,
        "warm_up": warm_up,
        "num_steps": warm_up + counted,
        "tokens": int(asked.tokens),
        "flops": training_flops(recipe.model, vocab_size, asked),
        "mean_length": mean_length,
        "fill": mean_length / phase.max_seq_length,
    }


def train_dataset(folder: Path, max_seq_length: int) -> Any:
    from bert_pipeline.training.batches import PairDataset

    return PairDataset(
        folder / "nsp_dataset", folder / "masked_dataset", folder / "tokenizer", max_seq_length, split="train"
    )


def read_recipe(folder: Path, max_seq_length: int, num_steps: int) -> Recipe:
    """The recipe with this one phase, cut short; its warm-up of the learning rate may be longer than that."""
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_bytes())
    phase = phase_of(recipe, max_seq_length).model_copy(update={"num_steps": num_steps})
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"phases": (phase,)})})


def pretrain(folder: str, max_seq_length: int, warm_up: int, num_steps: int) -> Answer:
    """Train and leave nothing; device and precision stand in the environment, as ever."""
    from bert_pipeline import artifact
    from bert_pipeline.stages import make_stage

    here = Path(folder)
    recipe = read_recipe(here, max_seq_length, num_steps)
    seldom = {"eval_every": num_steps, "checkpoint_every": num_steps, "checkpoints_kept": 1, "heldout_pairs": 8}
    section = recipe.pretrain.model_copy(update={"log_every": warm_up} | seldom)
    inputs = {kind: artifact.load(here / kind) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")}
    rows: list[dict[str, Any]] = []
    out = here / "pretrained_checkpoint"
    made = make_stage(
        "pretrained_checkpoint", recipe.model_copy(update={"pretrain": section}), inputs, out, rows.append
    )
    shutil.rmtree(made.path)
    steps = [row for row in rows if "tokens" in row]
    counted = [row for row in steps if row["step"] > warm_up]
    seconds = [row["tokens"] / row["tokens_per_second"] for row in counted]

    def mean(name: str) -> float:
        return sum(row[name] * each for row, each in zip(counted, seconds, strict=True)) / sum(seconds)

    reported = ("data_wait_fraction", "model_flops_utilization")
    return {
        "tokens": sum(row["tokens"] for row in counted),
        "seconds": sum(seconds),
        "first_loss": steps[0]["loss"],
        **{name: mean(name) for name in reported if name in counted[0]},
    }


MATMUL = {"cpu": 2048, "cuda": 8192}
MATMUL_CALLS, MATMUL_ROUNDS = 5, 10


def matmul(device: str, precision: str) -> Answer:
    """Operations a second of the best of several series of large square matrix products of random numbers."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device; remedy: --device cpu")
    size, number_type = MATMUL[device], {"float32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = (torch.randn(size, size, device=device).to(number_type) for _ in range(2))
    product = left @ right
    best = math.inf
    for _ in range(MATMUL_ROUNDS):
        wait(device)
        started = time.perf_counter()
        for _ in range(MATMUL_CALLS):
            torch.matmul(left, right, out=product)
        wait(device)
        best = min(best, time.perf_counter() - started)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"flops_per_second": 2 * size**3 * MATMUL_CALLS / best, "device_name": name}


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    answer(prepare, pretrain, matmul)
