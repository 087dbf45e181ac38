"""The numbers of a study from the artifacts of its recipes: scores, their comparison, losses, what training took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from bert_pipeline.evaluation.scoring.compare import read_runs
from bert_pipeline.evaluation.scoring.multibootstrap import Scores, Standing, compare_arms, mean_over_tasks, score_runs
from bert_pipeline.evaluation.tasks.task import Task, find_task
from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.studies.evidence import Evidence, Trained
from bert_pipeline.study import Study

ALL_TASKS = "mean over tasks"
RESAMPLING_SEED = 12345


@dataclass(frozen=True)
class Spent:
    """What the pretraining of an arm took, as measured: means over its seeds."""

    steps: float
    tokens: float
    """Tokens without padding."""
    minutes: float
    """Time of the steps, without start-up, measurements and checkpoints."""


@dataclass(frozen=True)
class Curve:
    """Held-out loss of one training over its steps."""

    steps: list[int]
    losses: list[float]
    """Nats per word: the loss of a masked piece times the pieces per word, because vocabularies may differ."""


class Settings(NamedTuple):
    """Values of the fine-tuning settings."""

    learning_rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    nums_epochs: tuple[int, ...]


@dataclass(frozen=True)
class Results:
    tasks: dict[str, Task]
    finetuning_seeds: dict[str, list[int]]
    """By task."""
    tried: dict[str, Settings]
    """The values of the fine-tuning grid, by task."""
    chosen: dict[str, dict[str, Settings]]
    """The values of the best setting on dev, for each pretraining seed, by task and arm."""
    standings: dict[str, dict[str, Standing]]
    """By task and arm; with several tasks also of ALL_TASKS, which then comes first."""
    curves: dict[str, list[Curve]]
    """By arm, one curve for each pretraining seed."""
    spent: dict[str, Spent]
    """By arm."""
    corpora: dict[str, str]
    """Fingerprint of the corpus by arm."""
    held: dict[str, dict[str, float]]
    """Share of the test examples that the corpus holds, by arm and task."""

    @property
    def headline(self) -> dict[str, Standing]:
        """The standings that answer the question."""
        return next(iter(self.standings.values()))


def measure(study: Study, evidence: Evidence) -> Results:
    """Raises ValueError if the runs of a task were scored on other examples than each other."""
    arms = [arm.name for arm in study.compared_arms]
    seeds = study.pretraining_seeds
    first = {arm: evidence[arm, seeds[0]] for arm in arms}
    names = list(first[study.reference].evaluations)
    tasks = {name: find_task(name) for name in names}
    evaluations = {name: [[evidence[arm, seed].evaluations[name] for seed in seeds] for arm in arms] for name in names}
    scores = {
        name: _scores(tasks[name], evaluations[name], np.random.default_rng([RESAMPLING_SEED, number]))
        for number, name in enumerate(names)
    }
    if len(names) > 1:
        scores = {ALL_TASKS: mean_over_tasks([*scores.values()])} | scores
    reference = arms.index(study.reference)
    standings = {
        name: dict(zip(arms, compare_arms(each, reference, np.random.default_rng(RESAMPLING_SEED)), strict=True))
        for name, each in scores.items()
    }
    return Results(
        tasks=tasks,
        finetuning_seeds={name: evaluations[name][0][0].facts["seeds"] for name in names},
        tried={name: _tried(evaluations[name][0][0]) for name in names},
        chosen={
            name: {arm: _chosen(of_arm) for arm, of_arm in zip(arms, evaluations[name], strict=True)} for name in names
        },
        standings=standings,
        curves={arm: [_curve(evidence[arm, seed]) for seed in seeds] for arm in arms},
        spent={arm: _spent(study, arm, evidence) for arm in arms},
        corpora={arm: each.raw_corpus for arm, each in first.items()},
        held={arm: _held(each.contamination) for arm, each in first.items()},
    )


def _scores(task: Task, evaluations: Sequence[Sequence[Artifact]], rng: np.random.Generator) -> Scores:
    """`evaluations`: by arm and pretraining seed."""
    runs = [[read_runs(made.path, task, made.facts["seeds"]) for made in of_arm] for of_arm in evaluations]
    return score_runs(task, runs, rng)


def _tried(evaluation: Artifact) -> Settings:
    protocol = evaluation.record["origin"]["section"]
    return Settings(*(tuple(protocol[name]) for name in Settings._fields))


def _chosen(evaluations: Sequence[Artifact]) -> Settings:
    settings = [made.facts["setting"] for made in evaluations]
    return Settings(*(tuple(each[name] for each in settings) for name in ("learning_rate", "batch_size", "num_epochs")))


def _curve(trained: Trained) -> Curve:
    pieces = trained.tokenizer.facts["heldout_pieces_per_word"]
    rows = [row for row in read_rows(trained.checkpoint.path / "metrics.jsonl") if "heldout_mlm_loss" in row]
    return Curve([row["step"] for row in rows], [row["heldout_mlm_loss"] * pieces for row in rows])


def _spent(study: Study, arm: str, evidence: Evidence) -> Spent:
    """With `with_first_model`, including the training of the model that the arm continues."""
    facts = [evidence[arm, seed].checkpoint.facts for seed in study.pretraining_seeds]
    own = Spent(
        mean(each["num_steps"] for each in facts),
        mean(each["train_tokens_seen"] for each in facts),
        mean(each["train_tokens_seen"] / each["tokens_per_second"] / 60 for each in facts),
    )
    continued = study.arm(arm).continues
    if not (study.with_first_model and continued):
        return own
    before = _spent(study, continued, evidence)
    return Spent(own.steps + before.steps, own.tokens + before.tokens, own.minutes + before.minutes)


def _held(contamination: Artifact | None) -> dict[str, float]:
    tasks: Mapping[str, Any] = contamination.facts["tasks"] if contamination else {}
    return {name: splits["test"]["share_held"] for name, splits in tasks.items() if "test" in splits}
