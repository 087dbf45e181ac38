"""How fast a run will be, and the schedule that fits a budget of minutes.

What a run computes must not change when it is resumed, on whatever machine. So the speed is measured once, before the
first step, by probe.py in a process of its own; what followed from it stands in the run's folder, in schedule.json.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import write_whole
from bert_pipeline.recipe import PretrainRecipe

PROBE_SECONDS = 900.0
"""Far more than a probe takes; what takes longer hangs."""

log = logging.getLogger(__name__)


class BudgetError(ValueError):
    """A budget that allows no training."""


class ProbeFailed(RuntimeError):
    """The probe ended with an error; the message bears its last lines."""


@dataclass(frozen=True)
class Pace:
    """What the probe found: seconds on all devices of the run together, and the micro-batch that gives them."""

    per_device_tokens: int
    pair_seconds: Mapping[str, float]
    """Forward and backward for a pair, by sequence length."""
    update_seconds: float
    """Clipping the gradient and updating the weights, once a step."""
    heldout_pair_seconds: float
    """Forward alone, at the length of the last phase."""
    checkpoint_seconds: float


def step_seconds(section: PretrainRecipe, number: int, pace: Pace) -> float:
    """A step of phase `number`, with its share of the measurements and checkpoints that come every so many steps."""
    phase = section.phases[number]
    return (
        phase.global_batch_size * pace.pair_seconds[str(phase.max_seq_length)]
        + pace.update_seconds
        + section.heldout_pairs * pace.heldout_pair_seconds / section.eval_every
        + pace.checkpoint_seconds / section.checkpoint_every
    )


def training_seconds(section: PretrainRecipe, pace: Pace) -> float:
    """From the first step to the last checkpoint. Held-out pairs are measured before the first step and at the end."""
    steps = sum(phase.num_steps * step_seconds(section, n, pace) for n, phase in enumerate(section.phases))
    return steps + 2 * section.heldout_pairs * pace.heldout_pair_seconds + pace.checkpoint_seconds


def fit_to_budget(section: PretrainRecipe, pace: Pace) -> PretrainRecipe:
    """The same training in numbers of steps: as many as the minutes allow, each phase its share of the time.

    Raises BudgetError where a phase would have no step.
    """
    if section.budget_minutes is None:
        return section
    phases = section.phases
    left = 60 * section.budget_minutes - training_seconds(section, pace)  # the phases have no steps yet
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


def decide_schedule(job: Mapping[str, Any], work: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The job with its numbers of steps and the size of its micro-batches.

    What was measured for this section once, in `work`, is kept. A size that is given as a number is taken as it is.
    """
    section, asked = PretrainRecipe.model_validate_json(json.dumps(job["section"])), job["per_device_tokens"]
    if section.budget_minutes is None and asked != "auto":
        return dict(job)
    schedule = work / "schedule.json"
    if not schedule.exists() or json.loads(schedule.read_text(encoding="utf-8"))["asked"] != job["section"]:
        pace = measure_pace(job, work, environment)
        fitted = fit_to_budget(section, pace)
        decided = {"asked": job["section"], "section": fitted.model_dump(mode="json"), "pace": asdict(pace)}
        write_whole(schedule, json.dumps(decided, indent=2))
        steps = ", ".join(f"{p.num_steps:,} steps of {p.max_seq_length} tokens" for p in fitted.phases)
        log.info("pretrain: micro-batches of %s tokens; %s", f"{pace.per_device_tokens:,}", steps)
    kept = json.loads(schedule.read_text(encoding="utf-8"))
    tokens = kept["pace"]["per_device_tokens"] if asked == "auto" else asked
    return {**job, "section": kept["section"], "per_device_tokens": tokens}


def measure_pace(job: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> Pace:
    """Run the probe on the job; `folder` is where the run's checkpoints will be."""
    job_file, pace_file = folder / "probe-job.json", folder / "probe.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "bert_pipeline.training.launch.probe", str(job_file), str(pace_file)]
    try:
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"the probe did not end within {PROBE_SECONDS:.0f} s; {' '.join(command)}") from None
    except subprocess.CalledProcessError as error:
        killed = "; the system killed it, most likely for want of memory" if error.returncode == -9 else ""
        last_lines = "\n".join(error.stderr.splitlines()[-20:])
        raise ProbeFailed(f"the probe ended with exit code {error.returncode}{killed}:\n{last_lines}") from None
    return Pace(**json.loads(pace_file.read_text(encoding="utf-8")))
