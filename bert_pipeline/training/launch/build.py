"""Start the training processes, follow their metrics, and stop all of them if this process is stopped.

The processes run under `accelerate launch` in a process group of their own. If one of several is lost, torchrun
restarts all of them and they resume from the newest checkpoint. With several machines the first runs this module, the
others `accelerate launch --config_file FILE -m bert_pipeline.training.pretrain JOB.json`. This module imports no torch,
so that an orchestrator stays light.
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
from pathlib import Path
from typing import Any, Literal

import yaml

from bert_pipeline import settings
from bert_pipeline.formats import initial_model
from bert_pipeline.formats.metrics import Row, RowFollower, read_rows
from bert_pipeline.recipe import MaskingRecipe, ModelRecipe, PretrainRecipe
from bert_pipeline.report import pictures
from bert_pipeline.report.model_card import model_card
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Facts
from bert_pipeline.training.job import Job, check_batches, check_data_parallel
from bert_pipeline.training.launch.budget import decide_schedule
from bert_pipeline.training.launch.progress import TrainingProgress

POLL_SECONDS = 0.5
STOP_SECONDS = 600.0
"""Time for the processes to save a checkpoint before they are killed."""

RESTARTS = 3
"""How often torchrun restarts the processes. It restarts them after any error, but this module ends the run first if a
restart would only repeat the error."""

KILLED = (
    "remedy: if memory ran out (see dmesg), a smaller BERT_PIPELINE_PER_DEVICE_TOKENS; run again, training resumes "
    "from the newest checkpoint"
)

log = logging.getLogger(__name__)


class TrainingFailed(RuntimeError):
    """The training processes ended with an error; the message contains their last log lines."""


class TrainingStopped(RuntimeError):
    """Training was stopped and saved a checkpoint; run again to resume."""


def per_device_tokens() -> int | Literal["auto"]:
    """Tokens of a micro-batch on one device: BERT_PIPELINE_PER_DEVICE_TOKENS, else 4,096 on CPUs and "auto" on GPUs."""
    default: int | Literal["auto"] = 4096 if _config(settings.accelerate_config()).get("use_cpu") else "auto"
    return settings.per_device_tokens() or default


def _config(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def build_pretrained_checkpoint(
    section: PretrainRecipe,
    model: ModelRecipe,
    masking: MaskingRecipe,
    tokenizer: Path,
    nsp_dataset: Path,
    masked_dataset: Path,
    out: Path,
    on_row: Callable[[Row], None],
    init_from: Path | None = None,
) -> Facts:
    """Pretrain and export a model; resume if `out` holds an interrupted run.

    `init_from`: Hugging Face directory of the model to start from. Raise TrainingFailed if the processes fail, and
    TrainingStopped if they were stopped from outside and saved a checkpoint.
    """
    config = _config(settings.accelerate_config())
    check_data_parallel(config.get("distributed_type"))
    _assert_the_machines_can_meet(settings.accelerate_config())
    check_batches(section, config["num_processes"])
    if init_from:
        initial_model.assert_same_vocabulary(init_from, tokenizer)
    work = out / "work"
    work.mkdir(exist_ok=True)
    inputs = {"tokenizer": tokenizer, "nsp_dataset": nsp_dataset, "masked_dataset": masked_dataset}
    job = Job(
        section=section,
        model=model,
        masking=masking,
        tokenizer=tokenizer.absolute(),
        nsp_dataset=nsp_dataset.absolute(),
        masked_dataset=masked_dataset.absolute(),
        out=out.absolute(),
        per_device_tokens=per_device_tokens(),
        init_from=init_from and init_from.absolute(),
    )
    job = decide_schedule(job, work, settings.child_environment(settings.CPU_ENVIRONMENT))
    job = job.model_copy(update={"identity": _identity(job, inputs, artifact.read_origin(out))})
    job.write(work / "job.json")
    section = job.section
    stopped, failed = work / "stopped", work / "failed"  # written by the processes
    stopped.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    follower = RowFollower(out / "metrics.jsonl")
    log_progress = TrainingProgress(section.num_steps)

    def follow() -> None:
        rows = list(follower.new_rows())
        for row in rows:
            on_row(row)
        log_progress(rows)
        if failed.exists():
            raise TrainingFailed("an error that a restart would repeat")

    try:
        _run(*_launch(settings.accelerate_config(), work / "job.json"), work / "train.log", follow)
    except TrainingFailed as error:
        if stopped.exists():  # neither accelerate nor torchrun passes the exit code of the processes on
            raise TrainingStopped(f"training was stopped and saved a checkpoint in {work}; run again") from error
        if failed.exists():
            raise TrainingFailed(f"{failed.read_text(encoding='utf-8')} (more in {work / 'train.log'})") from error
        raise
    rows = read_rows(out / "metrics.jsonl")
    facts = json.loads((work / "result.json").read_text(encoding="utf-8")) | _summary(section, rows)
    facts["per_device_tokens"] = job.per_device_tokens
    (out / "loss_curve.png").write_bytes(pictures.training_curves(rows))
    sections = {"model": model.for_origin(), "pretrain": section.for_origin()}
    stages = {"tokenizer": artifact.load(tokenizer).facts, "pretrained_checkpoint": facts}
    name = f"BERT, {model.num_hidden_layers} layers, {model.hidden_size} wide"
    (out / "README.md").write_text(model_card(name, sections, stages), encoding="utf-8")
    shutil.rmtree(work)
    return facts


def _identity(job: Job, inputs: Mapping[str, Path], origin: Mapping[str, Any] | None) -> str:
    """Fingerprint of everything that determines the training. The masking section enters through the masked_dataset."""
    fingerprints = {kind: artifact.load(path, kind).fingerprint for kind, path in inputs.items()}
    sections = {"section": job.section.for_origin(), "model": job.model.for_origin()}
    return artifact.fingerprint(sections | {"origin": origin} | fingerprints)


def _launch(config_file: Path, job_file: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts the processes, and its environment variables."""
    config = _config(config_file)
    num_processes, num_machines = config["num_processes"], config.get("num_machines", 1)
    options: tuple[str, ...] = ("--config_file", str(config_file))
    if num_machines == 1 and num_processes > 1:
        options += ("--main_process_port", "0")  # any free port
    if num_processes > 1:
        options += ("--max_restarts", str(RESTARTS))
    environment = {
        "BERT_PIPELINE_WORLD_SIZE": str(num_processes),  # each process checks it
        "BERT_PIPELINE_LAUNCHER": str(os.getpid()),  # the processes stop if this one is killed
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(STOP_SECONDS)),  # torchrun's default is 30
    }
    if config.get("use_cpu"):
        environment["ACCELERATE_USE_CPU"] = "true"  # accelerate passes use_cpu on to a single process only
    command = [sys.executable, "-m", "accelerate.commands.launch", *options]
    command += ["-m", "bert_pipeline.training.pretrain", str(job_file)]
    return command, settings.child_environment(settings.CPU_ENVIRONMENT, environment)


def _assert_the_machines_can_meet(config_file: Path) -> None:
    """Raise TrainingFailed if this is the first of several machines and the rendezvous port is in use."""
    config = _config(config_file)
    if config.get("num_machines", 1) == 1 or config["machine_rank"] != 0:
        return
    port = config["main_process_port"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
        try:
            probe.bind(("", port))
        except OSError as error:
            raise TrainingFailed(
                f"port {port}, the rendezvous of the machines, cannot be used here ({error.strerror}); remedy: another "
                f"main_process_port in {config_file}, the same on all machines, or end the process that uses it "
                "(`ss -ltnp`)"
            ) from error


def _run(command: list[str], environment: dict[str, str], log_file: Path, follow: Callable[[], None]) -> None:
    """Run to the end and call `follow` twice a second. On an exception the process group saves and ends."""
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
    """Stop all processes of the group. The launcher may exit at once; its children get STOP_SECONDS to save."""
    if process.poll() is None:
        log.warning("stopping the training processes; they save a checkpoint first")
    deadline = time.monotonic() + STOP_SECONDS
    sent = None
    while True:
        process.poll()  # reaps the launcher, else the group never becomes empty
        wanted = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        try:
            os.killpg(process.pid, wanted if wanted != sent else 0)
        except ProcessLookupError:
            return
        sent = wanted
        time.sleep(0.1)


def _summary(section: PretrainRecipe, rows: list[Row]) -> dict[str, Any]:
    steps = [row for row in rows if "learning_rate" in row]
    heldout = [row for row in rows if "heldout_mlm_loss" in row]
    counted = [row for row in steps if "loss" in row]  # in the other windows all steps were skipped
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
