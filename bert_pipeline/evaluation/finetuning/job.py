"""What all runs of a task share, and which of them are finished.

    <out>/runs/<encoder>-lr5e-05-bs32-ep10-seed1/record.json    settings of the run, scores on dev and test, losses,
                                                                threads, device, versions of torch and transformers
    <out>/runs/.../dev.tsv, test.tsv                            every prediction
    <out>/runs/.../half-dev.tsv                                that of dev after half of the epochs, if it is needed
    <out>/runs/....partial/                                    an unfinished run, or the half of a stopped one

Each run is an artifact (store/artifact.py): its directory appears by one rename when the run is finished. A finished
run is not repeated, and an interrupted one resumes from its last checkpoint.
"""

from pathlib import Path

from bert_pipeline.evaluation.finetuning.protocol import Protocol, Run
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.recipe import Section
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError, Facts

KIND = "finetuning_run"
HALF = "half-dev.tsv"
MODEL = "model"
CODE_VERSION = "3"
"""Raise this when the same settings give another result."""


class FinetuningJob(Section):
    """What all runs of a task share. Each worker process receives it as JSON."""

    model_dir: Path
    task: Task
    data: Path
    """Folder of the task's files."""
    other_data: bool
    protocol: Protocol
    runs: Path
    """Parent of the runs' directories."""
    fingerprints: dict[str, str]
    """Of the model and of each split's file."""
    keep_models: bool = False
    """Write the fine-tuned model of each run to the folder MODEL of the run."""

    def finished(self, run: Run) -> Artifact | None:
        """Return the artifact of a finished run, or None.

        Raises ArtifactError if the directory holds a run of another model, other data, another protocol or another
        version of this code.
        """
        path = self.runs / run.name
        if not path.exists():
            return None
        found = artifact.load(path, KIND)
        if found.fingerprint != artifact.fingerprint(self.origin(run)):
            raise ArtifactError(
                f"{path} is a run of another model, other data, another protocol or another version of bert-pipeline; "
                "remedy: choose another directory, or remove it"
            )
        return found

    def half_predictions(self, run: Run) -> Path | None:
        """Return the predictions of dev after half of the epochs; None if there are none."""
        path = self.runs / run.name
        if self.finished(run):
            return path / HALF if (path / HALF).exists() else None
        unfinished = artifact.partial(path)
        if not (unfinished / HALF).exists():
            return None
        ours = artifact.fingerprint(artifact.read_origin(unfinished) or {}) == artifact.fingerprint(self.origin(run))
        return unfinished / HALF if ours else None

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


def model_fingerprint(model_dir: Path) -> str:
    """Fingerprint of the weights, the configuration and the tokenizer's files."""
    files = [path for pattern in ("*.json", "*.txt", "*.safetensors") for path in model_dir.glob(pattern)]
    return artifact.files_fingerprint({path.name: path for path in files if path.name != "record.json"})
