"""The micro-batches of each optimizer step, prefetched in a thread."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from bert_pipeline.recipe import PretrainRecipe
from bert_pipeline.training.batches.dataset import Load, PairDataset
from bert_pipeline.training.batches.packing import fill_up, micro_batches, pack


@dataclass(frozen=True)
class Step:
    """This process's micro-batches of one step, and the counts of the whole step over all processes."""

    parts: list[dict[str, torch.Tensor]]
    load: Load
    num_labelled: int  # pairs with a next-sentence label


class StepReader:
    """The steps of a recipe. The next one is prepared while the device computes the current one."""

    def __init__(
        self,
        section: PretrainRecipe,
        datasets: Mapping[int, PairDataset],
        per_device_tokens: int,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """`datasets`: the training split by `max_seq_length`, for the lengths of all phases."""
        self.section, self.datasets, self.per_device_tokens = section, datasets, per_device_tokens
        self.rank, self.world_size = rank, world_size

    def step(self, number: int) -> Step:
        """Step `number`, from 0. Every process reads all rows, so the counts need no communication."""
        dataset, first, count = self._samples(number)
        rows = dataset.samples(first, count, self.section.seed)
        by_length = np.argsort(rows.lengths, kind="stable")
        mine = rows.take(by_length[self.rank :: self.world_size])
        return Step(
            [fill_up(pack(part)) for part in micro_batches(mine, self.per_device_tokens)],
            load=rows.load,
            num_labelled=rows.num_labelled,
        )

    def most_tokens(self, first: int) -> int:
        """Tokens of the largest micro-batch in step `first` and in the first step of each later phase."""
        starts = list(accumulate(phase.num_steps for phase in self.section.phases))[:-1]
        numbers = [first, *(start for start in starts if start > first)]
        return max(part["input_ids"].numel() for number in numbers for part in self.step(number).parts)

    def places(self, number: int) -> list[dict[str, Any]]:
        """The files and rows of the pairs of step `number`, for all processes; see PairDataset.places."""
        dataset, first, count = self._samples(number)
        return dataset.places(first, count, self.section.seed)

    def _samples(self, number: int) -> tuple[PairDataset, int, int]:
        """The dataset of step `number`, its first sample and its number of samples."""
        seen = dict.fromkeys(self.datasets, 0)  # samples of each dataset used by earlier phases
        for phase in self.section.phases:
            if number < phase.num_steps:
                break
            number -= phase.num_steps
            seen[phase.max_seq_length] += phase.num_steps * phase.global_batch_size
        first = seen[phase.max_seq_length] + number * phase.global_batch_size
        return self.datasets[phase.max_seq_length], first, phase.global_batch_size

    def read(self, first: int, end: int) -> Iterator[tuple[int, Step, float]]:
        """Yield (number, step, seconds waited for it) for each number from `first` to `end` - 1."""
        with ThreadPoolExecutor(1) as reader:
            coming: Future[Step] = reader.submit(self.step, first)
            for number in range(first, end):
                clock = time.monotonic()
                ready = coming.result()
                waited = time.monotonic() - clock
                if number + 1 < end:
                    coming = reader.submit(self.step, number + 1)
                yield number, ready, waited
