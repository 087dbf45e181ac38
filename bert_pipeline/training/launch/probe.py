"""The probe: measures, before a run and on its pairs, which micro-batch fits into one device and how fast it trains.

`python -m bert_pipeline.training.launch.probe JOB.json PACE.json`; without the second file it prints only the tokens of
the best micro-batch on this machine. It is a separate process, because it imports torch
and because a micro-batch that is too large may get it killed. It computes what the training loop computes, with the
settings of the accelerate config, but on one device: time that devices spend waiting for each other is not measured.
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

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from bert_pipeline import settings
from bert_pipeline.core.files import peak_memory
from bert_pipeline.core.printable import log_to_stderr
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.recipe import PhaseRecipe
from bert_pipeline.training.batches.dataset import PairDataset, Rows, open_masker
from bert_pipeline.training.batches.packing import fill_up, micro_batches, pack
from bert_pipeline.training.checkpoint import Checkpoints
from bert_pipeline.training.determinism import request_determinism
from bert_pipeline.training.job import Job
from bert_pipeline.training.launch.budget import Pace
from bert_pipeline.training.memory import TooLittleMemory, free_on_cpu
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.optim import build_optimizer
from bert_pipeline.training.precision import check_precision

SMALLEST, LARGEST = {"cpu": 2_048, "cuda": 4_096}, {"cpu": 16_384, "cuda": 2**30}
"""Range of the micro-batches to try, in tokens; larger ones are not faster on a CPU."""
MEMORY_SHARE = 0.8
"""Share of the free memory to use. The rest is for fragmentation, gradient buckets and batches larger than measured."""
AS_GOOD = 0.02
"""The smallest micro-batch within this share of the best rate is chosen, because it leaves memory free."""
TIMED_SECONDS = 1.0
PATIENCE_SECONDS = 5.0
"""A micro-batch that would take longer is timed on a part of its pairs, and larger ones are not tried."""

log = logging.getLogger(__name__)


class Probe:
    """The model of a job on one device."""

    def __init__(self, job: Job) -> None:
        self.job, self.section = job, job.section
        config = load_config_from_file(str(settings.accelerate_config()))
        self.num_processes = settings.group().expected_world_size or config.num_processes
        # Sets what `accelerate launch` would pass on, so that the probe compiles what the run compiles.
        settings.compile_as_configured(config.dynamo_config)
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.use_cpu)
        self.device = self.accelerator.device
        check_precision(config.mixed_precision, self.device)
        request_determinism(self.device)
        local_processes = config.num_processes // config.num_machines
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_processes))
        on_cuda = self.device.type == "cuda"
        self.memory = MEMORY_SHARE * (_free_on_cuda() if on_cuda else _available_on_cpu() / local_processes)
        vocab_size = read_tokenizer(job.tokenizer).get_vocab_size()
        self.model = build_model(job.model, vocab_size, self.section.seed).to(self.device)
        self.objective = PretrainingLoss(self.model)
        self.loss = self.accelerator.prepare(self.objective).train()
        self.optimizer = build_optimizer(self.section, self.model)
        self.masker = open_masker(job.masking, job.tokenizer)
        self.rows = cache(self._rows)

    def pace(self) -> Pace:
        tokens = self.best_size() if self.job.per_device_tokens == "auto" else self.job.per_device_tokens
        pair_seconds = {}
        for phase in self.section.phases:
            part = self._affordable(self.rows(phase), tokens)
            seconds = self._time(partial(self._forward_and_backward, part, tokens))
            pair_seconds[str(phase.max_seq_length)] = seconds / len(part) / self.num_processes
        # `part` is of the last phase, whose length held-out pairs have.
        heldout_seconds = self._time(partial(self._forward, part, tokens)) / len(part) / self.num_processes
        return Pace(
            per_device_tokens=tokens,
            pair_seconds=pair_seconds,
            update_seconds=self._time(self._update),
            heldout_pair_seconds=heldout_seconds,
            checkpoint_seconds=self._checkpoint_seconds() if self.section.budget_minutes else 0.0,
        )

    def best_size(self) -> int:
        """Tokens of the smallest micro-batch whose rate is within AS_GOOD of the best one that fits."""
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
        if not rates:
            raise TooLittleMemory(self._too_little("does not fit: memory ran out during the first measurement"))
        best = max(rates.values())
        return next(size for size, rate in rates.items() if rate >= (1 - AS_GOOD) * best)

    def _sizes_that_fit(self, rows: Rows) -> Iterator[int]:
        """Doubling sizes, up to this device's share of a step. Raise TooLittleMemory if not even one pair fits."""
        smallest, largest = (sizes.get(self.device.type, sizes["cpu"]) for sizes in (SMALLEST, LARGEST))
        longest, several = rows.take(np.argmax(rows.lengths, keepdims=True)), _first(rows, smallest)
        try:
            self._peak_memory(longest)  # allocates the optimizer's moments, and compiles
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
            f"one pair of {length} tokens {what}, and {self.memory / 1e6:,.0f} MB ({MEMORY_SHARE:.0%} of the free "
            f"memory) may be used on {self.device}; remedy: free memory, a smaller model or a shorter max_seq_length"
        )

    def _peak_memory(self, rows: Rows) -> int:
        """Peak bytes of a step on these rows, including weights, gradients and moments."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._forward_and_backward(rows, rows.num_tokens)
        self._update()
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak_memory()

    def _rows(self, phase: PhaseRecipe) -> Rows:
        """As many training pairs as this device gets in a step of the phase."""
        paths = self.job.nsp_dataset, self.job.masked_dataset
        share = math.ceil(phase.global_batch_size / self.num_processes)
        dataset = PairDataset(*paths, phase.max_seq_length, "train", self.masker)
        return dataset.samples(0, share, self.section.seed)

    def _affordable(self, rows: Rows, tokens: int) -> Rows:
        """A micro-batch, or as many of its pairs as take at most PATIENCE_SECONDS."""
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
        """Forward pass as on held-out pairs: not compiled."""
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
        with tempfile.TemporaryDirectory(dir=self.job.out) as folder:
            clock = time.monotonic()
            Checkpoints(Path(folder), "probe", 1).save(0, self.model, self.optimizer, {})
            return time.monotonic() - clock

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of one call, after a warm-up call."""
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
    """As many of the first rows as have at most this many tokens, and at least one."""
    count = int(np.searchsorted(rows.offsets, tokens, side="right")) - 1
    return rows.take(np.arange(max(1, count)))


def _free_on_cuda() -> int:
    return torch.cuda.mem_get_info()[0]


def _available_on_cpu() -> int:
    """Bytes that this process uses at its peak or can still allocate."""
    return peak_memory() + free_on_cpu()


if __name__ == "__main__":
    log_to_stderr()
    probe = Probe(Job.read(Path(sys.argv[1])))
    if len(sys.argv) == 2:
        print(probe.best_size())
    else:
        Path(sys.argv[2]).write_text(json.dumps(asdict(probe.pace())), encoding="utf-8")
