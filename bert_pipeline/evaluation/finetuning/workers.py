"""Make the runs of a task side by side in worker processes (worker.py): one per GPU, or several sharing the cores."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from bert_pipeline import settings
from bert_pipeline.core.progress import Progress
from bert_pipeline.evaluation.finetuning import worker as worker_process
from bert_pipeline.evaluation.finetuning.job import FinetuningJob
from bert_pipeline.evaluation.finetuning.protocol import Run
from bert_pipeline.evaluation.finetuning.worker import Message
from bert_pipeline.store.artifact import Artifact

END_SECONDS = 10.0
"""A worker that has not exited this long after its input was closed is killed."""


class RunFailed(RuntimeError):
    """A run failed; the message names the run and the reason."""


def make_runs(
    job: FinetuningJob, runs: Sequence[Run], num_examples: int, on_run: Callable[[Run, Artifact], None]
) -> None:
    """Make the runs that are not finished. `on_run` is called once per run: finished ones first, others as they end.

    `num_examples`: training examples, from which the progress display computes the steps. Raises RunFailed when a run
    fails, and stops the other workers.
    """
    missing = []
    for run in runs:
        if artifact := job.finished(run):
            on_run(run, artifact)
        else:
            missing.append(run)
    if missing:
        with _workers(job, _environments(len(runs))[: len(missing)]) as (workers, messages):
            _follow(job, missing, num_examples, workers, messages, on_run)


class _Worker:
    def __init__(self, job: FinetuningJob, environment: Mapping[str, str], messages: queue.Queue) -> None:
        self.run: Run | None = None
        self.step: int | None = None
        """Steps done in this run; None before the worker's first message."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker_process.__name__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the workers
        )
        self._send(job.model_dump_json())
        threading.Thread(target=self._listen, args=(messages,), daemon=True).start()

    def begin(self, run: Run) -> None:
        self.run, self.step = run, None
        self._send(json.dumps(run))

    def end(self) -> None:
        """Close the worker's input, which makes it exit in the middle of a run; kill it if it does not."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def exit_reason(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"its process ended with exit code {code}"
        return f"its process was killed by signal {-code}; remedy: if memory ran out, lower BERT_PIPELINE_WORKERS"

    def _send(self, line: str) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the process has died; _listen reports it
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
    """Give each worker a run, and the next one when it is done, until all are finished."""
    steps = {run: run.setting.num_steps(num_examples) for run in runs}
    progress: Progress | None = None  # created at the first step: workers take seconds to start
    waiting = iter(runs)
    for worker in workers:
        worker.begin(next(waiting))
    num_done = 0
    while num_done < len(runs):
        worker, message = messages.get()
        run = worker.run
        if "step" in message:
            progress = progress or Progress(f"{job.task.name}: fine-tuning", sum(steps.values()), "steps")
            if worker.step is None:  # only the worker knows the resumed steps and the examples without a label
                progress.total = (progress.total or 0) + message["of"] - message["step"] - steps[run]
            else:
                progress.advance(message["step"] - worker.step, note=f"{num_done} of {len(runs)} runs done")
            worker.step = message["step"]
        elif "done" in message:
            num_done += 1
            artifact = job.finished(run)
            assert artifact, "the worker has just finished it"
            on_run(run, artifact)
            if following := next(waiting, None):
                worker.begin(following)
        else:
            raise RunFailed(f"{job.task.name}, {run.name}: {message['error'] or worker.exit_reason}")


def _environments(num_runs: int) -> list[dict[str, str]]:
    """The environment of each worker, for all runs of the task.

    Finished runs count too: a resumed run then has the same number of threads, on which its last bits depend.
    """
    import torch

    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    width = min(num_runs, gpus or settings.num_workers())
    threads = str(settings.num_threads(default=max(1, cores // width)))
    limits = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    shared = settings.child_environment(settings.CPU_ENVIRONMENT, limits)
    if not gpus:
        return [shared] * width
    shared["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # makes cuBLAS deterministic
    return [shared | {"CUDA_VISIBLE_DEVICES": name} for name in settings.visible_gpus(gpus)[:width]]
