"""A call in a worker process with the time and the memory that it took.

By itself in a file, because a worker imports the file, and what a file imports is memory.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import peak_memory


def measured(folder: Path, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The facts of a shard, the seconds it took, and the highest memory of this process so far in bytes.

    The seconds are the processor's: whatever else the machine does at the moment is no part of the plan.
    """
    clock = time.process_time()
    facts = function(folder, *arguments)
    seconds = time.process_time() - clock
    return {"facts": facts, "seconds": seconds, "peak_memory": peak_memory()}
