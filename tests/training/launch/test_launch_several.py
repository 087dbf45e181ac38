"""Several processes under accelerate's launcher, on one machine and on two hosts."""

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
import yaml
from training.runs import assert_identical, finish, start, trainers_of

from bert_pipeline import settings
from bert_pipeline.stages import make_stage
from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.launch import build as launch


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
