"""What one device holds, and how fast it trains: measured on pairs of the run, before the run.

`python -m bert_pipeline.training.launch.probe JOB.json PACE.json`. A process of its own: it imports torch, and a
micro-batch that is too large may cost it its life. It runs what the training loop runs, at the settings of the
accelerate config, but on one device: what the devices lose by waiting for each other is not seen.
"""

import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from bert_pipeline import settings
from bert_pipeline.core.files import peak_memory
from bert_pipeline.core.printable import log_to_stderr
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.recipe import ModelRecipe, PhaseRecipe, PretrainRecipe
from bert_pipeline.training.batches.dataset import PairDataset, Rows
from bert_pipeline.training.batches.packing import fill_up, micro_batches, pack
from bert_pipeline.training.checkpoint import Checkpoints
from bert_pipeline.training.launch.budget import Pace
from bert_pipeline.training.memory import TooLittleMemory, free_on_cpu
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.optim import build_optimizer

SMALLEST, LARGEST = {"cpu": 2_048, "cuda": 4_096}, {"cpu": 16_384, "cuda": 2**30}
"""Tokens of the micro-batches that are tried; on a CPU larger ones gain nothing."""
MEMORY_SHARE = 0.8
"""Of what is free. The rest is for what the probe does not see: fragments, buckets of gradients, unlucky batches."""
AS_GOOD = 0.02
"""The smallest micro-batch whose rate is so close to the best one is taken: it leaves memory."""
TIMED_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""A micro-batch that would take longer is judged by a part of its pairs; a larger one is not tried."""

log = logging.getLogger(__name__)


class Probe:
    """The model of a job on one device."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.section = PretrainRecipe.model_validate_json(json.dumps(job["section"]))
        config = load_config_from_file(str(settings.accelerate_config()))
        self.num_processes = config.num_processes
        # As `accelerate launch` hands it on: what it compiles is compiled here.
        settings.compile_as_configured(config.dynamo_config)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.use_cpu)
        self.device = self.accelerator.device
        neighbours = config.num_processes // config.num_machines
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours))
        self.memory = MEMORY_SHARE * (_free_on_cuda() if self.device.type == "cuda" else _for_us_on_cpu() / neighbours)
        vocab_size = read_tokenizer(Path(job["tokenizer"])).get_vocab_size()
        self.model = build_model(ModelRecipe(**job["model"]), vocab_size, self.section.seed).to(self.device)
        self.objective = PretrainingLoss(self.model)
        self.loss = self.accelerator.prepare(self.objective).train()
        self.optimizer = build_optimizer(self.section, self.model)
        self.rows = cache(self._rows)

    def pace(self) -> Pace:
        asked = self.job["per_device_tokens"]
        tokens = self.best_size() if asked == "auto" else asked
        pair_seconds = {}
        for phase in self.section.phases:
            part = self._affordable(self.rows(phase), tokens)
            seconds = self._time(partial(self._forward_and_backward, part, tokens))
            pair_seconds[str(phase.max_seq_length)] = seconds / len(part) / self.num_processes
        # `part` has the length of the last phase, as held-out pairs have.
        heldout_seconds = self._time(partial(self._forward, part, tokens)) / len(part) / self.num_processes
        return Pace(
            per_device_tokens=tokens,
            pair_seconds=pair_seconds,
            update_seconds=self._time(self._update),
            heldout_pair_seconds=heldout_seconds,
            checkpoint_seconds=self._checkpoint_seconds() if self.section.budget_minutes else 0.0,
        )

    def best_size(self) -> int:
        """Tokens of a micro-batch: the smallest that is as good as the best of those that fit."""
        rows = self.rows(max(self.section.phases, key=lambda phase: phase.max_seq_length))
        rates: dict[int, float] = {}
        with suppress(torch.OutOfMemoryError):
            for size in self._sizes_that_fit(rows):
                part = _first(rows, size)
                seconds = self._time(partial(self._forward_and_backward, part, size))
                rates[size] = part.num_tokens / seconds
                log.info("probe: micro-batches of %s tokens: %s tokens/s", f"{size:,}", f"{rates[size]:,.0f}")
                if 2 * seconds > PATIENCE_SECONDS:
                    break
        best = max(rates.values())
        return next(size for size, rate in rates.items() if rate >= (1 - AS_GOOD) * best)

    def _sizes_that_fit(self, rows: Rows) -> Iterator[int]:
        """Doubling sizes, up to one that holds all of this device's share of a step."""
        smallest, largest = (sizes.get(self.device.type, sizes["cpu"]) for sizes in (SMALLEST, LARGEST))
        longest, several = rows.take(np.argmax(rows.lengths, keepdims=True)), _first(rows, smallest)
        try:
            self._peak_memory(longest)  # brings the optimizer's moments, and what is compiled
            base = self._peak_memory(longest)
        except torch.OutOfMemoryError as error:
            raise TooLittleMemory(self._too_little(f"does not fit: {error}")) from None
        if base > self.memory:
            raise TooLittleMemory(self._too_little(f"needs {base / 1e6:,.0f} MB"))
        try:
            grown = max(0, self._peak_memory(several) - base)
        except torch.OutOfMemoryError:
            yield longest.num_tokens
            return
        tokens = max(1, several.num_tokens - longest.num_tokens)
        limit = longest.num_tokens + (self.memory - base) * tokens / grown if grown else math.inf
        log.info("probe: about %s tokens fit into %.0f MB", f"{limit:,.0f}", self.memory / 1e6)
        size = int(min(smallest, limit))
        yield size
        while size < rows.num_tokens and 2 * size <= min(largest, limit):
            size *= 2
            yield size

    def _too_little(self, what: str) -> str:
        length = max(phase.max_seq_length for phase in self.section.phases)
        return (
            f"one pair of {length} tokens {what}, and {self.memory / 1e6:,.0f} MB ({MEMORY_SHARE:.0%} of what is free) "
            f"may be used on {self.device}; remedy: free memory, a smaller model or a shorter max_seq_length"
        )

    def _peak_memory(self, rows: Rows) -> int:
        """Bytes at the height of a step on these rows, with weights, gradients and moments."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._forward_and_backward(rows, rows.num_tokens)
        self._update()
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _highest_on_cpu()

    def _rows(self, phase: PhaseRecipe) -> Rows:
        """This device's share of the first step of a phase, or as many pairs."""
        pairs, masks, tokenizer = (Path(self.job[kind]) for kind in ("nsp_dataset", "masked_dataset", "tokenizer"))
        share = math.ceil(phase.global_batch_size / self.num_processes)
        return PairDataset(pairs, masks, tokenizer, phase.max_seq_length, "train").samples(0, share, self.section.seed)

    def _affordable(self, rows: Rows, tokens: int) -> Rows:
        """A micro-batch, or as many of its pairs as do not take too long."""
        one = _first(rows, 1)
        self._forward_and_backward(one, tokens)
        clock = time.monotonic()
        self._forward_and_backward(one, tokens)
        rate = one.num_tokens / (time.monotonic() - clock)
        return _first(rows, min(tokens, int(rate * PATIENCE_SECONDS)))

    def _forward_and_backward(self, rows: Rows, tokens: int) -> None:
        for part in micro_batches(rows, tokens):
            with self.accelerator.autocast():
                sums = self.loss(**self._tensors(part))
            self.accelerator.backward((sums.mlm_loss + sums.nsp_loss) / max(rows.num_masked, 1))

    def _forward(self, rows: Rows, tokens: int) -> None:
        """As for held-out pairs: not compiled."""
        self.objective.eval()
        with torch.inference_mode():
            for part in micro_batches(rows, tokens):
                with self.accelerator.autocast():
                    self.objective(**self._tensors(part))
        self.objective.train()

    def _tensors(self, rows: Rows) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in fill_up(pack(rows)).items()}

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.loss.parameters(), self.section.max_grad_norm)
        self.optimizer.step()

    def _checkpoint_seconds(self) -> float:
        with tempfile.TemporaryDirectory(dir=Path(self.job["out"])) as folder:
            clock = time.monotonic()
            Checkpoints(Path(folder), "probe", 1).save(0, self.model, self.optimizer, {})
            return time.monotonic() - clock

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of one call, after one that warms up."""
        work()
        self._synchronize()
        calls, clock, seconds = 0, time.monotonic(), 0.0
        while seconds < TIMED_SECONDS:
            work()
            self._synchronize()
            calls += 1
            seconds = time.monotonic() - clock
        return seconds / calls

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _first(rows: Rows, tokens: int) -> Rows:
    """As many of the first rows as have at most so many tokens; at least one."""
    count = int(np.searchsorted(rows.offsets, tokens, side="right")) - 1
    return rows.take(np.arange(max(1, count)))


def _free_on_cuda() -> int:
    return torch.cuda.mem_get_info()[0]


def _for_us_on_cpu() -> int:
    """Bytes that this process may come to hold."""
    return _highest_on_cpu() + free_on_cpu()


def _highest_on_cpu() -> int:
    """The highest memory of this process so far in bytes."""
    return peak_memory()


if __name__ == "__main__":
    log_to_stderr()
    found = Probe(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))).pace()
    Path(sys.argv[2]).write_text(json.dumps(asdict(found)), encoding="utf-8")
