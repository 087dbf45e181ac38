"""One run as an artifact: fine-tune, predict, score (see job.py for its files)."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from bert_pipeline.evaluation.finetuning.export import export_task_model
from bert_pipeline.evaluation.finetuning.finetune import circumstances, finetune, finetune_half
from bert_pipeline.evaluation.finetuning.inputs import TaskInputs
from bert_pipeline.evaluation.finetuning.job import HALF, MODEL, FinetuningJob
from bert_pipeline.evaluation.finetuning.protocol import SCORED, Run
from bert_pipeline.evaluation.scoring.predictions import write_predictions
from bert_pipeline.evaluation.scoring.scores import gold_labels, scores
from bert_pipeline.evaluation.tasks.readers import TaskData
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, Facts


class _Paused(Exception):
    """The run is not finished, but resumable."""


def make_half(
    job: FinetuningJob, run: Run, data: TaskData, inputs: TaskInputs, on_step: Callable[[int, int], None]
) -> None:
    """Fine-tune for half of the epochs and write the predictions of dev to HALF; `make_run` resumes the run."""

    def build(out: Path) -> Facts:
        if (out / HALF).exists():
            raise _Paused
        predicted = finetune_half(job.model_dir, inputs, run, job.protocol, out / "work", on_step)
        if predicted is not None:
            write_predictions(out / "work" / HALF, data.splits["dev"], predicted)
            (out / "work" / HALF).rename(out / HALF)
        raise _Paused

    with suppress(_Paused):
        artifact.make(job.runs / run.name, job.origin(run), build, resumable=True)


def make_run(
    job: FinetuningJob, run: Run, data: TaskData, inputs: TaskInputs, on_step: Callable[[int, int], None]
) -> Artifact:
    """Fine-tune once, resuming an interrupted run from its checkpoint. `on_step`: see `finetune`."""

    def build(out: Path) -> Facts:
        work = out / "work"
        outcome = finetune(job.model_dir, inputs, run, job.protocol, work, on_step)
        if job.keep_models:
            model, learnt, length = outcome.model.model, data.splits["train"], job.protocol.max_seq_length
            export_task_model(model, job.task, learnt, job.model_dir, length, out / MODEL)
        found: dict[str, Mapping[str, float]] = {}
        for split in SCORED:
            examples, predicted = data.splits[split], outcome.predicted[split]
            write_predictions(out / f"{split}.tsv", examples, predicted)
            found[split] = scores(job.task, gold_labels(examples), predicted)
        shutil.rmtree(work, ignore_errors=True)
        return {
            **found,
            "epoch_losses": outcome.epoch_losses,
            "fresh_pooler": outcome.fresh_pooler,
            "out_of_input": inputs.out_of_input,
            **circumstances(),
            **outcome.model.how._asdict(),
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }

    return artifact.make(job.runs / run.name, job.origin(run), build, resumable=True)
