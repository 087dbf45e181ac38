"""The plan of a recipe: estimates of text, disk, memory, time, training steps and FLOPs before anything runs.

The planner surveys the source, runs the data stages on a sample of it, times training on some rows, and scales the
measurements to the full text. A plan is JSON; planning/table.py renders it.
"""

import logging
import math
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from bert_pipeline import settings
from bert_pipeline.core.processor import has_bf16_units
from bert_pipeline.data.corpus.build import group_files
from bert_pipeline.data.corpus.shard import CHARACTERS_PER_SHARD
from bert_pipeline.data.corpus.sources import source_files
from bert_pipeline.evaluation.finetuning.protocol import protocol
from bert_pipeline.evaluation.tasks.readers import Example, Sentence, read_task
from bert_pipeline.evaluation.tasks.task import TaskError, find_task, task_folder
from bert_pipeline.formats.tables import SPLITS
from bert_pipeline.formats.tokenizer import padded_vocab_size
from bert_pipeline.planning.hardware import ASSUMED_UTILIZATION, HARDWARE, Hardware
from bert_pipeline.planning.survey import Survey, read_source
from bert_pipeline.planning.trial import Trial, measure_training, run_trial
from bert_pipeline.recipe import CorpusRecipe, Recipe
from bert_pipeline.stages import resolve_recipe
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.launch.budget import (
    BudgetError,
    Pace,
    ProbeFailed,
    fit_to_budget,
    training_seconds,
)
from bert_pipeline.training.model.flops import num_parameters, training_flops

STATE_BYTES = 16
"""Bytes per weight in training: the weight, its gradient and AdamW's two moments, four bytes each."""

log = logging.getLogger(__name__)


class DoesNotFit(ValueError):
    """The artifacts of a recipe need more disk space than is free."""


def make_plan(
    recipe: Recipe,
    home: Path,
    hardware: dict[str, Hardware] = HARDWARE,
    workers: int | None = None,
    *,
    found: Survey | None = None,
    time_training: bool = True,
) -> dict[str, Any]:
    """Plan a recipe whose artifacts go to `home`. Raise SourceError if the source cannot be read or is too small.

    `found`: the survey of its source; None: read it.
    """
    recipe = resolve_recipe(recipe)
    found = found or read_source(recipe.corpus)
    with tempfile.TemporaryDirectory(prefix="bert-pipeline-plan-") as folder:
        trial = run_trial(recipe, found, Path(folder))
        pace = _time_training(recipe, Path(folder)) if time_training else None
    if pace:
        try:
            recipe = recipe.model_copy(update={"pretrain": fit_to_budget(recipe.pretrain, pace)})
        except BudgetError as error:
            log.warning("plan: the recipe cannot be trained on this machine: %s", error)
            pace = None
    return Estimate(recipe, found, trial, pace).plan(home, hardware, workers or settings.num_workers())


def plan_before(recipe: Recipe, home: Path) -> dict[str, Any]:
    """Plan a recipe without timing its training, in a separate process, so that this one stays light.

    Raise DoesNotFit if the artifacts do not fit on the disk of `home`.
    """
    log.info("plan: estimating the recipe's requirements on a sample")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        plan = pool.submit(make_plan, recipe, home, time_training=False).result()
    assert_fits(plan)
    return plan


def assert_fits(plan: Mapping[str, Any]) -> None:
    """Raise DoesNotFit if the plan needs more disk space than is free."""
    disk = plan["disk"]
    if disk["needed"] > disk["free"]:
        largest = max(disk["artifacts"], key=lambda kind: disk["artifacts"][kind])
        raise DoesNotFit(
            f"recipe {plan['recipe']} needs {disk['needed']:,} bytes, most of them for {largest}, but only "
            f"{disk['free']:,} are free in {disk['place']} (BERT_PIPELINE_HOME); remedy: free "
            f"{disk['needed'] - disk['free']:,}, {settings.MOVE_HOME}, or lower nsp.dupe_factor "
            f"({plan['dupe_factor']})"
        )


def _time_training(recipe: Recipe, folder: Path) -> Pace | None:
    """Time training on the trial's pairs in `folder`. Return None if the probe fails on this machine."""
    try:
        return measure_training(recipe, folder)
    except ProbeFailed as error:
        log.warning("plan: the time of pretraining on this machine is unknown: %s", error)
        return None


class Estimate:
    """Scales the measurements on the sample to the recipe."""

    def __init__(self, recipe: Recipe, found: Survey, trial: Trial, pace: Pace | None) -> None:
        self.recipe, self.found, self.trial, self.pace = recipe, found, trial, pace
        self.documents = {split: found.documents[split] / found.share_read for split in SPLITS}
        self.characters = {split: found.characters[split] / found.share_read for split in SPLITS}
        self.scale = sum(self.characters.values()) / trial.characters
        """Size of the corpus relative to the sample."""
        self.passes = (
            recipe.nsp.dupe_factor * self.characters["train"] + self.characters["heldout"]
        ) / trial.characters
        """Text of all passes of the datasets relative to the sample."""
        self.train = {length: _times(load, self.characters["train"] / trial.train_characters) for length, load in
                      trial.loads.items()}  # fmt: skip
        """Load of one pass over the training split, by sequence length."""

    def plan(self, home: Path, hardware: dict[str, Hardware], workers: int) -> dict[str, Any]:
        recipe, found, trial = self.recipe, self.found, self.trial
        weights = num_parameters(recipe.model, recipe.tokenizer.vocab_size)
        phases = [self._phase(number) for number in range(len(recipe.pretrain.phases))]
        flops = sum(phase["flops"] for phase in phases)
        return {
            "recipe": recipe.name,
            "dupe_factor": recipe.nsp.dupe_factor,
            "survey": {
                "bytes": found.bytes_total,
                "share_read": found.share_read,
                "sample_documents": trial.documents,
                "sample_characters": trial.characters,
            },
            "text": {
                **{f"{split}_documents": round(self.documents[split]) for split in SPLITS},
                "rejected_documents": round(found.rejected / found.share_read),
                "characters": round(sum(self.characters.values())),
                "words": round(trial.words * self.scale),
                "tokens": round(trial.num_tokens * self.scale),
            },
            "pairs": {f"len_{length}": self._pairs(length) for length in trial.loads},
            "disk": self._disk(home, weights),
            "memory": self._memory(),
            "workers": workers,
            "seconds": self._seconds(workers),
            "training": {
                "num_parameters": weights,
                "padded_vocab_size": padded_vocab_size(recipe.tokenizer.vocab_size),
                "steps": recipe.pretrain.num_steps,
                "leaves_bf16_units_idle": _leaves_bf16_units_idle(),
                "per_device_tokens": self.pace and self.pace.per_device_tokens,
                "tokens": round(sum(phase["tokens_per_step"] * phase["num_steps"] for phase in phases)),
                "flops": flops,
                "state_bytes": STATE_BYTES * weights,
                "phases": phases,
            },
            "assumed_utilization": ASSUMED_UTILIZATION,
            "hardware": {
                name: {
                    "flops_per_second": one.flops_per_second,
                    "memory": one.memory,
                    "source": one.source,
                    "hours": flops / one.flops_per_second / ASSUMED_UTILIZATION / 3600,
                    "hours_on_8": flops / one.flops_per_second / ASSUMED_UTILIZATION / 3600 / 8,
                }
                for name, one in hardware.items()
            },
        }

    def _pairs(self, length: int) -> dict[str, int]:
        load, dupe_factor = self.train[length], self.recipe.nsp.dupe_factor
        heldout = self.characters["heldout"] / self.characters["train"] if self.characters["train"] else 0
        return {
            "train_pairs": round(load.pairs * dupe_factor),
            "train_tokens": round(load.tokens * dupe_factor),
            "heldout_pairs": round(load.pairs * heldout),
            "heldout_tokens": round(load.tokens * heldout),
        }

    def _phase(self, number: int) -> dict[str, Any]:
        phase = self.recipe.pretrain.phases[number]
        one_pass = self.train[phase.max_seq_length]
        pairs = phase.num_steps * phase.global_batch_size
        load = _times(one_pass, pairs / one_pass.pairs)
        return {
            "max_seq_length": phase.max_seq_length,
            "num_steps": phase.num_steps,
            "pairs_per_step": phase.global_batch_size,
            "tokens_per_step": round(phase.global_batch_size * one_pass.tokens / one_pass.pairs),
            "passes": pairs / one_pass.pairs,
            "flops": training_flops(self.recipe.model, self.recipe.tokenizer.vocab_size, load),
        }

    def _disk(self, home: Path, weights: int) -> dict[str, Any]:
        stages, pretrain = self.trial.stages, self.recipe.pretrain
        # Weights and two moments of AdamW; a new checkpoint is written before the oldest is deleted.
        at_most = pretrain.checkpoints_kept + 1
        written = (
            math.ceil(pretrain.num_steps / pretrain.checkpoint_every) or at_most
        )  # 0 steps: a budget without a measured pace
        checkpoints = min(at_most, written) * 12 * weights
        artifacts = {
            "raw_corpus": round(stages["raw_corpus"].num_bytes * self.scale),
            "tokenizer": self.trial.tokenizer_bytes,
            "nsp_dataset": round(stages["nsp_dataset"].num_bytes * self.passes),
            "masked_dataset": round(stages["masked_dataset"].num_bytes * self.passes),
            "pretrained_checkpoint": 4 * weights,
        }
        existing = home
        while not existing.exists():
            existing = existing.parent
        return {
            "artifacts": artifacts,
            "checkpoints": checkpoints,
            "needed": sum(artifacts.values()) + checkpoints,
            "free": shutil.disk_usage(existing).free,
            "place": str(home),
        }

    def _memory(self) -> dict[str, int]:
        largest = largest_shard(self.recipe.corpus, self.found)
        by_stage = {kind: round(cost.peak_memory(largest)) for kind, cost in self.trial.stages.items()}
        return by_stage | {"worker_peak": max(by_stage.values())}

    def _seconds(self, workers: int) -> dict[str, float | None]:
        trial, stages = self.trial, self.trial.stages
        work = {
            "raw_corpus": stages["raw_corpus"].seconds * self.scale,
            "nsp_dataset": trial.encoding_seconds * self.scale
            + max(0.0, stages["nsp_dataset"].seconds - trial.encoding_seconds) * self.passes,
            "masked_dataset": stages["masked_dataset"].seconds * self.passes,
        }
        shards = sum(self.characters.values()) / largest_shard(self.recipe.corpus, self.found)
        width = max(1, min(workers, shards))
        seconds = {kind: each / width + stages[kind].overhead for kind, each in work.items()}
        reading = self.found.seconds / self.found.share_read
        return {
            "raw_corpus": max(seconds["raw_corpus"], reading),
            "tokenizer": trial.tokenizer_seconds
            + trial.counting_seconds * (self.characters["train"] / trial.train_characters - 1) / width,
            "nsp_dataset": seconds["nsp_dataset"],
            "masked_dataset": seconds["masked_dataset"],
            "pretrained_checkpoint": training_seconds(self.recipe.pretrain, self.pace) if self.pace else None,
            "evaluations": self._evaluation_seconds(),
        }

    def _evaluation_seconds(self) -> float | None:
        """Seconds of fine-tuning at the FLOP rate of pretraining; None if the rate or a task's data is missing."""
        if self.pace is None:
            return None
        recipe, trial = self.recipe, self.trial
        length = recipe.pretrain.phases[-1].max_seq_length
        load = _times(trial.loads[length], 1 / trial.loads[length].pairs)
        rate = training_flops(recipe.model, recipe.tokenizer.vocab_size, load) / self.pace.pair_seconds[str(length)]
        flops = 0.0
        for section in recipe.evaluation.tasks:
            with tempfile.TemporaryDirectory() as generated:
                try:
                    task = find_task(section.name)
                    rules = protocol(task, section, recipe.model.max_position_embeddings)
                    data = read_task(task, task_folder(task, None, Path(generated)), section.other_data)
                except TaskError as error:
                    log.info("plan: %s", error)
                    return None
            # The first seed searches the grid. The other seeds, and for the baseline all seeds, run one setting. Its
            # number of epochs is not known yet: assume the largest of the grid.
            more = len(rules.seeds) * (2 if recipe.evaluation.baseline else 1) - 1
            runs = rules.num_settings + more
            mean_epochs = sum(rules.nums_epochs) / len(rules.nums_epochs)
            epochs = rules.num_settings * mean_epochs + more * max(rules.nums_epochs)
            for split, examples in data.splits.items():
                times = epochs if split == "train" else runs / 3
                tokens = [
                    min(rules.max_seq_length, 2 + _num_words(example) * trial.tokenizer["heldout_pieces_per_word"])
                    for example in examples
                ]
                one = Load(sum(tokens), sum(n * n for n in tokens), 0, 0)
                flops += times * training_flops(recipe.model, recipe.tokenizer.vocab_size, one)
        return flops / rate


def _leaves_bf16_units_idle() -> bool:
    config = yaml.safe_load(settings.accelerate_config().read_text(encoding="utf-8"))
    in_float32 = config.get("use_cpu", False) and config.get("mixed_precision") != "bf16"
    return in_float32 and has_bf16_units()


def largest_shard(section: CorpusRecipe, found: Survey) -> float:
    """Characters of the largest training shard that corpus.Pile will build."""
    documents = found.documents["train"] / found.share_read
    mean = found.characters["train"] / max(found.documents["train"], 1)
    full = min(section.documents_per_shard, CHARACTERS_PER_SHARD / mean)
    sizes = [sum(path.stat().st_size for path in group.values()) for group in group_files(source_files(section))]
    largest = 0.0
    for size in sizes or [1]:
        of_group = documents * size / (sum(sizes) or 1)
        if of_group < 1.5 * full:
            last = of_group
        elif found.share_read < 1:
            last = 1.5 * full  # upper bound
        else:
            last = of_group - math.floor(of_group / full - 0.5) * full
        largest = max(largest, last, min(full, of_group))
    return largest * mean


def _num_words(example: Example) -> int:
    return len(example.tokens) if isinstance(example, Sentence) else sum(len(part.split()) for part in example.parts)


def _times(load: Load, factor: float) -> Load:
    return Load(**{name: value * factor for name, value in asdict(load).items()})
