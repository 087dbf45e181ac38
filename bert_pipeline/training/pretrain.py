"""The training process: `accelerate launch -m bert_pipeline.training.pretrain JOB.json`.

It needs no tracker and no orchestrator: it reads datasets, writes rows to metrics.jsonl, the pairs of skipped steps to
skipped.jsonl, checkpoints under work/, and at the end the exported model. SIGTERM makes it save a checkpoint after the
step under way and leave with exit code 75; run again, it goes on from there.
"""

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertForPreTraining

from bert_pipeline import settings
from bert_pipeline.core.files import flush_to_disk, write_whole
from bert_pipeline.core.printable import log_to_stderr
from bert_pipeline.core.randomness import DROPOUT, draw, new_stream
from bert_pipeline.formats.metrics import append_row
from bert_pipeline.formats.tokenizer import read_tokenizer
from bert_pipeline.recipe import ModelRecipe, PretrainRecipe
from bert_pipeline.training.batches.dataset import PairDataset
from bert_pipeline.training.batches.packing import pad
from bert_pipeline.training.batches.steps import Step, StepReader
from bert_pipeline.training.checkpoint import Checkpoints, ForeignCheckpoint
from bert_pipeline.training.checks import TrainingError, check_batches
from bert_pipeline.training.distributed import (
    GroupError,
    StopSignal,
    distribute,
    join_group,
    loss_of_a_process_explained,
    synchronised,
    wait_for_predecessor,
    whole,
    whole_model,
    whole_weights,
)
from bert_pipeline.training.heldout import heldout_scores
from bert_pipeline.training.memory import TooLittleMemory, assert_a_step_fits, want_of_memory_explained
from bert_pipeline.training.model.flops import training_flops
from bert_pipeline.training.model.loss import LossSums, PretrainingLoss
from bert_pipeline.training.model.model import initial_model
from bert_pipeline.training.model.optim import build_optimizer, learning_rate, set_learning_rate
from bert_pipeline.training.utilization import matmul_peak
from bert_pipeline.training.window import Window

EXIT_RESUME = 75  # EX_TEMPFAIL: the run was asked to stop and can go on

WILL_COME_AGAIN = (ValueError, FileNotFoundError, TrainingError, TooLittleMemory, GroupError, ForeignCheckpoint)
"""Errors that are not mended by starting again: a recipe, data, or a machine other than they should be."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one training process is told."""

    section: dict[str, Any]
    model: dict[str, Any]
    tokenizer: str
    nsp_dataset: str
    masked_dataset: str
    out: str
    identity: str
    """A checkpoint of another identity (other recipe, other data) is refused."""
    per_device_tokens: int
    """At most so many tokens in a micro-batch: how much a device is given at once. Changes no result."""
    init_from: str | None = None
    """Hugging Face directory of the model to begin with."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def train(job: Job) -> None:
    """Run the job to its end, from the newest checkpoint if there is one."""
    lock = wait_for_predecessor(Path(job.out) / "work")
    accelerator = join_group()
    stop = StopSignal()
    section = PretrainRecipe.model_validate_json(json.dumps(job.section))
    if accelerator.device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // settings.group().local_world_size))
    _check_precision(accelerator)
    check_batches(section, accelerator.num_processes)
    out = Path(job.out)
    checkpoints = Checkpoints(out / "work" / "checkpoints", job.identity, section.checkpoints_kept)
    metrics, skipped = out / "metrics.jsonl", out / "skipped.jsonl"
    vocab_size = read_tokenizer(Path(job.tokenizer)).get_vocab_size()
    architecture = ModelRecipe(**job.model)
    objective = PretrainingLoss(initial_model(architecture, Path(job.tokenizer), section.seed, job.init_from))
    model = objective.model.to(accelerator.device)
    loss = distribute(objective, accelerator)
    optimizer = build_optimizer(section, model)
    paths = Path(job.nsp_dataset), Path(job.masked_dataset), Path(job.tokenizer)
    heldout = PairDataset(*paths, section.phases[-1].max_seq_length, "heldout")
    steps = StepReader(
        section, *paths, job.per_device_tokens, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    peak = matmul_peak(accelerator.device, dtype) * accelerator.num_processes

    first, window = _resume(checkpoints, (metrics, skipped), model, optimizer, accelerator)

    if accelerator.device.type == "cpu":
        some = steps.datasets[section.phases[-1].max_seq_length].samples(0, 4, section.seed)
        assert_a_step_fits(loss, objective, some, steps.most_tokens(first), optimizer, accelerator)

    def measure(step: int) -> None:
        with whole_weights(loss):
            scores = heldout_scores(objective, heldout, section.heldout_pairs, job.per_device_tokens, accelerator)
        if accelerator.is_main_process:
            append_row(metrics, {"step": step} | {f"heldout_{name}": value for name, value in scores.items()})

    def save(step: int) -> None:
        window.gather(accelerator)
        sizes = {}
        for path in (metrics, skipped):
            if accelerator.is_main_process and path.exists():
                flush_to_disk(path, recurse=False)  # a checkpoint never speaks of rows that a power cut took
            sizes[path.name] = path.stat().st_size if path.exists() else 0
        checkpoints.save(step, model, optimizer, {"bytes": sizes, "window": window.state()})
        accelerator.wait_for_everyone()

    if first == 0:
        measure(0)
    loss.train()
    for number, step, waited in steps.read(first, section.num_steps):
        clock = time.monotonic()
        rate = learning_rate(section.phases, number)
        sums, grad_norm = _forward_and_backward(loss, step, section, number, accelerator)
        if math.isfinite(grad_norm):
            set_learning_rate(optimizer, rate)
            optimizer.step()
            window.add(sums, step, training_flops(architecture, vocab_size, step.load), grad_norm)
        else:
            window.skip()
            if accelerator.is_main_process:
                append_row(skipped, {"step": number + 1, "grad_norm": str(grad_norm), "pairs": steps.places(number)})
            _warn_or_stop(number + 1, grad_norm, window.skipped_in_a_row, section)
        optimizer.zero_grad(set_to_none=True)
        done = number + 1
        window.time(waited + time.monotonic() - clock, waited)
        if done % section.log_every == 0 or done in (1, section.num_steps):
            window.gather(accelerator)
            if accelerator.is_main_process:
                append_row(metrics, {"step": done, "learning_rate": rate} | window.row(peak))
            window.clear()
        if done % section.eval_every == 0 or done == section.num_steps:
            measure(done)
        if section.snapshot_every and done % section.snapshot_every == 0 and done < section.num_steps:
            whole = whole_model(model)
            if accelerator.is_main_process:
                keep_snapshot(whole, Path(job.tokenizer), out / "snapshots" / f"step-{done:08d}")
        stopping = stop.asked(accelerator)
        if stopping or done % section.checkpoint_every == 0 or done == section.num_steps:
            save(done)
        if stopping and done < section.num_steps:
            if accelerator.is_main_process:
                (out / "work" / "stopped").touch()
            log.warning("stopped after step %d of %d; run again to go on", done, section.num_steps)
            accelerator.end_training()
            sys.exit(EXIT_RESUME)

    exported = whole_model(model)
    if accelerator.is_main_process:
        difference = export(exported, Path(job.tokenizer), out, heldout)
        result = {
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "world_size": accelerator.num_processes,
            "max_logit_difference": difference,
        }
        (out / "work" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    lock.release()


def _check_precision(accelerator: Accelerator) -> None:
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise TrainingError(
            f"mixed_precision is {accelerator.mixed_precision}; remedy: bf16, or no, in the accelerate config "
            "(float16 needs its losses scaled, which this loop does not do)"
        )


def _forward_and_backward(
    loss: nn.Module, step: Step, section: PretrainRecipe, number: int, accelerator: Accelerator
) -> tuple[list[LossSums], float]:
    """This process's micro-batches of a step: their sums, and the norm of the step's gradient before it is clipped.

    The norm is the same in all processes, and not finite where a loss or a gradient of any of them is not.
    """
    dropout = new_stream(section.seed, DROPOUT, number=accelerator.process_index, row=number)
    torch.manual_seed(int(draw(dropout)) << 32 | int(draw(dropout)))
    found = []
    for n, part in enumerate(step.parts):
        last = n + 1 == len(step.parts)
        with synchronised(loss, last, accelerator):
            with accelerator.autocast():
                sums = loss(**{name: tensor.to(accelerator.device) for name, tensor in part.items()})
            mean = sums.mlm_loss / max(step.load.masked, 1) + sums.nsp_loss / max(step.num_labelled, 1)
            # DistributedDataParallel averages gradients over the processes; the step's loss is their sum.
            accelerator.backward(mean * accelerator.num_processes)
        found.append(sums)
    return found, float(whole(nn.utils.clip_grad_norm_(loss.parameters(), section.max_grad_norm)))


def _warn_or_stop(step: int, grad_norm: float, in_a_row: int, section: PretrainRecipe) -> None:
    """A step that would have spoilt the weights was skipped. To begin again from a checkpoint would help nothing:
    the same step would come again.
    """
    if in_a_row > section.max_skipped_steps:
        raise TrainingError(
            f"step {step}: the gradient is not finite ({grad_norm}), as in the {in_a_row - 1} steps before it; the "
            "weights are those before these steps; remedy: a lower pretrain.phases.learning_rate or a longer warm-up "
            "(where it is the data: skipped.jsonl names the pairs of these steps)"
        )
    log.warning(
        "step %d is skipped: its loss or gradient is not finite (gradient norm %s); its pairs stand in skipped.jsonl",
        *(step, grad_norm),
    )


def _resume(
    checkpoints: Checkpoints,
    written: Iterable[Path],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[int, Window]:
    """Restore the newest checkpoint; cut the files that grow by lines to those that belong to it."""
    window = Window()
    found = checkpoints.load_newest(model, optimizer)
    accelerator.wait_for_everyone()
    step, state = found or (0, {"bytes": {}, "window": window.state()})
    window.restore(state["window"])
    for path in written:
        if accelerator.is_main_process and path.exists():
            os.truncate(path, state["bytes"].get(path.name, 0))
    if found:
        log.info("going on after step %d", step)
    return step, window


def keep_snapshot(model: BertForPreTraining, tokenizer: Path, path: Path) -> None:
    """A Hugging Face directory that appears whole; a step that is made again after a resume replaces its own."""
    partial = path.with_name(path.name + ".partial")
    for each in (partial, path):
        shutil.rmtree(each, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(model, tokenizer, partial)
    partial.rename(path)


def _write(model: BertForPreTraining, tokenizer: Path, out: Path) -> None:
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    for path in tokenizer.iterdir():
        if path.name != "record.json":
            shutil.copy2(path, out / path.name)


def export(model: BertForPreTraining, tokenizer: Path, out: Path, heldout: PairDataset) -> float:
    """Write the Hugging Face directory and return the largest logit difference of a plain transformers load."""
    _write(model, tokenizer, out)
    model.set_attn_implementation("sdpa")
    batch = pad(heldout.rows(0, np.arange(min(8, heldout.num_rows(0)))))
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    plain = BertForPreTraining.from_pretrained(out, use_safetensors=True).eval()
    with torch.inference_mode():
        expected, found = model.cpu().float().eval()(**inputs), plain(**inputs)
    seen = inputs["attention_mask"].bool()
    return max(
        float((expected.prediction_logits - found.prediction_logits)[seen].abs().max()),
        float((expected.seq_relationship_logits - found.seq_relationship_logits).abs().max()),
    )


@contextmanager
def failure_noted(work: Path) -> Iterator[None]:
    """Leave an error that will come again in `work`/failed: the launcher ends the group, before torchrun starts it
    again.
    """
    try:
        yield
    except WILL_COME_AGAIN as error:
        write_whole(work / "failed", f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    log_to_stderr()
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    with (
        failure_noted(Path(job.out) / "work"),
        loss_of_a_process_explained(),
        want_of_memory_explained(job.per_device_tokens),
    ):
        train(job)
