"""Runs side by side, in worker processes that do one after the other: one for each GPU, or some that share the cores.

A worker is `python -m bert_pipeline.evaluation.finetuning.workers`. It reads the job, and then a run a line, from
its standard input, writes messages a line to its standard output, and ends when its input does. So it ends with the
process that started it, however that ends; a run that is cut short goes on from its checkpoint another time.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bert_pipeline import settings
from bert_pipeline.core.progress import Progress
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting
from bert_pipeline.evaluation.finetuning.runs import FinetuningJob, make_run
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.store.artifact import Artifact

EXPLAINED = (ValueError, OSError, RuntimeError, ArithmeticError)
"""Errors whose message says all; of others the traceback is told."""
END_SECONDS = 10.0
"""What a worker is given to end before it is killed."""

Message = Mapping[str, Any]
"""{"step", "of"}: steps done, of how many; {"done"}: the run stands; {"error"}: why the worker ends."""


class RunFailed(RuntimeError):
    """A run that could not be made; the message names it and says why."""


def make_runs(
    job: FinetuningJob, runs: Sequence[Run], num_examples: int, on_run: Callable[[Run, Artifact], None]
) -> None:
    """Make those of `runs` that do not stand yet. `on_run` is called for each: for those that stand, then as they end.

    `num_examples` of training tell how long a run takes. Raises RunFailed, and ends the others, when one fails.
    """
    missing = []
    for run in runs:
        if made := job.made(run):
            on_run(run, made)
        else:
            missing.append(run)
    if missing:
        with _workers(job, _environments(len(runs))[: len(missing)]) as (workers, messages):
            _follow(job, missing, num_examples, workers, messages, on_run)


class _Worker:
    def __init__(self, job: FinetuningJob, environment: Mapping[str, str], messages: queue.Queue) -> None:
        self.run: Run | None = None
        self.step: int | None = None
        """Steps of the run that are done; None before the worker said any."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bert_pipeline.evaluation.finetuning.workers"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt at the terminal is for this process to handle
        )
        self._tell(job.model_dump_json())
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def begin(self, run: Run) -> None:
        self.run, self.step = run, None
        self._tell(json.dumps(run))

    def end(self) -> None:
        """Close its input, which ends it wherever it is."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def fate(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"its process ended with exit code {code}"
        return f"its process was killed by signal {-code}; remedy: where memory ran out, fewer BERT_PIPELINE_WORKERS"

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it is dead, which the listener finds out
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self, messages: queue.Queue) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            messages.put((self, json.loads(line)))
        messages.put((self, {"error": None}))


@contextmanager
def _workers(
    job: FinetuningJob, environments: Sequence[Mapping[str, str]]
) -> Iterator[tuple[list[_Worker], queue.Queue]]:
    messages: queue.Queue[tuple[_Worker, Message]] = queue.Queue()
    workers: list[_Worker] = []
    try:
        for environment in environments:
            workers.append(_Worker(job, environment, messages))
        yield workers, messages
    finally:
        for worker in workers:
            worker.end()


def _follow(
    job: FinetuningJob,
    runs: Sequence[Run],
    num_examples: int,
    workers: Sequence[_Worker],
    messages: queue.Queue,
    on_run: Callable[[Run, Artifact], None],
) -> None:
    steps = {run: run.setting.num_steps(num_examples) for run in runs}
    progress: Progress | None = None  # begins when a run does: the workers take seconds to start
    waiting = iter(runs)
    for worker in workers:
        worker.begin(next(waiting))
    num_done = 0
    while num_done < len(runs):
        worker, message = messages.get()
        run = worker.run
        if "step" in message:
            progress = progress or Progress(f"{job.task.name}: fine-tuning", sum(steps.values()), "steps")
            if worker.step is None:  # it knows better: steps that an earlier start made, sentences without a label
                progress.total = (progress.total or 0) + message["of"] - message["step"] - steps[run]
            else:
                progress.advance(message["step"] - worker.step, note=f"{num_done} of {len(runs)} runs done")
            worker.step = message["step"]
        elif "done" in message:
            num_done += 1
            made = job.made(run)
            assert made, "the worker made it"
            on_run(run, made)
            if following := next(waiting, None):
                worker.begin(following)
        else:
            raise RunFailed(f"{job.task.name}, {run.name}: {message['error'] or worker.fate}")


def _environments(num_runs: int) -> list[dict[str, str]]:
    """Of each worker. As many as all runs of the task ask for, those that stand too: a run that goes on after a stop
    then has the threads that it began with, on which its last bits depend.
    """
    import torch

    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    width = min(num_runs, gpus or settings.num_workers())
    threads = str(settings.num_threads(default=max(1, cores // width)))
    limits = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    shared = settings.child_environment(settings.CPU_ENVIRONMENT, limits)
    if not gpus:
        return [shared] * width
    shared["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without which cuBLAS does not repeat itself
    return [shared | {"CUDA_VISIBLE_DEVICES": name} for name in settings.visible_gpus(gpus)[:width]]


def main() -> None:
    """The worker."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no message

    def tell(**message: Any) -> None:
        messages.write(json.dumps(message) + "\n")
        messages.flush()

    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_until_the_end, args=(lines,), daemon=True).start()
    try:
        job = FinetuningJob.model_validate_json(lines.get())
        _work(job, lines, tell)
    except EXPLAINED as error:
        tell(error=str(error))
    except Exception:
        tell(error=traceback.format_exc())
    os._exit(1)  # not by way of the interpreter, which would wait for the thread that reads


def _read_until_the_end(lines: queue.Queue) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _work(job: FinetuningJob, lines: queue.Queue, tell: Callable[..., None]) -> None:
    import torch

    from bert_pipeline.evaluation.finetuning.inputs import encode_task

    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
    data = read_task(job.task, job.data, job.other_data)
    inputs = encode_task(job.model_dir, job.task, data, job.protocol.max_seq_length)
    while True:
        encoder, setting, seed = json.loads(lines.get())
        run = Run(encoder, Setting(*setting), seed)
        make_run(job, run, data, inputs, lambda step, of: tell(step=step, of=of))
        tell(done=run.name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
