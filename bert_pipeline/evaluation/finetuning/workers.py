"""Make the runs of a task side by side in worker processes (worker.py): one per GPU, or several sharing the cores."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self

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


class Workers:
    """The worker processes of a job. They start with the first run that is missing and stay until the end of the `with`
    block, so that all runs of a task share its encoding.
    """

    def __init__(self, job: FinetuningJob, num_runs: int, num_examples: int) -> None:
        """`num_runs`: most runs of one call of `make`. `num_examples`: training examples, for the progress display."""
        self.job, self._num_runs, self._num_examples = job, num_runs, num_examples
        self._messages: queue.Queue[tuple[_Worker, Message]] = queue.Queue()
        self._workers: list[_Worker] = []
        self._progress: Progress | None = None  # created at the first step: workers take seconds to start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def make(self, runs: Sequence[Run], on_run: Callable[[Run, Artifact], None], expected: Sequence[Run] = ()) -> None:
        """Make the runs that are not finished. `on_run` is called once per run: first for finished ones.

        `expected`: runs that will follow, which count as steps to do. Raises RunFailed when a run fails; the end of the
        `with` block then stops the others.
        """
        missing = []
        for run in runs:
            if artifact := self.job.finished(run):
                on_run(run, artifact)
            else:
                missing.append(run)

        def on_done(run: Run) -> None:
            artifact = self.job.finished(run)
            assert artifact, "the worker has just finished it"
            on_run(run, artifact)

        self._follow(missing, on_done, expected)

    def make_halves(self, runs: Sequence[Run], expected: Sequence[Run] = ()) -> None:
        """Fine-tune each run for half of its epochs and predict dev, unless that exists or the run is finished."""
        missing = [run for run in runs if not (self.job.finished(run) or self.job.half_predictions(run))]
        self._follow(missing, lambda run: None, expected, half=True)

    def measure_pace(self, batch_size: int) -> tuple[float, float]:
        """Return the seconds of a step and of a run's predictions, in one worker alone; see pace.py."""
        if not self._workers:
            self._workers.append(_Worker(self.job, _environments(self._num_runs)[0], self._messages))
        self._workers[0].measure_pace(batch_size)
        worker, message = self._messages.get()
        if "pace" not in message:
            raise RunFailed(f"{self.job.task.name}: {message['error'] or worker.exit_reason}")
        step, prediction = message["pace"]
        return step, prediction

    def _follow(
        self, runs: Sequence[Run], on_done: Callable[[Run], None], expected: Sequence[Run], half: bool = False
    ) -> None:
        """Give each worker a run, or half of it, and the next one when it is done, until all are finished."""
        for environment in _environments(self._num_runs)[len(self._workers) : len(runs)] if runs else ():
            self._workers.append(_Worker(self.job, environment, self._messages))
        steps = {run: run.setting.num_steps(self._num_examples) for run in {*runs, *expected}}
        left = sum(steps[run] for run in runs) + sum(steps[run] for run in expected if run not in runs)
        if self._progress:
            self._progress.total = self._progress.done + left
        waiting = iter(runs)
        for worker in self._workers[: len(runs)]:
            worker.begin(next(waiting), half)
        num_done = 0
        while num_done < len(runs):
            worker, message = self._messages.get()
            run = worker.run
            if run is None:  # it measured the pace and has no run yet, so it can only have ended
                raise RunFailed(f"{self.job.task.name}: a worker: {message['error'] or worker.exit_reason}")
            if "step" in message:
                self._progress = self._progress or Progress(f"{self.job.task.name}: fine-tuning", left, "steps")
                if worker.step is None:  # only the worker knows the resumed steps and the examples without a label
                    self._progress.total = (self._progress.total or 0) + message["of"] - message["step"] - steps[run]
                else:
                    self._progress.advance(message["step"] - worker.step, note=f"{num_done} of {len(runs)} runs done")
                worker.step = message["step"]
            elif "done" in message:
                num_done += 1
                on_done(run)
                if following := next(waiting, None):
                    worker.begin(following, half)
            else:
                raise RunFailed(f"{self.job.task.name}, {run.name}: {message['error'] or worker.exit_reason}")


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

    def begin(self, run: Run, half: bool) -> None:
        self.run, self.step = run, None
        self._send(json.dumps([run, half]))

    def measure_pace(self, batch_size: int) -> None:
        self._send(json.dumps(batch_size))

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


def width(num_runs: int) -> int:
    """Number of workers for this many runs."""
    import torch

    return min(num_runs, torch.cuda.device_count() or settings.num_workers())


def _environments(num_runs: int) -> list[dict[str, str]]:
    """The environment of each worker, for all runs of the task.

    Finished runs count too: a resumed run then has the same number of threads, on which its last bits depend.
    """
    import torch

    cores, gpus = len(os.sched_getaffinity(0)), torch.cuda.device_count()
    count = width(num_runs)
    threads = str(settings.num_threads(default=max(1, cores // count)))
    limits = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    shared = settings.child_environment(settings.CPU_ENVIRONMENT, limits)
    if not gpus:
        return [shared] * count
    shared["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # makes cuBLAS deterministic
    return [shared | {"CUDA_VISIBLE_DEVICES": name} for name in settings.visible_gpus(gpus)[:count]]
