"""Evaluate a model on a task by fine-tuning it: scores over several seeds, compared with random weights.

    <out>/scores.json                                   scores of the runs, settings, files, published scores
    <out>/predictions/<encoder>-seed<seed>-test.tsv     predictions of the reported runs; those for dev lie beside them
    <out>/runs/                                         every run, including those of the grid (finetuning/job.py)
    <out>/data/                                         the data, if it is generated

The protocol is BLURB's (Gu et al. 2021, section 2.4): the settings of a grid are compared on dev with the first seed,
and the best one runs with every seed. As a baseline, the same architecture also runs from random weights
(`random_init`): the gap to the checkpoint (`pretrained`) shows what pretraining contributed. A recipe with
evaluation.baseline = false leaves it out.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bert_pipeline.core.files import write_whole
from bert_pipeline.evaluation.finetuning.job import FinetuningJob, model_fingerprint
from bert_pipeline.evaluation.finetuning.protocol import (
    SCORED,
    EncoderWeights,
    Run,
    Setting,
    max_positions,
    protocol,
)
from bert_pipeline.evaluation.finetuning.workers import Workers
from bert_pipeline.evaluation.scoring.predictions import read_predictions
from bert_pipeline.evaluation.scoring.scores import interval, score_of, statistics
from bert_pipeline.evaluation.scoring.significance import compare
from bert_pipeline.evaluation.tasks.readers import TaskData, read_task
from bert_pipeline.evaluation.tasks.task import UNITS, find_task, task_folder
from bert_pipeline.formats.weights import weight_files
from bert_pipeline.recipe import TaskRecipe
from bert_pipeline.store.artifact import Artifact, Facts

BOOTSTRAP_SEED = 12345

OnRow = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


def evaluate_checkpoint(settings: TaskRecipe, checkpoint: Path, out: Path, on_row: OnRow, baseline: bool) -> Facts:
    """Evaluate a pretrained_checkpoint and each snapshot of its training on one task.

    `snapshots` in the facts maps the step of each snapshot to its score with the first seed, in the same setting.
    """
    facts = evaluate_task(settings, checkpoint, None, out, on_row, baseline)
    one_run = settings.model_copy(update=facts["setting"] | {"seeds": tuple(facts["seeds"][:1])})
    data = out / "data" if (out / "data").is_dir() else None
    snapshots = {}
    for model in sorted(checkpoint.glob("snapshots/step-????????")):
        step, folder = int(model.name.removeprefix("step-")), out / "snapshots" / model.name
        of_snapshot = evaluate_task(one_run, model, data, folder, lambda row: None, baseline=False)
        snapshots[str(step)] = score = of_snapshot["pretrained"]["score_mean"]
        on_row({"step": step, "task": settings.name, "snapshot_score": score})
    return facts | {"snapshots": snapshots}


def evaluate_task(
    settings: TaskRecipe, model_dir: Path, data: Path | None, out: Path, on_row: OnRow, baseline: bool
) -> Facts:
    """Evaluate the model in a Hugging Face directory on one task; `baseline` adds the runs from random weights.

    `data` replaces the task's own data folder. `on_row` receives each run when it is finished. Runs that exist in `out`
    are not repeated. Raises TaskError, ArtifactError or RunFailed.
    """
    experiment = prepare(settings, model_dir, data, out, baseline)
    job, examples, grid = experiment.job, experiment.examples, experiment.grid
    with Workers(job, experiment.most_at_once, experiment.num_examples) as workers:
        runs = _Runs(workers, on_row)
        losing = find_losing(workers, experiment) if settings.stop_losing_settings else set()
        tried = [run for run in grid if run not in losing]
        runs.make(tried, expected=experiment.longest)
        best = best_on_dev([(run.setting, runs.finished[run]) for run in tried]) if grid else job.protocol.settings[0]
        reported = experiment.with_every_seed(best)
        runs.make(reported)
    facts = _facts(job, examples, {run: runs.finished[run] for run in reported})
    _copy_predictions(job, reported, out / "predictions")
    _write_scores(out / "scores.json", settings, runs, facts, examples, grid, reported)
    return facts


def best_on_dev(tried: Sequence[tuple[Setting, Artifact]]) -> Setting:
    """Return the setting with the highest score on dev; the first of several equal ones."""
    return max(tried, key=lambda each: each[1].facts["dev"]["score"])[0]


def find_losing(workers: Workers, experiment: "Experiment") -> set[Run]:
    """Run half of the epochs of the grid, and return the runs whose dev score is then significantly below the best one.

    Runs of a single epoch have no half. The checkpoints of the losing runs are removed.
    """
    job = experiment.job
    runs = [run for run in experiment.grid if run.setting.num_epochs > 1]
    workers.make_halves(runs, expected=experiment.longest)
    files = {run: path for run in runs if (path := job.half_predictions(run))}
    dev = {run: statistics(job.task, *read_predictions(path, job.task)) for run, path in files.items()}
    if not dev:
        return set()
    best = max(dev, key=lambda run: float(score_of(job.task, dev[run].sum(0))))
    losing = set()
    for run in dev:
        found = compare(job.task, [dev[run]], [dev[best]], BOOTSTRAP_SEED)
        if found.significant and found.difference < 0:
            log.info("%s: %s: stopped, dev %.4f below %s", job.task.name, run.name, -found.difference, best.name)
            shutil.rmtree(files[run].parent / "work", ignore_errors=True)
            losing.add(run)
    return losing


@dataclass(frozen=True)
class Experiment:
    """The runs of one task: those of the grid, then those of the best setting with every seed."""

    job: FinetuningJob
    examples: TaskData
    baseline: bool

    @property
    def num_examples(self) -> int:
        return len(self.examples.splits["train"])

    @property
    def grid(self) -> list[Run]:
        """None for a single setting: there is nothing to choose."""
        settings = self.job.protocol.settings
        return [Run("pretrained", each, self.job.protocol.seeds[0]) for each in settings] if len(settings) > 1 else []

    def with_every_seed(self, setting: Setting) -> list[Run]:
        encoders: tuple[EncoderWeights, ...] = ("pretrained", "random_init") if self.baseline else ("pretrained",)
        return [Run(encoder, setting, seed) for encoder in encoders for seed in self.job.protocol.seeds]

    @property
    def longest(self) -> list[Run]:
        """The runs after the grid, if the setting with the most steps wins."""
        return self.with_every_seed(max(self.job.protocol.settings, key=lambda each: each.num_steps(self.num_examples)))

    @property
    def most_at_once(self) -> int:
        return max(len(self.grid), len(self.longest))


def prepare(settings: TaskRecipe, model_dir: Path, data: Path | None, out: Path, baseline: bool) -> Experiment:
    """Read the task and its data. Raises TaskError or ArtifactError."""
    task = find_task(settings.name)
    chosen = protocol(task, settings, max_positions(model_dir))
    weight_files(model_dir)
    out.mkdir(parents=True, exist_ok=True)
    folder = task_folder(task, data, out / "data")
    examples = read_task(task, folder, settings.other_data)
    for remark in examples.remarks:
        log.warning("%s: %s", task.name, remark)
    job = FinetuningJob(
        model_dir=model_dir.absolute(),
        task=task,
        data=folder.absolute(),
        other_data=settings.other_data,
        protocol=chosen,
        runs=(out / "runs").absolute(),
        fingerprints={
            "model": model_fingerprint(model_dir),
            **{split: str(facts["sha256"]) for split, facts in examples.files.items()},
        },
    )
    return Experiment(job, examples, baseline)


class _Runs:
    """The finished runs of a job. Each is passed to `on_row` once, numbered by the order of the plan."""

    def __init__(self, workers: Workers, on_row: OnRow) -> None:
        self.job = workers.job
        self.finished: dict[Run, Artifact] = {}
        self._workers, self._on_row = workers, on_row
        self._numbers: dict[Run, int] = {}  # independent of the order in which runs end and of interruptions

    def make(self, runs: Sequence[Run], expected: Sequence[Run] = ()) -> None:
        """`expected`: runs that will follow."""
        for run in runs:
            self._numbers.setdefault(run, len(self._numbers) + 1)
        if runs:
            self._workers.make(runs, self._add, expected)

    def dev_score(self, run: Run) -> float | None:
        """None for a setting that was stopped."""
        return self.finished[run].facts["dev"]["score"] if run in self.finished else None

    def _add(self, run: Run, artifact: Artifact) -> None:
        if run in self.finished:  # the best run of the grid is also a reported run
            return
        self.finished[run] = artifact
        task, facts = self.job.task.name, artifact.facts
        row = _settings_of(run) | facts["test"] | {"dev_score": facts["dev"]["score"]}
        self._on_row({"step": self._numbers[run], "task": task} | row)
        log.info("%s: %s: dev %.4f", task, run.name, facts["dev"]["score"])


def _settings_of(run: Run) -> dict[str, Any]:
    return {"encoder": run.encoder, **run.setting._asdict(), "seed": run.seed}


def _facts(job: FinetuningJob, examples: TaskData, reported: dict[Run, Artifact]) -> Facts:
    """Summarise the reported runs, which share one setting; the first of them is `pretrained`."""
    first = next(iter(reported))
    first_facts = reported[first].facts
    by_encoder: dict[str, list[Artifact]] = {}
    for run, artifact in reported.items():
        by_encoder.setdefault(run.encoder, []).append(artifact)
    return {
        "kind": job.task.kind,
        "metric": job.task.metric,
        "unit": UNITS[job.task.kind],
        "gold_size": examples.files["test"]["size"],
        "setting": first.setting._asdict(),
        "seeds": list(job.protocol.seeds),
        "max_seq_length": job.protocol.max_seq_length,
        "words_out_of_input": {split: lost["words"] for split, lost in first_facts["out_of_input"].items()},
        "gold_out_of_input": {split: lost["gold"] for split, lost in first_facts["out_of_input"].items()},
        "fresh_pooler": first_facts["fresh_pooler"],
        **{encoder: _summary(job, artifacts) for encoder, artifacts in by_encoder.items()},
        "published": dict(job.task.published_scores),
        "measured": dict(job.task.measured_scores),
    }


def _summary(job: FinetuningJob, runs: Sequence[Artifact]) -> dict[str, float | None]:
    """Return the mean of each test score over the seeds and, of the task's metric, the sample standard deviation (None
    for a single seed) and the bootstrap interval."""
    tests = [run.facts["test"] for run in runs]
    summary: dict[str, float | None] = {f"{name}_mean": mean(test[name] for test in tests) for name in tests[0]}
    summary["score_sd"] = stdev(test["score"] for test in tests) if len(tests) > 1 else None
    # Computed from the written files, which anyone can score again.
    rows = [statistics(job.task, *read_predictions(run.path / "test.tsv", job.task)) for run in runs]
    summary["low"], summary["high"] = interval(job.task, rows, BOOTSTRAP_SEED)
    return summary


def _copy_predictions(job: FinetuningJob, runs: Sequence[Run], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # predictions of an earlier call with other settings
    folder.mkdir()
    for run in runs:
        for split in SCORED:
            shutil.copy(job.runs / run.name / f"{split}.tsv", folder / f"{run.encoder}-seed{run.seed}-{split}.tsv")


def _write_scores(
    path: Path,
    settings: TaskRecipe,
    runs: _Runs,
    facts: Facts,
    examples: TaskData,
    grid: Sequence[Run],
    reported: Sequence[Run],
) -> None:
    job = runs.job
    table = facts | {
        "task": job.task.name,
        "version": job.task.version,
        "settings": settings.model_dump(mode="json"),
        "protocol": job.protocol.model_dump(mode="json"),
        "grid": [run.setting._asdict() | {"dev": runs.dev_score(run)} for run in grid],
        "runs": [_settings_of(run) | runs.finished[run].facts for run in reported],
        "files": examples.files,
        "reference": job.task.splits.model_dump(mode="json"),
        "published_source": job.task.published_source,
        "fingerprints": job.fingerprints,
    }
    write_whole(path, json.dumps(table, indent=2) + "\n")
