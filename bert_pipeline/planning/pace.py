"""How fast this machine trains the recipe's model: rows of the sample forward and backward, as in pretraining.

`python -m bert_pipeline.planning.pace FOLDER`, where FOLDER holds recipe.json and the trial's datasets; the pace as
JSON on standard output. A process of its own, because it imports torch.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from bert_pipeline import formats
from bert_pipeline.flops import training_flops
from bert_pipeline.formats import MaskShard, PairShard
from bert_pipeline.recipe import Recipe
from bert_pipeline.training.batches import Rows
from bert_pipeline.training.launch import accelerate_config, per_device_tokens
from bert_pipeline.training.loss import PretrainingLoss
from bert_pipeline.training.model import build_model
from bert_pipeline.training.optim import build_optimizer
from bert_pipeline.training.packing import micro_batches, pack
from bert_pipeline.vocabulary import read_tokenizer

MOST_FLOPS = {"cpu": 2e11, "cuda": 2e13}
"""A few seconds of a small machine of its kind; a step that takes more is judged by a part of its rows."""
TIMED_SECONDS = 1.0


def measure_pace(recipe: Recipe, folder: Path) -> dict[str, dict[str, float]]:
    """By sequence length the seconds for a pair, forward and backward, and for an update of the weights."""
    config = load_config_from_file(str(accelerate_config()))
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.use_cpu)
    device = accelerator.device
    if device.type == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    vocab_size = read_tokenizer(folder / "tokenizer").get_vocab_size()
    model = build_model(recipe.model, vocab_size, recipe.pretrain.seed).to(device)
    loss = accelerator.prepare(PretrainingLoss(model)).train()
    optimizer = build_optimizer(recipe.pretrain, model)
    found = {}
    for phase in recipe.pretrain.phases:
        rows = _first_rows(folder, phase.max_seq_length, phase.global_batch_size)
        most = MOST_FLOPS.get(device.type, MOST_FLOPS["cpu"])
        while len(rows) > 1 and training_flops(recipe.model, vocab_size, rows.load) > most:
            rows = rows.take(np.arange(len(rows) // 2))
        parts = [
            {name: tensor.to(device) for name, tensor in pack(part).items()}
            for part in micro_batches(rows, per_device_tokens())
        ]
        seconds = _time(partial(_forward_and_backward, loss, parts, accelerator), accelerator)
        found[str(phase.max_seq_length)] = {
            "pair_seconds": seconds / len(rows) / config.num_processes,
            "update_seconds": _time(optimizer.step, accelerator),
        }
    return found


def _first_rows(folder: Path, max_seq_length: int, count: int) -> Rows:
    """Pairs of the sample with their masks."""
    path = formats.first_row_shard(folder / "nsp_dataset", max_seq_length)
    pairs = PairShard.read(path)
    masks = MaskShard.read(folder / "masked_dataset" / path.relative_to(folder / "nsp_dataset"))
    rows = min(count, len(pairs))
    end, masks_end = pairs.offsets[rows], masks.offsets[rows]
    return Rows(
        pairs.input_ids[:end],
        pairs.offsets[: rows + 1],
        pairs.segment_a_length[:rows],
        pairs.next_sentence_label[:rows],
        masks.positions[:masks_end],
        masks.input_ids[:masks_end],
        masks.offsets[: rows + 1],
    )


def _forward_and_backward(loss: nn.Module, parts: list[dict[str, torch.Tensor]], accelerator: Accelerator) -> None:
    for part in parts:
        with accelerator.autocast():
            sums = loss(**part)
        accelerator.backward(sums.mlm_loss + sums.nsp_loss)


def _time(work: Callable[[], object], accelerator: Accelerator) -> float:
    """Seconds of one call, after one that warms up."""
    work()
    calls, clock, seconds = 0, time.monotonic(), 0.0
    while seconds < TIMED_SECONDS:
        work()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        calls += 1
        seconds = time.monotonic() - clock
    return seconds / calls


if __name__ == "__main__":
    where = Path(sys.argv[1])
    print(json.dumps(measure_pace(Recipe.model_validate_json((where / "recipe.json").read_bytes()), where)))
