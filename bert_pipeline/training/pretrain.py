"""The training process: `accelerate launch -m bert_pipeline.training.pretrain JOB.json`.

It needs no tracker and no orchestrator: it reads datasets, writes rows to metrics.jsonl, checkpoints under
work/, and at the end the exported model. SIGTERM makes it save a checkpoint after the step under way and
leave with exit code 75; run again, it goes on from there.
"""

import json
import logging
import math
import os
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from filelock import FileLock
from torch import nn
from transformers import BertForPreTraining

from bert_pipeline.metrics import append_row
from bert_pipeline.randomness import DROPOUT, draw, new_stream
from bert_pipeline.recipe import ModelRecipe, PretrainRecipe
from bert_pipeline.training.batches import PairDataset, to_tensors
from bert_pipeline.training.checkpoint import load_newest, save_checkpoint
from bert_pipeline.training.heldout import heldout_scores
from bert_pipeline.training.loss import PretrainingLoss
from bert_pipeline.training.model import initial_model
from bert_pipeline.training.optim import build_optimizer, learning_rate, set_learning_rate
from bert_pipeline.training.steps import Step, StepReader

EXIT_RESUME = 75  # EX_TEMPFAIL: the run was asked to stop and can go on

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


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
    """Places of a padded micro-batch: how much a device is given at once. Changes no result."""
    init_from: str | None = None
    """Hugging Face directory of the model to begin with."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def train(job: Job) -> None:
    """Run the job to its end, from the newest checkpoint if there is one."""
    # BERT's buffers are constants, and processes may differ in how often they go forward.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    if accelerator.is_main_process:
        # Processes that lost their launcher may still be at work here; then this run waits and goes on after them.
        FileLock(Path(job.out) / "work" / "training.lock").acquire()
    accelerator.wait_for_everyone()
    section = PretrainRecipe.model_validate_json(json.dumps(job.section))
    if accelerator.device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    _check_batch(section, accelerator.num_processes)
    out = Path(job.out)
    checkpoints, metrics = out / "work" / "checkpoints", out / "metrics.jsonl"
    model = initial_model(ModelRecipe(**job.model), Path(job.tokenizer), section.seed, job.init_from)
    model = model.to(accelerator.device)
    optimizer = build_optimizer(section, model)
    paths = Path(job.nsp_dataset), Path(job.masked_dataset), Path(job.tokenizer)
    heldout = PairDataset(*paths, section.phases[-1].max_seq_length, "heldout")
    steps = StepReader(
        section, *paths, job.per_device_tokens, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    loss = accelerator.prepare(PretrainingLoss(model))

    first, window = _resume(job, checkpoints, metrics, model, optimizer, accelerator)
    stop = _StopSignal()

    def measure(step: int) -> None:
        scores = heldout_scores(
            accelerator.unwrap_model(loss), heldout, section.heldout_pairs, job.per_device_tokens, accelerator
        )
        if accelerator.is_main_process:
            append_row(metrics, {"step": step} | {f"heldout_{name}": value for name, value in scores.items()})

    def save(step: int) -> None:
        window.gather(accelerator)
        if accelerator.is_main_process:
            size = metrics.stat().st_size if metrics.exists() else 0
            state = {"identity": job.identity, "metrics_bytes": size, "window": window.state()}
            save_checkpoint(checkpoints, step, model, optimizer, state, section.checkpoints_kept)
        accelerator.wait_for_everyone()

    if first == 0:
        measure(0)
    loss.train()
    for number, step, waited in steps.read(first, section.num_steps):
        clock = time.monotonic()
        rate = learning_rate(section.phases, number)
        grad_norm = _train_step(loss, optimizer, step, rate, section, number, window, accelerator)
        done = number + 1
        window.count(step, waited + time.monotonic() - clock, waited)
        if done % section.log_every == 0 or done in (1, section.num_steps):
            window.gather(accelerator)
            if accelerator.is_main_process:
                append_row(metrics, {"step": done, "learning_rate": rate, "grad_norm": grad_norm} | window.row())
            window.clear()
        if done % section.eval_every == 0 or done == section.num_steps:
            measure(done)
        stopping = stop.asked(accelerator)
        if stopping or done % section.checkpoint_every == 0 or done == section.num_steps:
            save(done)
        if stopping and done < section.num_steps:
            log.warning("stopped after step %d of %d; run again to go on", done, section.num_steps)
            accelerator.end_training()
            sys.exit(EXIT_RESUME)

    if accelerator.is_main_process:
        difference = export(model, Path(job.tokenizer), out, heldout)
        result = {
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "world_size": accelerator.num_processes,
            "max_logit_difference": difference,
        }
        (out / "work" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _check_batch(section: PretrainRecipe, world_size: int) -> None:
    for number, phase in enumerate(section.phases):
        if phase.global_batch_size < world_size:
            raise TrainingError(
                f"pretrain.phases.{number}.global_batch_size is {phase.global_batch_size}, but {world_size} processes "
                "were launched; remedy: a larger batch or fewer processes"
            )


def _train_step(
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Step,
    rate: float,
    section: PretrainRecipe,
    number: int,
    window: "Window",
    accelerator: Accelerator,
) -> float:
    """One optimizer step over this process's micro-batches; returns the gradient norm before clipping."""
    dropout = new_stream(section.seed, DROPOUT, number=accelerator.process_index, row=number)
    torch.manual_seed(int(draw(dropout)) << 32 | int(draw(dropout)))
    optimizer.zero_grad(set_to_none=True)
    for n, part in enumerate(step.parts):
        last = n + 1 == len(step.parts)
        with nullcontext() if last else accelerator.no_sync(loss):
            with accelerator.autocast():
                sums = loss(**{name: tensor.to(accelerator.device) for name, tensor in part.items()})
            mean = sums.mlm_loss / max(step.num_masked, 1) + sums.nsp_loss / max(step.num_labelled, 1)
            # DistributedDataParallel averages gradients over the processes; the step's loss is their sum.
            accelerator.backward(mean * accelerator.num_processes)
        window.add(sums)
    grad_norm = float(nn.utils.clip_grad_norm_(loss.parameters(), section.max_grad_norm))
    if not math.isfinite(grad_norm):
        raise TrainingError(
            f"step {number + 1}: the gradient is not finite ({grad_norm}); the weights were left as they were before "
            "this step; remedy: a lower pretrain.phases.learning_rate or a longer warm-up"
        )
    set_learning_rate(optimizer, rate)
    optimizer.step()
    return grad_norm


class Window:
    """Sums since the last row of metrics; losses stay on the device until a row is due."""

    _SUMS = ("mlm_loss", "nsp_loss", "mlm_correct", "nsp_correct")
    _COUNTS = ("num_masked", "num_labelled", "num_tokens", "seconds", "waited")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._device_sums: torch.Tensor | None = None
        self._sums = [0.0] * len(self._SUMS)
        self._counts = [0.0] * len(self._COUNTS)

    def add(self, sums: tuple[torch.Tensor, ...]) -> None:
        found = torch.stack([value.detach().double() for value in sums])
        self._device_sums = found if self._device_sums is None else self._device_sums + found

    def count(self, step: Step, seconds: float, waited: float) -> None:
        found = (step.num_masked, step.num_labelled, step.num_tokens, seconds, waited)
        self._counts = [old + new for old, new in zip(self._counts, found, strict=True)]

    def gather(self, accelerator: Accelerator) -> None:
        """Bring the sums of all processes together in the main process."""
        if self._device_sums is not None:
            total = accelerator.reduce(self._device_sums).tolist()
            self._sums = [old + new for old, new in zip(self._sums, total, strict=True)]
            self._device_sums = None

    def row(self) -> dict[str, float]:
        sums, counts = (
            dict(zip(self._SUMS, self._sums, strict=True)),
            dict(zip(self._COUNTS, self._counts, strict=True)),
        )
        masked, labelled = max(counts["num_masked"], 1), counts["num_labelled"]
        row = {"mlm_loss": sums["mlm_loss"] / masked, "mlm_accuracy": sums["mlm_correct"] / masked}
        if labelled:
            row |= {"nsp_loss": sums["nsp_loss"] / labelled, "nsp_accuracy": sums["nsp_correct"] / labelled}
        return row | {
            "loss": row["mlm_loss"] + row.get("nsp_loss", 0.0),
            "tokens": counts["num_tokens"],
            "tokens_per_second": counts["num_tokens"] / max(counts["seconds"], 1e-9),
            "data_wait_fraction": counts["waited"] / max(counts["seconds"], 1e-9),
        }

    def state(self) -> dict[str, list[float]]:
        return {"sums": self._sums, "counts": self._counts}

    def restore(self, state: dict[str, list[float]]) -> None:
        self._sums, self._counts = state["sums"], state["counts"]


class _StopSignal:
    """Remembers SIGTERM; the processes agree on the step after which they stop."""

    def __init__(self) -> None:
        self._seen = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *_: Any) -> None:
        self._seen = True

    def asked(self, accelerator: Accelerator) -> bool:
        if accelerator.num_processes == 1:
            return self._seen
        return bool(accelerator.reduce(torch.tensor(float(self._seen), device=accelerator.device)) > 0)


def _resume(
    job: Job,
    checkpoints: Path,
    metrics: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[int, Window]:
    """Restore the newest checkpoint; cut metrics.jsonl to the rows that belong to it."""
    window = Window()
    found = load_newest(checkpoints, model, optimizer)
    accelerator.wait_for_everyone()
    step, state = found or (0, {"identity": job.identity, "metrics_bytes": 0, "window": window.state()})
    if state["identity"] != job.identity:
        raise TrainingError(
            f"{checkpoints} holds work of another recipe or of other data ({state['identity']}, not {job.identity}); "
            f"remedy: remove {checkpoints.parent.parent}"
        )
    if accelerator.is_main_process:
        window.restore(state["window"])
        if metrics.exists():
            with metrics.open("rb+") as stream:
                stream.truncate(state["metrics_bytes"])
    else:
        window.restore({"sums": window.state()["sums"], "counts": state["window"]["counts"]})
    if found:
        log.info("going on after step %d", step)
    return step, window


def export(model: BertForPreTraining, tokenizer: Path, out: Path, heldout: PairDataset) -> float:
    """Write the Hugging Face directory and return the largest logit difference of a plain transformers load."""
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    for path in tokenizer.iterdir():
        if path.name != "record.json":
            shutil.copy2(path, out / path.name)
    batch = to_tensors(heldout.rows(0, np.arange(min(8, heldout.num_rows(0)))))
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    plain = BertForPreTraining.from_pretrained(out).eval()
    with torch.inference_mode():
        expected, found = model.cpu().float().eval()(**inputs), plain(**inputs)
    seen = inputs["attention_mask"].bool()
    return max(
        float((expected.prediction_logits - found.prediction_logits)[seen].abs().max()),
        float((expected.seq_relationship_logits - found.seq_relationship_logits).abs().max()),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
