"""The speed of a run, and the schedule that fits its budget of minutes.

A resumed run must compute the same, also on another machine. So the speed is measured once, before the first step, by
probe.py in a separate process, and the resulting schedule is kept in the run's folder, in schedule.json.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from bert_pipeline.core.files import write_whole
from bert_pipeline.recipe import PretrainRecipe
from bert_pipeline.training.job import Job

PROBE_SECONDS = 900.0
"""Timeout: a probe takes far less."""

log = logging.getLogger(__name__)


class BudgetError(ValueError):
    """The budget is too small for any training."""


class ProbeFailed(RuntimeError):
    """The probe ended with an error; the message contains its last log lines."""


@dataclass(frozen=True)
class Pace:
    """The measurements of the probe: seconds on all devices of the run together."""

    per_device_tokens: int
    """The micro-batch that was measured."""
    pair_seconds: Mapping[str, float]
    """Forward and backward pass of one pair, by sequence length."""
    update_seconds: float
    """Gradient clipping and optimizer update of one step."""
    heldout_pair_seconds: float
    """Forward pass of one pair at the length of the last phase."""
    checkpoint_seconds: float
    """One save; 0 if the run has no budget."""


def step_seconds(section: PretrainRecipe, number: int, pace: Pace) -> float:
    """Seconds of a step of phase `number`, including its share of the periodic measurements and checkpoints."""
    phase = section.phases[number]
    return (
        phase.global_batch_size * pace.pair_seconds[str(phase.max_seq_length)]
        + pace.update_seconds
        + section.heldout_pairs * pace.heldout_pair_seconds / section.eval_every
        + pace.checkpoint_seconds / section.checkpoint_every
    )


def training_seconds(section: PretrainRecipe, pace: Pace) -> float:
    """Seconds from start to last checkpoint, with the held-out measurements before the first step and at the end."""
    steps = sum(phase.num_steps * step_seconds(section, n, pace) for n, phase in enumerate(section.phases))
    return steps + 2 * section.heldout_pairs * pace.heldout_pair_seconds + pace.checkpoint_seconds


def fit_to_budget(section: PretrainRecipe, pace: Pace) -> PretrainRecipe:
    """Replace the budget by numbers of steps: as many as fit, each phase its fraction of the time.

    Raise BudgetError if a phase would have no step.
    """
    if section.budget_minutes is None:
        return section
    phases = section.phases
    left = 60 * section.budget_minutes - training_seconds(section, pace)  # num_steps is 0 in all phases
    num_steps = [int(left * (p.budget_fraction or 0.0) / step_seconds(section, n, pace)) for n, p in enumerate(phases)]
    if min(num_steps) < 1:
        raise BudgetError(
            f"pretrain.budget_minutes = {section.budget_minutes:g} leaves {left:.1f} s for steps that take "
            f"{', '.join(f'{step_seconds(section, n, pace):.2g}' for n in range(len(phases)))} s (by phase); remedy: "
            "more minutes, a smaller global_batch_size, or fewer pretrain.heldout_pairs"
        )
    fitted = []
    for number, phase in enumerate(phases):
        continuing = takewhile(lambda n: phases[n].learning_rate_handover == "continue", range(number + 1, len(phases)))
        length = num_steps[number] + sum(num_steps[n] for n in continuing)
        warmup = None if phase.warmup_fraction is None else round(phase.warmup_fraction * length)
        steps = {"num_steps": num_steps[number], "warmup_steps": warmup}
        fitted.append(phase.model_copy(update=steps | {"budget_fraction": None, "warmup_fraction": None}))
    return section.model_copy(update={"budget_minutes": None, "phases": tuple(fitted)})


def decide_schedule(job: Job, work: Path, environment: Mapping[str, str]) -> Job:
    """The job with a number of steps for each phase, and with `per_device_tokens` as a number.

    The probe runs at most once for a section: `work`/schedule.json keeps the result. A `per_device_tokens` that is a
    number already is not changed.
    """
    if job.section.budget_minutes is None and job.per_device_tokens != "auto":
        return job
    schedule, recipe = work / "schedule.json", job.section.model_dump(mode="json")
    if not schedule.exists() or json.loads(schedule.read_text(encoding="utf-8"))["asked"] != recipe:
        pace = measure_pace(job, work, environment)
        fitted = fit_to_budget(job.section, pace)
        decided = {"asked": recipe, "section": fitted.model_dump(mode="json"), "pace": asdict(pace)}
        write_whole(schedule, json.dumps(decided, indent=2))
        steps = ", ".join(f"{p.num_steps:,} steps of {p.max_seq_length} tokens" for p in fitted.phases)
        log.info("pretrain: micro-batches of %s tokens; %s", f"{pace.per_device_tokens:,}", steps)
    kept = json.loads(schedule.read_text(encoding="utf-8"))
    section = PretrainRecipe.model_validate_json(json.dumps(kept["section"]))
    tokens = kept["pace"]["per_device_tokens"] if job.per_device_tokens == "auto" else job.per_device_tokens
    return job.model_copy(update={"section": section, "per_device_tokens": tokens})


def measure_pace(job: Job, folder: Path, environment: Mapping[str, str]) -> Pace:
    """Run the probe on the job. `folder` holds its files; use the disk that the checkpoints will be on.

    Raise ProbeFailed if it ends with an error or does not end within PROBE_SECONDS.
    """
    job_file, pace_file = folder / "probe-job.json", folder / "probe.json"
    job.write(job_file)
    command = [sys.executable, "-m", "bert_pipeline.training.launch.probe", str(job_file), str(pace_file)]
    try:
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"the probe did not end within {PROBE_SECONDS:.0f} s; {' '.join(command)}") from None
    except subprocess.CalledProcessError as error:
        killed = "; the kernel killed it, most likely because memory ran out" if error.returncode == -9 else ""
        last_lines = "\n".join(error.stderr.splitlines()[-20:])
        raise ProbeFailed(f"the probe ended with exit code {error.returncode}{killed}:\n{last_lines}") from None
    return Pace(**json.loads(pace_file.read_text(encoding="utf-8")))
