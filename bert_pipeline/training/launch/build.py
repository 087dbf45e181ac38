"""Start the training processes, follow what they report, and take all of them down when we are stopped.

The processes run under `accelerate launch` in a process group of their own. Several of them are watched by torchrun,
which starts all of them again when one is lost; they go on from the newest checkpoint. Of several machines the first
runs this, the others `accelerate launch --config_file FILE -m bert_pipeline.training.pretrain JOB.json`. This module
imports no torch: an orchestrator stays light.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

from bert_pipeline import settings
from bert_pipeline.core.progress import LineTimer
from bert_pipeline.formats import initial_model
from bert_pipeline.formats.metrics import Row, RowFollower, read_rows
from bert_pipeline.recipe import ModelRecipe, PretrainRecipe
from bert_pipeline.report import pictures
from bert_pipeline.report.model_card import model_card
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Facts
from bert_pipeline.training.checks import check_batches
from bert_pipeline.training.launch.budget import decide_schedule

POLL_SECONDS = 0.5
STOP_SECONDS = 600.0
"""What the processes are given to save a checkpoint before they are killed."""

RESTARTS = 3
"""How many times torchrun starts a group again of which a process was lost. It does so after any error; one that would
come again ends the run here."""

KILLED = (
    "remedy: where memory ran out (see dmesg), a smaller BERT_PIPELINE_PER_DEVICE_TOKENS; run again, training goes on "
    "from its newest checkpoint"
)

log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):
    """The training processes ended with an error; the message bears their last lines."""


class TrainingStopped(RuntimeError):
    """Training was asked to stop, and saved; run again, it goes on."""


def per_device_tokens() -> int | Literal["auto"]:
    """Tokens of a micro-batch on one device. Unless set: 4,096 on CPUs; on GPUs a probe before the run measures it."""
    default: int | Literal["auto"] = 4096 if _config(settings.accelerate_config()).get("use_cpu") else "auto"
    return settings.per_device_tokens() or default


def _config(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def build_pretrained_checkpoint(
    section: PretrainRecipe,
    model: ModelRecipe,
    tokenizer: Path,
    nsp_dataset: Path,
    masked_dataset: Path,
    out: Path,
    on_row: Callable[[Row], None],
    init_from: Path | None = None,
) -> Facts:
    """Pretrain and export a model; what an interrupted run left in `out` is gone on with.

    `init_from`: the Hugging Face directory of the model to begin with.
    """
    _assert_the_machines_can_meet(settings.accelerate_config())
    check_batches(section, _config(settings.accelerate_config())["num_processes"])
    if init_from:
        initial_model.assert_same_vocabulary(init_from, tokenizer)
    work = out / "work"
    work.mkdir(exist_ok=True)
    inputs = {"tokenizer": tokenizer, "nsp_dataset": nsp_dataset, "masked_dataset": masked_dataset}
    job = {
        "section": section.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        **{name: str(path.absolute()) for name, path in inputs.items()},
        "out": str(out.absolute()),
        "per_device_tokens": per_device_tokens(),
        "init_from": str(init_from.absolute()) if init_from else None,
    }
    job = decide_schedule(job, work, settings.child_environment(settings.CPU_ENVIRONMENT))
    fingerprints = {name: artifact.load(path, name).fingerprint for name, path in inputs.items()}
    made_of = {"section": job["section"], "model": job["model"], "origin": artifact.read_origin(out)} | fingerprints
    job["identity"] = artifact.fingerprint(made_of)
    section = PretrainRecipe.model_validate_json(json.dumps(job["section"]))
    (work / "job.json").write_text(json.dumps(job, indent=2), encoding="utf-8")
    stopped, failed = work / "stopped", work / "failed"  # what the processes have to say beside metrics
    stopped.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    follower = RowFollower(out / "metrics.jsonl")
    tell = _Teller(section.num_steps)

    def follow() -> None:
        for row in follower.new_rows():
            on_row(row)
            tell(row)
        if failed.exists():
            raise TrainingFailed("an error that would come again")

    try:
        _run(*_launch(settings.accelerate_config(), work / "job.json"), work / "train.log", follow)
    except TrainingFailed as error:
        if stopped.exists():  # neither accelerate nor torchrun hands the processes' exit code on
            raise TrainingStopped(f"training was asked to stop and saved a checkpoint in {work}; run again") from error
        if failed.exists():
            raise TrainingFailed(f"{failed.read_text(encoding='utf-8')} (more in {work / 'train.log'})") from error
        raise
    rows = read_rows(out / "metrics.jsonl")
    facts = json.loads((work / "result.json").read_text(encoding="utf-8")) | _summary(section, rows)
    facts["per_device_tokens"] = job["per_device_tokens"]
    (out / "loss_curve.png").write_bytes(pictures.training_curves(rows))
    sections = {"model": model.model_dump(mode="json"), "pretrain": section.model_dump(mode="json")}
    stages = {"tokenizer": artifact.load(tokenizer).facts, "pretrained_checkpoint": facts}
    name = f"BERT, {model.num_hidden_layers} layers, {model.hidden_size} wide"
    (out / "MODEL_CARD.md").write_text(model_card(name, sections, stages), encoding="utf-8")
    shutil.rmtree(work)
    return facts


def _launch(config_file: Path, job_file: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts the processes, and its environment."""
    config = _config(config_file)
    num_processes, num_machines = config["num_processes"], config.get("num_machines", 1)
    options: tuple[str, ...] = ("--config_file", str(config_file))
    if num_machines == 1 and num_processes > 1:
        options += ("--main_process_port", "0")  # any that is free
    if num_processes > 1:
        options += ("--max_restarts", str(RESTARTS))
    environment = {
        "BERT_PIPELINE_WORLD_SIZE": str(num_processes),  # the processes make sure that they are as many
        "BERT_PIPELINE_LAUNCHER": str(os.getpid()),  # they stop where it is killed, and nobody follows them any more
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(STOP_SECONDS)),  # torchrun's default is 30
    }
    if config.get("use_cpu"):
        environment["ACCELERATE_USE_CPU"] = "true"  # which accelerate does not hand on to several processes
    command = [sys.executable, "-m", "accelerate.commands.launch", *options]
    command += ["-m", "bert_pipeline.training.pretrain", str(job_file)]
    return command, settings.child_environment(settings.CPU_ENVIRONMENT, environment)


def _assert_the_machines_can_meet(config_file: Path) -> None:
    config = _config(config_file)
    if config.get("num_machines", 1) == 1 or config["machine_rank"] != 0:
        return
    port = config["main_process_port"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that is about to be free counts as free
        try:
            probe.bind(("", port))
        except OSError as error:
            raise TrainingFailed(
                f"port {port}, where the machines are to meet, cannot be used here ({error.strerror}); remedy: another "
                f"main_process_port in {config_file}, the same on all machines, or end what uses it (`ss -ltnp`)"
            ) from error


def _run(command: list[str], environment: dict[str, str], log_file: Path, follow: Callable[[], None]) -> None:
    """Run to the end, calling `follow` twice a second. If we are interrupted, the whole group saves and ends."""
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            follow()
        follow()
    finally:
        _end_group(process)
    if process.returncode:
        last_lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        if any("SIGKILL" in line for line in last_lines):
            last_lines.append(KILLED)
        raise TrainingFailed(f"training ended with exit code {process.returncode}:\n" + "\n".join(last_lines))


def _end_group(process: subprocess.Popen) -> None:
    """Leave no process behind. The launcher may die at once, its children are given time to save."""
    if process.poll() is None:
        log.warning("stopping the training processes; they save a checkpoint first")
    deadline = time.monotonic() + STOP_SECONDS
    sent = None
    while True:
        process.poll()  # reaps the launcher, so that an empty group is seen as one
        wanted = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        try:
            os.killpg(process.pid, wanted if wanted != sent else 0)
        except ProcessLookupError:
            return
        sent = wanted
        time.sleep(0.1)


class _Teller:
    """Says in one line how far training has come; as seldom as Progress does."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._due = LineTimer()
        self._begin: tuple[int, float] | None = None

    def __call__(self, row: Row) -> None:
        step, now = row["step"], time.monotonic()
        if "heldout_mlm_loss" in row:
            scores = ", ".join(f"{k.removeprefix('heldout_')} {v:.4f}" for k, v in row.items() if k != "step")
            log.info("pretrain: step %d/%d  held-out: %s", step, self.num_steps, scores)
            self._begin = self._begin or (step, now)
            return
        if "loss" not in row:
            log.warning("pretrain: step %d/%d  all steps since the last line were skipped", step, self.num_steps)
            return
        first, clock = self._begin = self._begin or (step, now)
        if not self._due(now - clock) and step < self.num_steps:
            return
        left = (self.num_steps - step) * (now - clock) / max(step - first, 1)
        log.info(
            "pretrain: step %d/%d  loss %.4f  lr %.2e  %s tokens/s  ETA %s",
            *(step, self.num_steps, row["loss"], row["learning_rate"]),
            *(f"{row['tokens_per_second']:,.0f}", timedelta(seconds=round(left))),
        )


def _summary(section: PretrainRecipe, rows: list[Row]) -> dict[str, Any]:
    steps = [row for row in rows if "learning_rate" in row]
    heldout = [row for row in rows if "heldout_mlm_loss" in row]
    counted = [row for row in steps if "loss" in row]  # in other windows all steps were skipped
    seconds_of = [row["tokens"] / row["tokens_per_second"] for row in counted]
    tokens, seconds = sum(row["tokens"] for row in counted), sum(seconds_of)

    def mean(name: str) -> float:
        return sum(row[name] * each for row, each in zip(counted, seconds_of, strict=True)) / seconds

    def scores(row: Mapping[str, float]) -> dict[str, float]:
        return {name.removeprefix("heldout_"): value for name, value in row.items() if name != "step"}

    return {
        "num_steps": section.num_steps,
        "num_steps_by_phase": {str(n): phase.num_steps for n, phase in enumerate(section.phases)},
        "train_pairs_seen": sum(phase.num_steps * phase.global_batch_size for phase in section.phases),
        "train_tokens_seen": int(tokens),
        "tokens_per_second": tokens / seconds,
        "data_wait_fraction": mean("data_wait_fraction"),
        "model_flops_utilization": mean("model_flops_utilization"),
        "skipped_steps": sum(row["skipped_steps"] for row in steps),
        "loss_spikes": sum(row["loss_spikes"] for row in steps),
        "first_loss": counted[0]["loss"],
        "last_loss": counted[-1]["loss"],
        "heldout_before": scores(heldout[0]),
        "heldout_after": scores(heldout[-1]),
    }
