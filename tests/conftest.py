"""Shared fixtures: a tiny recipe, its datasets from a generated corpus, servers, a Dask cluster."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from processes import eventually
from servers import Database, Servers, make_secrets

from bert_pipeline.evaluation.finetuning.protocol import Run
from bert_pipeline.evaluation.finetuning.workers import Workers
from bert_pipeline.evaluation.tasks.readers import read_task
from bert_pipeline.lineage import make_stage
from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.settings import CPU_ENVIRONMENT
from bert_pipeline.store.artifact import Artifact

settings.register_profile("default", deadline=None)  # the first call of a jitted function includes its compilation
settings.load_profile("default")

ROOT = Path(__file__).parents[1]

# Set before any import of torch, also for the processes that tests start: models this small gain nothing from threads,
# and threads that spin while waiting slow down other processes. A machine may show more cores than it grants.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.update(CPU_ENVIRONMENT | os.environ)  # the memory settings reach the workers of xdist, which start later
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of hundreds of processes compiles every module
sys.dont_write_bytecode = False
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; the tests' processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
CORES = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, random.sample(CORES, min(2, len(CORES))))

PATIENCE_SECONDS = 900
"""Time limit of a test with its fixtures, which take at most a minute on two cores."""

TINY = """
[corpus]
source = "sample"
sample_documents = 300
heldout_fraction = 0.1
documents_per_shard = 100

[tokenizer]
vocab_size = 800

[nsp]
dupe_factor = 2

[masking]
do_whole_word_mask = true

[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
hidden_dropout_prob = 0.1

[pretrain]
log_every = 2
eval_every = 8
checkpoint_every = 3
heldout_pairs = 40

[[pretrain.phases]]
max_seq_length = 32
num_steps = 8
global_batch_size = 16
learning_rate = 1e-3
warmup_steps = 2

[[pretrain.phases]]
max_seq_length = 64
num_steps = 4
global_batch_size = 8
learning_rate_handover = "continue"
"""


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: compressed ones hold the time, and all processes must collect the same names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Fail a test that hangs, so that its `finally` clauses end the processes that it started."""

    def time_out(*_: object) -> None:
        raise TimeoutError(f"the test did not end within {PATIENCE_SECONDS} s")

    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(0 if item.get_closest_marker("slow") else PATIENCE_SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves a database or another generated file in the clone: MLflow without an address makes one."""
    left = [path.name for pattern in ("*.db", "*.sqlite*", "mlruns", "mlartifacts") for path in ROOT.glob(pattern)]
    if left and not hasattr(session.config, "workerinput"):
        print(f"\nthe tests left {', '.join(left)} in {ROOT}: one of them writes to the current directory")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skipped tests by reason, so that a green run does not hide what it left out."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.section(f"{reasons.total()} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5}  {reason}")


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY)
    return load_recipe(path)


@pytest.fixture(scope="session")
def tiny(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The artifacts up to masked_dataset, by kind."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict = {}
    for kind in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, tiny_recipe, made, root / kind)
    return made


@pytest.fixture(scope="module")
def training_in_a_fork():
    """Run the stage pretrained_checkpoint without accelerate's launcher, whose imports take six seconds; for tests of
    other parts of the stage. tests/training/launch/test_launch.py tests the launcher.
    """
    from training.runs import train_in_a_fork

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.training.launch.build._run", train_in_a_fork)
        yield


@pytest.fixture(scope="module")
def evaluation_in_this_process():
    """Run evaluations without worker processes, each of which takes four seconds to import torch; for tests of the
    results. tests/evaluation/finetuning/test_runs.py tests the workers.
    """

    class InThisProcess(Workers):
        def make(
            self, runs: Sequence[Run], on_run: Callable[[Run, Artifact], None], expected: Sequence[Run] = ()
        ) -> None:
            from bert_pipeline.evaluation.finetuning.inputs import encode_task
            from bert_pipeline.evaluation.finetuning.runs import make_run

            job = self.job
            data = read_task(job.task, job.data, job.other_data)
            inputs = encode_task(job.model_dir, job.task, data, job.protocol.max_seq_length)
            for run in runs:
                on_run(run, job.finished(run) or make_run(job, run, data, inputs, lambda step, of: None))

        def make_halves(self, runs: Sequence[Run], expected: Sequence[Run] = ()) -> None:
            from bert_pipeline.evaluation.finetuning.inputs import encode_task
            from bert_pipeline.evaluation.finetuning.runs import make_half

            job = self.job
            data = read_task(job.task, job.data, job.other_data)
            inputs = encode_task(job.model_dir, job.task, data, job.protocol.max_seq_length)
            for run in runs:
                make_half(job, run, data, inputs, lambda step, of: None)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("evaluate", "task_models.build"):
            patch.setattr(f"bert_pipeline.evaluation.{module}.Workers", InThisProcess)
        yield


@pytest.fixture(scope="session")
def run_python():
    """Run a Python program in the repository's root; returns the completed process."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )

    return run


def is_json(path: Path) -> bool:
    """Whether the file exists and its writer has finished it."""
    try:
        json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


class DaskCluster:
    """A scheduler and two single-threaded workers, each in its own process, as on a cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        scheduler_file = folder / "scheduler.json"

        def start(*arguments: str) -> subprocess.Popen:
            command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
            with (folder / "dask.log").open("ab") as log:
                return subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
                )

        self.processes = [
            start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file",
                  str(scheduler_file)),
            *(
                start("dask_worker", "--scheduler-file", str(scheduler_file), "--nworkers", "1", "--nthreads", "1",
                      "--no-dashboard", "--host", "127.0.0.1")
                for _ in range(2)
            ),
        ]  # fmt: skip
        eventually(lambda: is_json(scheduler_file))
        self.address = json.loads(scheduler_file.read_text())["address"].replace("tcp://", "dask://")

    def stop(self) -> None:
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)  # the worker and the nanny that would restart it
            process.wait()


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory):
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A world-readable folder, unlike pytest's: PostgreSQL does not run as root."""
    path = Path(tempfile.mkdtemp(prefix="bert-pipeline-servers-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Servers]:
    running = Servers(folder)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def secrets(folder: Path) -> Path:
    return make_secrets(folder)


@pytest.fixture(scope="module")
def database(folder: Path, secrets: Path) -> Iterator[Database]:
    running = Database(folder, secrets)
    yield running
    with contextlib.suppress(subprocess.CalledProcessError):  # a test may have stopped it
        running.stop()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
