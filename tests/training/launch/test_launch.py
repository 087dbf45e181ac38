"""The launcher: it follows the training processes and leaves none behind; one process, several, and two hosts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import commands
from training.runs import assert_identical, finish, start, trace, train_in_a_fork, trainers_of

from bert_pipeline import settings
from bert_pipeline.formats.metrics import RowFollower, append_row
from bert_pipeline.lineage import make_stage
from bert_pipeline.store.artifact import ArtifactError
from bert_pipeline.training.checkpoint import CheckpointError, ForeignCheckpoint
from bert_pipeline.training.distributed import GroupError, LostProcess
from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.launch import build as launch
from bert_pipeline.training.memory import TooLittleMemory
from bert_pipeline.training.pretrain import record_permanent_failure


class Cancelled(BaseException):
    """What an orchestrator raises in the launcher when somebody cancels the run."""


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    return [number for number, command in commands().items() if str(folder) in "\0".join(command)]


def test_a_cancelled_training_saves_leaves_no_process_and_resumes(tiny, tiny_recipe, tmp_path, monkeypatch):
    """Cancelled at its first row, before any checkpoint, and again after one more checkpoint, of a run that resumed.
    The run to the end and the undisturbed one are forks, as in tests that do not test the launcher.
    """
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    longer = tiny_recipe.pretrain.phases[0].model_copy(update={"num_steps": 80})  # so that there is something to cancel
    section = tiny_recipe.pretrain.model_copy(update={"phases": (longer, tiny_recipe.pretrain.phases[1])})
    recipe = tiny_recipe.model_copy(update={"pretrain": section})
    work = tmp_path / "out.partial" / "work"

    def newest_step():
        return max((int(path.name[-8:]) for path in work.glob("checkpoints/step-????????")), default=0)

    for more in (0, 1):
        alive, enough = [], newest_step() + more

        def cancel(row, alive=alive, enough=enough):
            alive.extend(processes_of(tmp_path))
            if newest_step() >= enough:
                raise Cancelled

        with pytest.raises(Cancelled):
            make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out", cancel)
        assert alive, "the test would prove nothing"
        assert processes_of(tmp_path) == []
        assert not (tmp_path / "out").exists()
        assert enough <= newest_step() and 0 < newest_step() < 84
    monkeypatch.setattr(launch, "_run", train_in_a_fork)
    resumed = make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out")
    undisturbed = make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "undisturbed")
    assert trace(resumed.path) == trace(undisturbed.path)
    assert (resumed.path / "model.safetensors").read_bytes() == (undisturbed.path / "model.safetensors").read_bytes()


def test_rows_are_followed_while_the_file_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = RowFollower(path)
    assert list(follower.new_rows()) == []
    append_row(path, {"step": 1})
    with path.open("a") as stream:
        stream.write('{"step": 2')  # a half-written line waits
    assert list(follower.new_rows()) == [{"step": 1}]
    with path.open("a") as stream:
        stream.write("}\n")
    assert list(follower.new_rows()) == [{"step": 2}]
    path.write_text("")  # a resumed run rewrites the file
    append_row(path, {"step": 1})
    assert list(follower.new_rows()) == [{"step": 1}]


class Started(Exception):
    """Raised where the training processes would start."""


@pytest.mark.parametrize(("processes", "refused"), [(2, False), (3, False), (16, False), (17, True)])
def test_batches_that_do_not_divide_among_the_processes_are_reported_before_they_start(
    tiny, tiny_recipe, tmp_path, monkeypatch, caplog, processes, refused
):
    """Batches of 16 pairs divide evenly among 2 and 16 processes, unevenly among 3, and are too small for 17."""

    def run(*_):
        raise Started

    config = yaml.safe_load(settings.accelerate_config().read_text()) | {"num_processes": processes}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setattr(launch, "_run", run)
    phases = tuple(phase.model_copy(update={"global_batch_size": 16}) for phase in tiny_recipe.pretrain.phases)
    recipe = tiny_recipe.model_copy(update={"pretrain": tiny_recipe.pretrain.model_copy(update={"phases": phases})})
    message = "phases.0.global_batch_size is 16, but 17 processes were launched; remedy: a larger batch or fewer"
    with pytest.raises(TrainingError if refused else Started, match=message if refused else None):
        make_stage("pretrained_checkpoint", recipe, tiny, tmp_path / "out")
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if processes == 3:
        expected = (
            "global_batch_size 16 is not a multiple of the 3 processes: in each step 1 of them get 6 pairs and 2 get 5;"
        )
        assert len(warned) == 2 and all(expected in each for each in warned)
    else:
        assert not warned


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (ArtifactError("damaged"), True),
        (FileNotFoundError("no such dataset"), True),
        (TooLittleMemory("not even one pair"), True),
        (ForeignCheckpoint("of another recipe"), True),
        (GroupError("2 were expected"), True),
        (LostProcess("it does not answer"), False),
        (CheckpointError("the disk is full"), False),
        (RuntimeError("CUDA error: unspecified launch failure"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_errors_that_a_restart_would_repeat_are_recorded(tmp_path, error, recorded):
    with pytest.raises(type(error)), record_permanent_failure(tmp_path):
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["failed"] * recorded
    if recorded:
        assert (tmp_path / "failed").read_text() == f"{type(error).__name__}: {error}"


def test_a_missing_accelerate_config_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(
        FileNotFoundError, match=r"/none\.yaml: no such file; remedy: .*ACCELERATE_CONFIG .*, or to one of cpu, "
    ):
        settings.accelerate_config()


def test_every_accelerate_config_is_read_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted(settings.ACCELERATE_CONFIGS.glob("*.yaml"))
    assert len(files) >= 4
    for path in files:
        assert load_config_from_file(str(path)).num_processes >= 1


# Several processes


def config_file(name, path, **changed):
    config = yaml.safe_load((settings.ACCELERATE_CONFIGS / name).read_text())
    path.write_text(yaml.safe_dump(config | changed))
    return path


def test_the_launcher_starts_two_processes_though_the_usual_port_is_taken(tiny, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", "cpu_2")
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # someone else has it: as good
            taken.bind(("", 29500))
            taken.listen()
        made = make_stage("pretrained_checkpoint", tiny_recipe, tiny, tmp_path / "out")
    assert made.facts["world_size"] == 2
    assert made.facts["max_logit_difference"] < 1e-5


def test_an_error_that_would_repeat_is_not_retried(tiny, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", "cpu_2")
    first, *others = tiny_recipe.pretrain.phases
    phases = (first.model_copy(update={"learning_rate": 1e30}), *others)
    hot = tiny_recipe.pretrain.model_copy(update={"phases": phases, "max_skipped_steps": 0})
    with pytest.raises(launch.TrainingFailed, match=r"^TrainingError: step 2: the gradient is not finite .*train\.log"):
        make_stage("pretrained_checkpoint", tiny_recipe.model_copy(update={"pretrain": hot}), tiny, tmp_path / "out")
    said = (tmp_path / "out.partial" / "work" / "train.log").read_text()
    assert 1 <= said.count("TrainingError: step 2") <= 2, "once for each process"


def test_training_that_was_stopped_differs_from_training_that_failed(tiny, tiny_recipe, tmp_path):
    def stop(row):
        for number in trainers_of(tmp_path):
            os.kill(number, signal.SIGTERM)

    phases = tuple(phase.model_copy(update={"num_steps": 1_000}) for phase in tiny_recipe.pretrain.phases)
    long = tiny_recipe.model_copy(update={"pretrain": tiny_recipe.pretrain.model_copy(update={"phases": phases})})
    with pytest.raises(launch.TrainingStopped, match="training was stopped and saved a checkpoint"):
        make_stage("pretrained_checkpoint", long, tiny, tmp_path / "out", stop)
    assert list(tmp_path.glob("out.partial/work/checkpoints/step-????????"))


@pytest.mark.slow
def test_a_config_that_accelerate_would_run_as_one_process_is_refused(tiny, tiny_recipe, tmp_path, monkeypatch):
    config = config_file("cpu.yaml", tmp_path / "cpu.yaml", num_processes=2)
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(config))
    with pytest.raises(launch.TrainingFailed, match="several processes were configured"):
        make_stage("pretrained_checkpoint", tiny_recipe, tiny, tmp_path / "out")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_config_that_shards_the_model_is_refused(tiny, tiny_recipe, tmp_path, monkeypatch, kind):
    config = config_file("cpu_2.yaml", tmp_path / "sharded.yaml", distributed_type=kind)
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(config))
    with pytest.raises(TrainingError, match=rf"distributed_type {kind}.*remedy: `distributed_type: MULTI_GPU`"):
        make_stage("pretrained_checkpoint", tiny_recipe, tiny, tmp_path / "out")


def test_a_port_in_use_is_named_before_anything_starts(tiny, tiny_recipe, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = config_file("ddp_multinode.yaml", tmp_path / "several.yaml", main_process_port=port)
        monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(config))
        with pytest.raises(
            launch.TrainingFailed, match=rf"port {port}, .*remedy: another main_process_port in {config}"
        ):
            make_stage("pretrained_checkpoint", tiny_recipe, tiny, tmp_path / "out")


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable; yields what runs a command in each, and the first one's address."""
    names = [f"host{n}-{os.getpid()}" for n in (0, 1)]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    try:
        made = [ip("netns", "add", name) for name in names]
        made.append(ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable1", "netns", names[1]))
    except FileNotFoundError:
        pytest.skip("there is no `ip` here")
    if any(process.returncode for process in made):
        pytest.skip(f"no network namespaces can be made here: {made[-1].stderr.strip()}")
    for n, name in enumerate(names):
        ip("-n", name, "address", "add", f"10.99.0.{n + 1}/24", "dev", f"cable{n}")
        for device in ("lo", f"cable{n}"):
            ip("-n", name, "link", "set", device, "up")
    yield [("ip", "netns", "exec", name) for name in names], "10.99.0.1"
    for name in names:
        ip("netns", "delete", name)


def test_two_hosts_give_the_numbers_of_one(new_job, undisturbed_two, two_hosts, tmp_path):
    hosts, address = two_hosts
    job = new_job(tmp_path)
    config = config_file("cpu_2.yaml", tmp_path / "hosts.yaml", num_machines=2, main_process_ip=address,
                         main_process_port=29500, rdzv_backend="static", same_network=True)  # fmt: skip
    cpus = sorted(os.sched_getaffinity(0))
    one_cpu_each = [("taskset", "--cpu-list", str(cpus[n % len(cpus)])) for n in (0, 1)]  # as when they share a host
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", config)
    module = ("-m", "bert_pipeline.training.pretrain", job)
    started = [
        start([*host, *cpu, *launcher, "--machine_rank", str(n), *module], GLOO_SOCKET_IFNAME=f"cable{n}")
        for n, (host, cpu) in enumerate(zip(hosts, one_cpu_each, strict=True))
    ]
    for process in started:
        finish(process)
    assert_identical(tmp_path, undisturbed_two)
