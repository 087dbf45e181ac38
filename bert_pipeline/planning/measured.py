"""Measures time and memory of a call in a worker process.

A file of its own, because workers import it, and further imports would count as their memory.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import peak_memory


def measured(folder: Path, function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Build a shard; return its facts, the CPU seconds it took, and the peak memory of this process in bytes.

    CPU time, so that other load on the machine does not enter the plan.
    """
    clock = time.process_time()
    facts = function(folder, *arguments)
    seconds = time.process_time() - clock
    return {"facts": facts, "seconds": seconds, "peak_memory": peak_memory()}
