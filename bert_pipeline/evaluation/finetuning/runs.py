"""The runs of a task: which there are, and how one is made.

    <out>/runs/<encoder>-lr5e-05-bs32-ep10-seed1/record.json    the run's settings, scores on dev and test, losses, and
                                                                the threads, device and versions it was made with
    <out>/runs/.../dev.tsv, test.tsv                            every prediction

Each run is an artifact (store/artifact.py): it appears whole, by one rename; what stands is not run again; and
a run that was killed goes on from its last checkpoint. The protocol is that of BLURB (Gu et al. 2021, section 2.4):
the settings of a grid are compared on dev, with the first seed, and the best is run with every seed.
"""

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bert_pipeline.evaluation.finetuning.protocol import SCORED, Protocol, Run, Setting
from bert_pipeline.evaluation.scoring.predictions import write_predictions
from bert_pipeline.evaluation.scoring.scores import gold_labels, scores
from bert_pipeline.evaluation.tasks.readers import TaskData
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import Section
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError, Facts

if TYPE_CHECKING:  # it brings torch, which the graph does without
    from bert_pipeline.evaluation.finetuning.inputs import TaskInputs

KIND = "finetuning_run"
CODE_VERSION = "1"
"""To be raised when the same settings give another result."""


class FinetuningJob(Section):
    """What the runs of a task share; as JSON it is what a worker process is told."""

    model_dir: Path
    task: Task
    data: Path
    """The task's folder."""
    other_data: bool
    protocol: Protocol
    runs: Path
    """Where their directories stand."""
    fingerprints: dict[str, str]
    """Of the model, and of each split's file."""

    def made(self, run: Run) -> Artifact | None:
        """A run that stands. Raises ArtifactError where it is one of another model, of other data or settings."""
        path = self.runs / run.name
        if not path.exists():
            return None
        found = artifact.load(path, KIND)
        if found.fingerprint != artifact.fingerprint(self.origin(run)):
            raise ArtifactError(
                f"{path} is a run of another model, of other data or under another protocol; "
                "remedy: choose another directory, or remove it"
            )
        return found

    def origin(self, run: Run) -> Facts:
        task, protocol = self.task, self.protocol
        section = {
            "encoder": run.encoder,
            **run.setting._asdict(),
            "seed": run.seed,
            **protocol.model_dump(include={"max_seq_length", "warmup_fraction", "weight_decay"}),
            "task": task.model_dump(mode="json", include={"kind", "labels", "unscored_labels", "score_range"}),
        }
        return artifact.origin(KIND, section, self.fingerprints, CODE_VERSION)


def grid(protocol: Protocol) -> list[Setting]:
    choices = itertools.product(protocol.learning_rates, protocol.batch_sizes, protocol.nums_epochs)
    return [Setting(*each) for each in choices]


def best(tried: Sequence[tuple[Setting, Artifact]]) -> Setting:
    """The setting with the highest score on dev; among equals the first."""
    return max(tried, key=lambda each: each[1].facts["dev"]["score"])[0]


def model_fingerprint(model_dir: Path) -> str:
    """Of the weights and of all that says how they are read."""
    files = [path for pattern in ("*.json", "*.txt", "*.safetensors") for path in model_dir.glob(pattern)]
    return artifact.files_fingerprint({path.name: path for path in files if path.name != "record.json"})


def make_run(
    job: FinetuningJob, run: Run, data: TaskData, inputs: "TaskInputs", on_step: Callable[[int, int], None]
) -> Artifact:
    """Fine-tune once, from where an interrupted run left off. `on_step`: see `finetune`."""
    from bert_pipeline.evaluation.finetuning.finetune import circumstances, finetune

    def build(out: Path) -> Facts:
        work = out / "work"
        outcome = finetune(job.model_dir, inputs, run, job.protocol, work, on_step)
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
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }

    return artifact.make(job.runs / run.name, job.origin(run), build, resumable=True)
