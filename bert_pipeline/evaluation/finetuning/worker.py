"""One worker process: makes one run after another.

`python -m bert_pipeline.evaluation.finetuning.worker` reads from its standard input, one JSON document per line: the
FinetuningJob, then runs, halves of runs, or batch sizes whose pace to measure. It writes a `Message` per line to its
standard output. It exits when its input is closed, so it never outlives the process that started it; an unfinished run
resumes from its checkpoint at the next start.
"""

import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from bert_pipeline.evaluation.finetuning.job import FinetuningJob
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting
from bert_pipeline.evaluation.tasks.readers import read_task

EXPLAINED = (ValueError, OSError, RuntimeError, ArithmeticError)
"""Errors that are reported by their message; any other error is reported with its traceback."""

Message = Mapping[str, Any]
"""One of {"step", "of"}: steps done and steps in all; {"done"}: the run, or half of it, is finished; {"pace"}: a Pace;
{"error"}: why the worker ends."""


def main() -> None:
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print to stdout; only messages may go there

    def send(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_until_closed, args=(lines,), daemon=True).start()
    try:
        job = FinetuningJob.model_validate_json(lines.get())
        _serve(job, lines, send)
    except EXPLAINED as error:
        send(error=str(error))
    except Exception:
        send(error=traceback.format_exc())
    os._exit(1)  # a normal exit would wait for the reading thread


def _read_until_closed(lines: queue.Queue) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _serve(job: FinetuningJob, lines: queue.Queue, send: Callable[..., None]) -> None:
    # Importing torch takes seconds, so it comes after the start of the thread that ends this process.
    import torch

    from bert_pipeline.evaluation.finetuning.inputs import encode_task
    from bert_pipeline.evaluation.finetuning.pace import measure_pace
    from bert_pipeline.evaluation.finetuning.runs import make_half, make_run

    # A warning on GPUs: there, families other than BERT may need operations without a deterministic implementation.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it finds errors, and costs time
    data = read_task(job.task, job.data, job.other_data)
    inputs = encode_task(job.model_dir, job.task, data, job.protocol.max_seq_length)
    while True:
        wanted = json.loads(lines.get())
        if isinstance(wanted, int):
            send(pace=measure_pace(job.model_dir, inputs, wanted, job.protocol))
            continue
        (encoder, setting, seed), half = wanted
        run, make = Run(encoder, Setting(*setting), seed), make_half if half else make_run
        make(job, run, data, inputs, lambda step, of: send(step=step, of=of))
        send(done=run.name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
