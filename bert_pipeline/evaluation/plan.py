"""How long an evaluation will take on this machine, before it starts."""

import heapq
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from bert_pipeline.core.tables import Table
from bert_pipeline.evaluation.evaluate import prepare
from bert_pipeline.evaluation.finetuning.job import FinetuningJob
from bert_pipeline.evaluation.finetuning.protocol import Run
from bert_pipeline.evaluation.finetuning.workers import Workers, width
from bert_pipeline.recipe import TaskRecipe


class TaskPlan(NamedTuple):
    """What is left to run of a task; finished runs do not count."""

    task: str
    num_runs: int
    num_steps: int
    side_by_side: int
    seconds: float


def plan_task(settings: TaskRecipe, model_dir: Path, data: Path | None, out: Path, baseline: bool) -> TaskPlan:
    """Measure the pace of this machine for some seconds, and estimate the time of the runs that are not finished.

    After a grid, the setting with the most steps is assumed to win. Raises what `evaluate_task` raises.
    """
    experiment = prepare(settings, model_dir, data, out, baseline)
    job = experiment.job
    phases = [_missing(job, experiment.grid), []]
    phases[1] = [run for run in _missing(job, experiment.longest) if run not in phases[0]]
    steps = {run: run.setting.num_steps(experiment.num_examples) for phase in phases for run in phase}
    paces = {}
    with Workers(job, experiment.most_at_once, experiment.num_examples) as workers:
        for batch_size in dict.fromkeys(run.setting.batch_size for run in steps):
            paces[batch_size] = workers.measure_pace(batch_size)

    def seconds(run: Run) -> float:
        of_step, of_prediction = paces[run.setting.batch_size]
        return steps[run] * of_step + of_prediction

    together = width(experiment.most_at_once)
    whole = sum(_makespan([seconds(run) for run in phase], together) for phase in phases)
    return TaskPlan(job.task.name, len(steps), sum(steps.values()), together, whole)


def _missing(job: FinetuningJob, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if not job.finished(run)]


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last run ends, if each starts as soon as a worker is free."""
    free_at = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free_at, free_at[0] + each)
    return max(free_at)


def plan_table(plans: Sequence[tuple[str, TaskPlan]]) -> Table:
    """A row for each (model, plan), and their sum."""
    rows = [
        (
            *(model, each.task),
            str(each.num_runs),
            f"{each.num_steps:,}",
            str(each.side_by_side),
            _duration(each.seconds),
        )
        for model, each in plans
    ]
    runs, steps, seconds = (sum(getattr(p, name) for _, p in plans) for name in ("num_runs", "num_steps", "seconds"))
    rows.append(("all", "", str(runs), f"{steps:,}", "", _duration(seconds)))
    return Table(("model", "task", "runs to do", "steps", "side by side", "estimated time"), rows)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
