"""The training process: `accelerate launch -m bert_pipeline.training.pretrain JOB.json`.

It needs no tracker and no orchestrator. It reads the datasets and writes metrics.jsonl, the pairs of skipped steps to
skipped.jsonl, checkpoints under work/, and at the end the exported model. On SIGTERM it finishes the current step,
saves a checkpoint and exits with code 75; the next start resumes from it.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from bert_pipeline import settings
from bert_pipeline.core.files import flush_to_disk, write_whole
from bert_pipeline.core.printable import log_to_stderr
from bert_pipeline.core.randomness import DROPOUT, draw, new_stream
from bert_pipeline.formats.metrics import append_row
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.training.batches.dataset import PairDataset, open_masker
from bert_pipeline.training.batches.steps import Step, StepReader
from bert_pipeline.training.checkpoint import Checkpoints, ForeignCheckpoint
from bert_pipeline.training.determinism import request_determinism
from bert_pipeline.training.distributed import (
    GroupError,
    StopSignal,
    at_own_pace,
    explain_lost_process,
    join_group,
    wait_for_predecessor,
)
from bert_pipeline.training.export import export, save_snapshot
from bert_pipeline.training.heldout import heldout_scores
from bert_pipeline.training.job import Job, TrainingError, check_batches
from bert_pipeline.training.memory import TooLittleMemory, assert_a_step_fits, explain_out_of_memory
from bert_pipeline.training.model.flops import training_flops
from bert_pipeline.training.model.loss import LossSums, PretrainingLoss
from bert_pipeline.training.model.model import initial_model
from bert_pipeline.training.model.optim import build_optimizer, learning_rate, schedule_learning_rate
from bert_pipeline.training.precision import check_precision
from bert_pipeline.training.utilization import Peak, Stopwatch
from bert_pipeline.training.window import Window

EXIT_RESUME = 75  # EX_TEMPFAIL: the run was stopped and can resume

PERMANENT_ERRORS = (ValueError, FileNotFoundError, TrainingError, TooLittleMemory, GroupError, ForeignCheckpoint)
"""Errors that a restart would only repeat: a wrong recipe, wrong data or a wrong machine."""

log = logging.getLogger(__name__)


def train(job: Job) -> None:
    """Train to the last step and export the model; resume from the newest checkpoint if there is one."""
    lock = wait_for_predecessor(job.out / "work")
    accelerator = join_group()
    stop = StopSignal()
    section, trainer = job.section, Trainer(job, accelerator)
    first = trainer.resume()
    trainer.assert_memory_suffices(first)
    trainer.compile(first)
    if first == 0:
        trainer.measure(0)
    trainer.loss.train()
    for number, step, waited in trainer.steps.read(first, section.num_steps):
        trainer.step(number, step, waited)
        done = number + 1
        is_last = done == section.num_steps
        if is_last or done == 1 or done % section.log_every == 0:
            trainer.report(done)
        if is_last or done % section.eval_every == 0:
            trainer.measure(done)
        if section.snapshot_every and done % section.snapshot_every == 0 and not is_last:
            trainer.snapshot(done)
        stopping = stop.requested(accelerator)
        if stopping or is_last or done % section.checkpoint_every == 0:
            trainer.save(done)
        if stopping and not is_last:
            trainer.exit_to_resume(done)
    trainer.export()
    accelerator.end_training()
    lock.release()


class Trainer:
    """A training run as one of its processes sees it. Each public method is one duty of the loop in `train`."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        """Build the model, the optimizer and the readers of the datasets; `resume` restores their state."""
        section = job.section
        if accelerator.device.type == "cpu":
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // settings.group().local_world_size))
        check_precision(accelerator.mixed_precision, accelerator.device)
        request_determinism(accelerator.device)
        check_batches(section, accelerator.num_processes)
        self.job, self.section, self.accelerator = job, section, accelerator
        self.tokens = job.micro_batch_tokens
        self.metrics, self.skipped = job.out / "metrics.jsonl", job.out / "skipped.jsonl"
        self.checkpoints = Checkpoints(job.out / "work" / "checkpoints", job.identity, section.checkpoints_kept)
        self.window, self.stopwatch = Window(), Stopwatch(accelerator.device)

        with at_own_pace():  # each process reads the model and the datasets from its disk
            self._open()
        self.loss = accelerator.prepare(self.objective)
        self.optimizer = build_optimizer(section, self.model)

    def _open(self) -> None:
        """Build the model and open the datasets."""
        job, section, accelerator = self.job, self.section, self.accelerator
        self.vocab_size = read_tokenizer(job.tokenizer).get_vocab_size()
        self.objective = PretrainingLoss(initial_model(job.model, job.tokenizer, section.seed, job.init_from))
        self.model = self.objective.model.to(accelerator.device)
        paths, masker = (job.nsp_dataset, job.masked_dataset), open_masker(job.masking, job.tokenizer)
        lengths = {phase.max_seq_length for phase in section.phases}
        self.steps = StepReader(
            section,
            {length: PairDataset(*paths, length, "train", masker) for length in lengths},
            self.tokens,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self.heldout = PairDataset(*paths, section.phases[-1].max_seq_length, "heldout")

        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self.peak = Peak(accelerator.device, dtype, accelerator.num_processes)

    def resume(self) -> int:
        """Restore the newest checkpoint and truncate the .jsonl files to its step; return the step, 0 without one."""
        found = self.checkpoints.load_newest(self.model, self.optimizer)
        step, state = found or (0, {"bytes": {}, "window": self.window.state()})
        self.window.restore(state["window"])
        for path in (self.metrics, self.skipped):
            if self.accelerator.is_main_process and path.exists():
                os.truncate(path, state["bytes"].get(path.name, 0))
        if found:
            log.info("resuming after step %d", step)
        return step

    def assert_memory_suffices(self, first: int) -> None:
        """Raise TooLittleMemory on CPUs if the largest micro-batch from step `first` on cannot fit."""
        if self.accelerator.device.type == "cpu":
            some = self.steps.datasets[self.section.phases[-1].max_seq_length].samples(0, 4, self.section.seed)
            tokens = self.steps.most_tokens(first)
            assert_a_step_fits(self.objective, some, tokens, self.optimizer, self.accelerator)

    def compile(self, first: int) -> None:
        """Compile the passes of step `first`, if there are several processes, and drop the gradient.

        Machines need different times for it, and one that waits for another's gradient has only the timeout.
        """
        if self.accelerator.num_processes > 1:
            with at_own_pace(), self.accelerator.no_sync(self.loss):
                sums = self._forward(self.steps.step(first).parts[0])
                self.accelerator.backward(sums.mlm_loss + sums.nsp_loss)
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, number: int, step: Step, waited: float) -> None:
        """Update the weights once, or skip the step if its gradient is not finite.

        `number` counts from 0; `waited` is the seconds that the step waited for its data.
        """
        self.stopwatch.start(waited)
        sums, grad_norm = self._forward_and_backward(number, step)
        if math.isfinite(grad_norm):
            schedule_learning_rate(self.optimizer, self.section, number)
            self.optimizer.step()
            self.window.add(sums, step, training_flops(self.job.model, self.vocab_size, step.load), grad_norm)
        else:
            self._skip(number, grad_norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.window.wait(waited)

    def _forward_and_backward(self, number: int, step: Step) -> tuple[list[LossSums], float]:
        """Accumulate the gradient over this process's micro-batches; return their sums and the step's gradient norm.

        The norm is taken before clipping. It is equal in all processes, and not finite if a loss or gradient of any
        process is not.
        """
        dropout = new_stream(self.section.seed, DROPOUT, number=self.accelerator.process_index, row=number)
        torch.manual_seed(int(draw(dropout)) << 32 | int(draw(dropout)))
        found = []
        for n, part in enumerate(step.parts):
            is_last = n + 1 == len(step.parts)
            with nullcontext() if is_last else self.accelerator.no_sync(self.loss):  # else DDP reduces each time
                sums = self._forward(part)
                mean = sums.mlm_loss / max(step.load.masked, 1) + sums.nsp_loss / max(step.num_labelled, 1)
                # DistributedDataParallel averages gradients over the processes; the step's loss is their sum.
                self.accelerator.backward(mean * self.accelerator.num_processes)
            found.append(sums)
        norm = nn.utils.clip_grad_norm_(self.loss.parameters(), self.section.max_grad_norm)
        return found, float(norm)

    def _forward(self, part: Mapping[str, torch.Tensor]) -> LossSums:
        with self.accelerator.autocast():
            return self.loss(**{name: tensor.to(self.accelerator.device) for name, tensor in part.items()})

    def _skip(self, number: int, grad_norm: float) -> None:
        """Record a step whose update would have destroyed the weights.

        Raise TrainingError after more than `max_skipped_steps` in a row. Restarting from a checkpoint would not help:
        the same step would follow.
        """
        self.window.skip()
        done, in_a_row = number + 1, self.window.skipped_in_a_row
        if self.accelerator.is_main_process:
            row = {"step": done, "grad_norm": str(grad_norm), "pairs": self.steps.places(number)}
            append_row(self.skipped, row)
        if in_a_row > self.section.max_skipped_steps:
            raise TrainingError(
                f"step {done}: the gradient is not finite ({grad_norm}), nor was it in the {in_a_row - 1} steps "
                "before; the weights are those before these steps; remedy: a lower pretrain.phases.learning_rate or a "
                "longer warm-up (if the data is the cause: skipped.jsonl lists the pairs of these steps)"
            )
        log.warning(
            "step %d is skipped: its loss or gradient is not finite (gradient norm %s); skipped.jsonl lists its pairs",
            *(done, grad_norm),
        )

    def report(self, done: int) -> None:
        """Append the means since the last report to metrics.jsonl."""
        self._stop_the_clock()
        self.window.gather(self.accelerator)
        if self.accelerator.is_main_process:
            rate = learning_rate(self.section.phases, done - 1)
            row = {"step": done, "learning_rate": rate} | self.window.row(self.peak)
            append_row(self.metrics, row)
            if "peak_raised" in row:
                log.warning(
                    "step %d: training was faster than the measured peak of the %d devices, so other work ran during "
                    "that measurement; the peak is now %.3g FLOP/s, and earlier rows state too high a utilization",
                    *(done, self.accelerator.num_processes, self.peak.flops_per_second),
                )
        self.window.clear()

    def measure(self, done: int) -> None:
        """Append the scores on held-out pairs to metrics.jsonl."""
        self._stop_the_clock()
        pairs = self.section.heldout_pairs
        scores = heldout_scores(self.objective, self.heldout, pairs, self.tokens, self.accelerator)
        if self.accelerator.is_main_process:
            append_row(self.metrics, {"step": done} | {f"heldout_{name}": value for name, value in scores.items()})

    def snapshot(self, done: int) -> None:
        """Save the current model as a Hugging Face directory under snapshots/."""
        self._stop_the_clock()
        with at_own_pace():
            if self.accelerator.is_main_process:
                save_snapshot(self.model, self.job.tokenizer, self.job.out / "snapshots" / f"step-{done:08d}")

    def save(self, done: int) -> None:
        """Save a checkpoint, with the sizes of the .jsonl files and the window since the last report."""
        self._stop_the_clock()
        self.window.gather(self.accelerator)
        with at_own_pace():
            sizes = {}
            for path in (self.metrics, self.skipped):
                if self.accelerator.is_main_process and path.exists():
                    flush_to_disk(path, recurse=False)  # a power cut must not take rows that the checkpoint counts
                sizes[path.name] = path.stat().st_size if path.exists() else 0
            self.checkpoints.save(done, self.model, self.optimizer, {"bytes": sizes, "window": self.window.state()})

    def _stop_the_clock(self) -> None:
        """Between steps, only the time of the stop request counts as training; the next step starts the clock again."""
        self.window.time(self.stopwatch.stop())

    def exit_to_resume(self, done: int) -> NoReturn:
        """Leave a note for the launcher, which does not see the exit code, and exit with EXIT_RESUME."""
        if self.accelerator.is_main_process:
            (self.job.out / "work" / "stopped").touch()
        log.warning("stopped after step %d of %d; run again to resume", done, self.section.num_steps)
        self.accelerator.end_training()
        sys.exit(EXIT_RESUME)

    def export(self) -> None:
        """Write the model as a Hugging Face directory, and work/result.json for the launcher."""
        with at_own_pace():
            if self.accelerator.is_main_process:
                exported = export(self.model, self.job.tokenizer, self.job.out, self.heldout)
                result = {
                    "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                    "world_size": self.accelerator.num_processes,
                } | exported._asdict()
                (self.job.out / "work" / "result.json").write_text(json.dumps(result), encoding="utf-8")


def as_this_machine_computes(job: Job) -> Job:
    """The job with this machine's micro-batch, under the precision and compilation of its accelerate config.

    `accelerate launch` would set the latter, and the launcher the former: here torchrun alone started the process.
    Neither the micro-batch nor compilation changes which pairs a step trains on, so machines may differ.
    """
    config = load_config_from_file(str(settings.accelerate_config()))
    settings.compute_as_configured(config.mixed_precision, config.dynamo_config)
    return job.model_copy(update={"per_device_tokens": settings.per_device_tokens() or job.per_device_tokens})


@contextmanager
def record_permanent_failure(work: Path) -> Iterator[None]:
    """Write an error that a restart would repeat to `work`/failed, so that the launcher ends the group before torchrun
    restarts it.
    """
    try:
        yield
    except PERMANENT_ERRORS as error:
        write_whole(work / "failed", f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    log_to_stderr()
    job = Job.read(Path(sys.argv[1]))
    if settings.started_by_train_node():
        job = as_this_machine_computes(job)
    with (
        record_permanent_failure(job.out / "work"),
        explain_lost_process(),
        explain_out_of_memory(job.micro_batch_tokens),
    ):
        train(job)
