"""What is wrong with a training before it begins, and what is odd about it.

The launcher asks before it starts anything; the training processes ask again, because they may be started by hand.
"""

import logging

from bert_pipeline.recipe import PretrainRecipe

log = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot begin or go on; the message says why, and at which step."""


def check_batches(section: PretrainRecipe, num_processes: int) -> None:
    """Raise TrainingError where a process would get no pair of a step; warn where they get different numbers."""
    for number, phase in enumerate(section.phases):
        batch, name = phase.global_batch_size, f"pretrain.phases.{number}.global_batch_size"
        least, more = divmod(batch, num_processes)
        if least == 0:
            raise TrainingError(
                f"{name} is {batch}, but {num_processes} processes were launched; remedy: a larger batch or fewer "
                "processes"
            )
        if more:
            log.warning(
                "%s %d is no multiple of the %d processes: in each step %d of them get %d pairs and %d get %d; this "
                "costs a little time and changes no result",
                *(name, batch, num_processes, more, least + 1, num_processes - more, least),
            )
