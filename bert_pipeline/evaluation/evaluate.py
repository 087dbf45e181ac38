"""What a checkpoint is worth: its losses on held-out text, and its scores on tasks beside random weights.

    <out>/scores.json                                   every run's scores, the gold, the settings, what is published
    <out>/predictions/<encoder>-seed<seed>-test.tsv     of the runs that the scores are means of; dev's beside them
    <out>/runs/                                         every run, those of the grid too (runs.py)
    <out>/data/                                         the data, where it is generated

A task is run with the checkpoint (`pretrained`) and, as a baseline, with the same architecture from fresh weights
(`random_init`): only the gap between the two is what pretraining gave.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bert_pipeline.evaluation.finetuning.protocol import SCORED, EncoderWeights, Run, max_positions, protocol
from bert_pipeline.evaluation.finetuning.runs import FinetuningJob, best, grid, model_fingerprint
from bert_pipeline.evaluation.finetuning.workers import make_runs
from bert_pipeline.evaluation.scoring.predictions import read_predictions
from bert_pipeline.evaluation.scoring.scores import interval, statistics
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.evaluation.tasks.task import UNITS, find_task, task_folder
from bert_pipeline.recipe import TaskRecipe
from bert_pipeline.store.artifact import Artifact, Facts

BOOTSTRAP_SEED = 12345

OnRow = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


def evaluate_checkpoint(settings: TaskRecipe, checkpoint: Path, out: Path, on_row: OnRow) -> Facts:
    """One task with a pretrained_checkpoint: beside random weights, and with the models that were kept on the way.

    `snapshots` in the facts maps the step of each of those to its score, of the first seed, in the same setting.
    """
    facts = evaluate_task(settings, checkpoint, None, out, on_row, baseline=True)
    once = settings.model_copy(update=facts["setting"] | {"seeds": tuple(facts["seeds"][:1])})
    data = out / "data" if (out / "data").is_dir() else None
    snapshots = {}
    for model in sorted(checkpoint.glob("snapshots/step-????????")):
        step, place = int(model.name.removeprefix("step-")), out / "snapshots" / model.name
        score = evaluate_task(once, model, data, place, lambda row: None, baseline=False)["pretrained"]["score_mean"]
        on_row({"step": step, "task": settings.name, "snapshot_score": score})
        snapshots[str(step)] = score
    return facts | {"snapshots": snapshots}


def evaluate_task(
    settings: TaskRecipe, model_dir: Path, data: Path | None, out: Path, on_row: OnRow, baseline: bool
) -> Facts:
    """Run one task with the model in a Hugging Face directory; `baseline` adds the runs from random weights.

    `data` is the folder of the task's files, where it is not the task's own. `on_row` is told each run as it is done.
    What stands in `out` is not run again. Raises TaskError, ArtifactError or RunFailed.
    """
    task = find_task(settings.name)
    how = protocol(task, settings, max_positions(model_dir))
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
        protocol=how,
        runs=(out / "runs").absolute(),
        fingerprints={
            "model": model_fingerprint(model_dir),
            **{split: str(facts["sha256"]) for split, facts in examples.files.items()},
        },
    )
    made: dict[Run, Artifact] = {}
    place: dict[Run, int] = {}  # in the plan: the same where runs end in another order, or after an interruption

    def keep(run: Run, artifact: Artifact) -> None:
        if run not in made:  # the grid's best is one of the runs with every seed
            made[run] = artifact
            on_row({"step": place[run], "task": task.name} | _row(run, artifact.facts))
            log.info("%s: %s: dev %.4f", task.name, run.name, artifact.facts["dev"]["score"])

    def make(runs: Sequence[Run]) -> list[Run]:
        place.update({run: number for number, run in enumerate(dict.fromkeys([*place, *runs]), 1)})
        make_runs(job, runs, len(examples.splits["train"]), keep)
        return list(runs)

    settings_tried = grid(how)
    tried = make([Run("pretrained", each, how.seeds[0]) for each in settings_tried]) if len(settings_tried) > 1 else []
    setting = best([(run.setting, made[run]) for run in tried]) if tried else settings_tried[0]
    encoders: tuple[EncoderWeights, ...] = ("pretrained", "random_init") if baseline else ("pretrained",)
    chosen = make([Run(encoder, setting, seed) for encoder in encoders for seed in how.seeds])

    _copy_predictions(job, chosen, out / "predictions")
    of_first = made[chosen[0]].facts
    facts: Facts = {
        "kind": task.kind,
        "metric": task.metric,
        "unit": UNITS[task.kind],
        "gold_size": examples.files["test"]["size"],
        "setting": setting._asdict(),
        "seeds": list(how.seeds),
        "max_seq_length": how.max_seq_length,
        "words_out_of_input": {split: lost["words"] for split, lost in of_first["out_of_input"].items()},
        "gold_out_of_input": {split: lost["gold"] for split, lost in of_first["out_of_input"].items()},
        "fresh_pooler": of_first["fresh_pooler"],
        **{
            encoder: _summary(job, {run: made[run] for run in chosen if run.encoder == encoder}) for encoder in encoders
        },
        "published": dict(task.published_scores),
        "measured": dict(task.measured_scores),
    }
    table = facts | {
        "task": task.name,
        "version": task.version,
        "settings": settings.model_dump(mode="json"),
        "protocol": how.model_dump(mode="json"),
        "grid": [run.setting._asdict() | {"dev": made[run].facts["dev"]["score"]} for run in tried],
        "runs": [_which(run) | made[run].facts for run in chosen],
        "files": examples.files,
        "reference": task.splits.model_dump(mode="json"),
        "published_source": task.published_source,
        "fingerprints": job.fingerprints,
    }
    (out / "scores.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return facts


def _which(run: Run) -> dict[str, Any]:
    return {"encoder": run.encoder, **run.setting._asdict(), "seed": run.seed}


def _row(run: Run, facts: Facts) -> dict[str, Any]:
    return _which(run) | facts["test"] | {"dev_score": facts["dev"]["score"]}


def _summary(job: FinetuningJob, runs: Mapping[Run, Artifact]) -> dict[str, float | None]:
    """Mean of each test score over the seeds; of the metric its sample standard deviation, where there are several
    seeds, and its bootstrap interval."""
    tests = [made.facts["test"] for made in runs.values()]
    summary: dict[str, float | None] = {f"{name}_mean": mean(test[name] for test in tests) for name in tests[0]}
    summary["score_sd"] = stdev(test["score"] for test in tests) if len(tests) > 1 else None
    # From the files that anyone can score again, not from what the run kept in memory.
    rows = [statistics(job.task, *read_predictions(made.path / "test.tsv", job.task)) for made in runs.values()]
    summary["low"], summary["high"] = interval(job.task, rows, BOOTSTRAP_SEED)
    return summary


def _copy_predictions(job: FinetuningJob, runs: Sequence[Run], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of another choice of settings
    folder.mkdir()
    for run in runs:
        for split in SCORED:
            shutil.copy(job.runs / run.name / f"{split}.tsv", folder / f"{run.encoder}-seed{run.seed}-{split}.tsv")
