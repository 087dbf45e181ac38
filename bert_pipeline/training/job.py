"""The job of a training process: what the launcher, the probe and the planner hand to it, as one JSON file.

It imports no torch, so that an orchestrator can build it.
"""

import logging
from pathlib import Path
from typing import Literal

from bert_pipeline.core.files import write_whole
from bert_pipeline.recipe import MaskingRecipe, ModelRecipe, PretrainRecipe, Section
from bert_pipeline.settings import SHARDING

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot start or continue; the message gives the reason and the step."""


class Job(Section):
    """One training run: its recipe sections, input directories and output directory."""

    section: PretrainRecipe
    model: ModelRecipe
    masking: MaskingRecipe
    """Draws the masks of epochs beyond the passes in `masked_dataset`."""
    tokenizer: Path
    nsp_dataset: Path
    masked_dataset: Path
    out: Path
    per_device_tokens: int | Literal["auto"]
    """Most tokens in a micro-batch. Without dropout it changes no result; with dropout, other units are dropped.
    `auto`: to be measured by the probe before training starts.
    """
    identity: str = ""
    """A checkpoint with another identity (another recipe, other data) is refused. The probe needs none."""
    init_from: Path | None = None
    """Hugging Face directory of the model to start from; None: random weights."""

    @property
    def micro_batch_tokens(self) -> int:
        """`per_device_tokens` as a number. Raise TrainingError if the probe has not measured it yet."""
        if self.per_device_tokens == "auto":
            raise TrainingError('per_device_tokens is "auto"; remedy: a number of tokens in the job file')
        return self.per_device_tokens

    def write(self, path: Path) -> None:
        write_whole(path, self.model_dump_json(indent=2))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Raise pydantic.ValidationError if the file is not a job."""
        return cls.model_validate_json(path.read_bytes())


def check_data_parallel(distributed_type: str | None) -> None:
    """Raise TrainingError if the accelerate config shards the model.

    The launcher calls it before it starts the processes. They call it again, because they can be started by hand.
    """
    if distributed_type in SHARDING:
        raise TrainingError(
            f"the accelerate config shards the model (distributed_type {distributed_type}), which is not supported: "
            "each process holds the whole model, 5.4 GB for BERT-large with its gradients and AdamW's moments; remedy: "
            "`distributed_type: MULTI_GPU`, as in the packaged config ddp_1node"
        )


def check_batches(section: PretrainRecipe, num_processes: int) -> None:
    """Raise TrainingError if a process would get no pair of a step; warn if the processes get different numbers.

    The launcher calls it before it starts the processes. They call it again, because they can be started by hand.
    """
    for number, phase in enumerate(section.phases):
        batch, name = phase.global_batch_size, f"pretrain.phases.{number}.global_batch_size"
        fewest, remainder = divmod(batch, num_processes)
        if fewest == 0:
            raise TrainingError(
                f"{name} is {batch}, but {num_processes} processes were launched; remedy: a larger batch or fewer "
                "processes"
            )
        if remainder:
            log.warning(
                "%s %d is not a multiple of the %d processes: in each step %d of them get %d pairs and %d get %d; this "
                "costs a little time, and no pair is left out",
                *(name, batch, num_processes, remainder, fewest + 1, num_processes - remainder, fewest),
            )
