"""The held-out loss of transformers' Trainer over time, on our pairs and masks. It runs in our environment."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from benchmarks.children import Answer, answer
from benchmarks.curves import read_recipe, with_seconds
from benchmarks.peers.transformers_trainer import Row, in_standard_view, optimizer_arguments, train
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.training.batches.dataset import PairDataset, open_masker
from bert_pipeline.training.heldout import heldout_scores
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model

BLOCK = 512
"""Rows read at once."""
HELDOUT_TOKENS = 16_384


class TrainingRows(torch.utils.data.Dataset):
    """The rows of our training in its order, read in blocks."""

    def __init__(self, dataset: PairDataset, num_rows: int, seed: int) -> None:
        self._num_rows = num_rows
        self._block = lru_cache(1)(lambda block: in_standard_view(dataset.samples(block * BLOCK, BLOCK, seed)))

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, number: int) -> Row:
        block, place = divmod(number, BLOCK)
        return self._block(block)[place]


class Recorder(TrainerCallback):
    """Seconds of each step, and held-out scores every `every` steps. Measuring them does not count as training."""

    def __init__(self, every: int, scorer: torch.nn.Module, dataset: PairDataset, pairs: int) -> None:
        self.every, self.scorer, self.dataset, self.pairs = every, scorer, dataset, pairs
        self.accelerator = Accelerator(cpu=True)
        self.seconds: list[float] = []
        self.points: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: torch.nn.Module, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        if state.global_step % self.every == 0 or state.global_step == args.max_steps:
            trained = getattr(model, "_orig_mod", model)
            self.scorer.model.load_state_dict(trained.state_dict())
            found = heldout_scores(self.scorer, self.dataset, self.pairs, HELDOUT_TOKENS, self.accelerator)
            self.points.append({"step": state.global_step} | found)
        self.began = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()


def learn(
    folder: str,
    num_steps: int,
    eval_every: int,
    heldout_pairs: int,
    adamw: dict[str, float] | None,
    full_length: bool,
    compiled: bool,
    places: int,
    precision: str,
) -> Answer:
    """Train for `num_steps` steps. `adamw`: learning_rate, weight_decay and warmup_steps; None: all as they come."""
    here = Path(folder)
    recipe = read_recipe(here)
    section, [*_, phase] = recipe.pretrain, recipe.pretrain.phases
    paths, length = (here / "nsp_dataset", here / "masked_dataset"), phase.max_seq_length
    masker = open_masker(recipe.masking, here / "tokenizer")
    batch = phase.global_batch_size
    rows = TrainingRows(PairDataset(*paths, length, "train", masker), num_steps * batch, section.seed)
    vocab_size = read_tokenizer(here / "tokenizer").get_vocab_size()
    published = recipe.model.model_copy(update={"structured_attention_layers": 0})
    set_seed(section.seed)
    model, scored = (build_model(published, vocab_size, section.seed) for _ in range(2))
    model.set_attn_implementation("sdpa")
    recorder = Recorder(eval_every, PretrainingLoss(scored), PairDataset(*paths, length, "heldout"), heldout_pairs)
    train(
        model,
        rows,
        here / "trainer",
        batch=batch,
        places=places,
        max_seq_length=length,
        full_length=full_length,
        callback=recorder,
        max_steps=num_steps,
        seed=section.seed,
        use_cpu=True,
        bf16=precision == "bf16",
        torch_compile=compiled,
        **(optimizer_arguments(section) | adamw if adamw else {}),
    )
    return {"curve": with_seconds(recorder.seconds, recorder.points)}


if __name__ == "__main__":
    answer(learn)
