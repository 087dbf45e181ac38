"""Fine-tune a model on a task and keep the weights.

    <out>/config.json, model.safetensors, tokenizer files    for transformers' pipelines and for annotate.py
    <out>/README.md                                          model card for the Hugging Face Hub
    <out>/predictions/dev.tsv, test.tsv                      every prediction
    <out>/record.json                                        setting, seed, scores, what it was built from

An evaluation keeps scores and predictions, not weights. `best_run` names its run with the highest score on dev, and
`build_task_model` repeats that run.
"""

import json
import logging
import shutil
from pathlib import Path

from bert_pipeline.evaluation.evaluate import prepare
from bert_pipeline.evaluation.finetuning.export import exported_labels
from bert_pipeline.evaluation.finetuning.job import MODEL, model_fingerprint
from bert_pipeline.evaluation.finetuning.protocol import SCORED
from bert_pipeline.evaluation.finetuning.workers import Workers
from bert_pipeline.evaluation.tasks.task import UNITS, Task
from bert_pipeline.recipe import TaskRecipe
from bert_pipeline.report.task_model_card import task_model_card
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError, Facts

KIND = "task_model"
CODE_VERSION = "1"
"""Raise this when the same run gives another directory."""
CHECKPOINT = "pretrained_checkpoint"

log = logging.getLogger(__name__)


def best_run(evaluation: Path, task: str, model_dir: Path) -> TaskRecipe:
    """Return the settings of an evaluation's run with the highest score on dev; the first of several equal ones.

    Raises ArtifactError if the directory has no evaluation of this model on this task.
    """
    try:
        scores = json.loads((evaluation / "scores.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{evaluation} has no scores.json; remedy: name the directory of one task") from None
    if scores["task"] != task or scores["fingerprints"]["model"] != model_fingerprint(model_dir):
        raise ArtifactError(
            f"{evaluation} evaluates another model, or {scores['task']}, not {model_dir} on {task}; "
            "remedy: evaluate this model first, or choose the settings by options"
        )
    runs = [run for run in scores["runs"] if run["encoder"] == "pretrained"]
    best = max(runs, key=lambda run: run["dev"]["score"])
    seeds = ", ".join(f"{run['seed']}: {run['dev']['score']:.4f}" for run in runs)
    log.info("%s: seed %d has the highest score on dev (%s)", task, best["seed"], seeds)
    recorded = TaskRecipe.model_validate_json(json.dumps(scores["settings"]))
    setting = {name: best[name] for name in ("learning_rate", "batch_size", "num_epochs")}
    return recorded.model_copy(
        update=setting | {"seeds": (best["seed"],), "max_seq_length": scores["protocol"]["max_seq_length"]}
    )


def build_task_model(settings: TaskRecipe, model_dir: Path, data: Path | None, out: Path) -> Artifact:
    """Fine-tune the model in a Hugging Face directory once and write the task model to `out`.

    `data` replaces the task's own data folder. An interrupted call resumes from its last checkpoint. Raises TaskError,
    ArtifactError or RunFailed, and ValueError if the settings name more than one run.
    """
    work = artifact.partial(out) / "work"
    experiment = prepare(settings, model_dir, data, work, baseline=False)
    job = experiment.job.model_copy(update={"keep_models": True})
    runs = [run for setting in job.protocol.settings for run in experiment.with_every_seed(setting)]
    if len(runs) > 1:
        raise ValueError(f"{job.task.name}: {len(runs)} settings and seeds; remedy: one of each")
    [run] = runs
    origin = job.origin(run)
    section = origin["section"] | {"name": job.task.name, "outputs": list(exported_labels(job.task))}
    inputs = {**origin["inputs"], **_checkpoint(model_dir)}

    def build(out: Path) -> Facts:
        with Workers(job, 1, experiment.num_examples) as workers:
            workers.make([run], lambda run, made: None)
        made = job.runs / run.name
        (out / "predictions").mkdir(exist_ok=True)
        for path in [*(made / MODEL).iterdir(), *(made / f"{split}.tsv" for split in SCORED)]:
            # Copied, so that an interrupted call finds the finished run whole.
            shutil.copy(path, out / "predictions" if path.suffix == ".tsv" else out)
        facts = _facts(job.task, artifact.load(made).facts) | {
            **run.setting._asdict(),
            "seed": run.seed,
            "max_seq_length": job.protocol.max_seq_length,
        }
        (out / "README.md").write_text(task_model_card(facts), encoding="utf-8")
        shutil.rmtree(work)
        return facts

    made = artifact.make(out, artifact.origin(KIND, section, inputs, CODE_VERSION), build, resumable=True)
    shutil.rmtree(artifact.partial(out), ignore_errors=True)  # `prepare` wrote there though nothing was to build
    return made


def _checkpoint(model_dir: Path) -> dict[str, str]:
    """The fingerprint of the pretrained_checkpoint, if the directory is one."""
    if not (model_dir / artifact.RECORD).exists():
        return {}
    made = artifact.load(model_dir)
    return {CHECKPOINT: made.fingerprint} if made.kind == CHECKPOINT else {}


def _facts(task: Task, of_run: Facts) -> Facts:
    return {
        "task": task.name,
        "title": task.title,
        "kind": task.kind,
        "metric": task.metric,
        "unit": UNITS[task.kind],
        "terms": task.terms,
        "labels": list(exported_labels(task)),
        **{name: of_run[name] for name in (*SCORED, "epoch_losses", "threads", "device", "precision", "versions")},
    }
