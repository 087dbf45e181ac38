"""Several processes: the numbers of one, and nothing lost when one of them is killed, hangs, or is asked to stop."""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training.runs import fork, trace

from bert_pipeline.metrics import read_rows
from bert_pipeline.stages import make_stage
from bert_pipeline.training import launch
from bert_pipeline.training.pretrain import EXIT_RESUME, Job

ROOT = Path(__file__).parents[2]
SABOTAGED = Path(__file__).with_name("sabotaged.py")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
NOTHING = "none none 0 none"
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Without dropout, whose noise each process draws for itself."""


@pytest.fixture
def job_for(tiny, tiny_recipe):
    return lambda out, **changed: write_job(tiny, tiny_recipe, out, **changed)


def write_job(tiny, recipe, out, model=None, **section):
    (out / "work").mkdir(parents=True, exist_ok=True)
    job = Job(
        section=recipe.pretrain.model_dump(mode="json") | {"log_every": 1} | section,
        model=recipe.model.model_dump(mode="json") | (model or {}),
        **{kind: str(tiny[kind].path) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")},
        out=str(out),
        identity="test",
        per_device_tokens=256,
    )
    job.write(out / "work" / "job.json")
    return out / "work" / "job.json"


def fork_ranks(program, arguments, processes, log, sabotage=NOTHING, **given):
    """Start a Python file in so many processes, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    group |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [group | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]
    if processes == 1:
        ranks = [{"ACCELERATE_USE_CPU": "true"}]
    given["SABOTAGE"] = sabotage
    return [fork(run_main, str(program), [str(a) for a in arguments], rank | given, log=log) for rank in ranks]


def run_main(program, arguments, environment):
    os.environ |= environment
    sys.argv[:] = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


def exit_code(process):
    """Negative after a signal."""
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def train(job, processes, expected=0, **how):
    """Train to the end; returns what the processes said."""
    log = job.parents[1] / f"said-{time.monotonic_ns()}"
    codes = [exit_code(process) for process in fork_ranks(SABOTAGED, [job], processes, log, **how)]
    said = log.read_text()
    assert expected is None or set(codes) == {expected}, (codes, said)
    return said


def torchrun(job, sabotage, *, restarts, expected, **environment):
    """The same under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(SABOTAGED), str(job)]
    return finish(start(command, SABOTAGE=sabotage, **environment), expected)


def start(command, **environment):
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, expected=0):
    try:
        said = process.communicate(timeout=120)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == expected, said
    return said


def assert_identical(found, expected):
    assert trace(found) == trace(expected)
    weights = [load_file(out / "model.safetensors") for out in (expected, found)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def assert_close(found, expected, rel=2e-6):
    for row, other in zip(trace(found), trace(expected), strict=True):
        assert row == pytest.approx(other, rel=rel, abs=1e-7)
    weights = [load_file(out / "model.safetensors") for out in (expected, found)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-6, rtol=1e-4)


def newest_step(out):
    return max(int(path.name[-8:]) for path in out.glob("work/checkpoints/step-????????"))


@pytest.fixture(scope="module")
def one(tiny, tiny_recipe, tmp_path_factory):
    """One process, undisturbed, without dropout."""
    out = tmp_path_factory.mktemp("one")
    train(write_job(tiny, tiny_recipe, out, STILL), 1)
    return out


@pytest.fixture(scope="module")
def two(tiny, tiny_recipe, tmp_path_factory):
    """Two processes, undisturbed."""
    out = tmp_path_factory.mktemp("two")
    train(write_job(tiny, tiny_recipe, out), 2)
    return out


def test_three_processes_share_a_batch_that_they_do_not_divide(job_for, one, tmp_path):
    said = train(job_for(tmp_path, model=STILL), 3)
    assert (
        "pretrain.phases.1.global_batch_size 8 is no multiple of the 3 processes: in each step 2 of them get 3 pairs "
        "and 1 get 2; this costs a little time and changes no result" in said
    )
    assert_close(tmp_path, one)


def test_the_number_of_processes_changes_between_resumes(job_for, one, tmp_path):
    """1, then 2, then 2 that share the weights out (FSDP2), then 1: one checkpoint format, one trace."""
    job = job_for(tmp_path, model=STILL)
    train(job, 1, EXIT_RESUME, sabotage="0 forward 2 TERM")
    train(job, 2, EXIT_RESUME, sabotage="1 forward 5 TERM")
    train(job, 2, EXIT_RESUME, sabotage="0 forward 8 TERM", **FSDP)
    assert newest_step(tmp_path) == 9
    train(job, 1)
    assert_close(tmp_path, one)


def test_fsdp_gives_the_numbers_of_one_process(job_for, one, tmp_path):
    train(job_for(tmp_path, model=STILL), 2, **FSDP)
    assert_close(tmp_path, one)
    assert json.loads((tmp_path / "work" / "result.json").read_text())["world_size"] == 2


KILLED = ["1 backward 7 KILL"]
KILLED_MORE = ["0 save 5 KILL"] + [
    f"{rank} {phase} {step} KILL"
    for rank in (0, 1)
    for phase, steps in {"data": (0, 7, 11), "forward": (0, 7, 11), "backward": (0, 7, 11), "heldout": (7, 11)}.items()
    for step in steps
    if f"{rank} {phase} {step} KILL" not in KILLED
]


@pytest.mark.parametrize("sabotage", KILLED + [pytest.param(s, marks=pytest.mark.slow) for s in KILLED_MORE])
def test_a_killed_process_takes_the_group_with_it_and_torchrun_starts_it_again(job_for, two, tmp_path, sabotage):
    said = torchrun(job_for(tmp_path), sabotage, restarts=1, expected=0)
    assert "SABOTAGE" in said, "the test would prove nothing"
    assert "lost another one" in said or "heldout" in sabotage or "save" in sabotage
    assert_identical(tmp_path, two)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_hangs_ends_the_group_in_time(job_for, tmp_path, rank):
    job = job_for(tmp_path)
    log, sabotage = tmp_path / "said", f"{rank} backward 4 STOP"
    ranks = fork_ranks(SABOTAGED, [job], 2, log, sabotage, BERT_PIPELINE_TIMEOUT_SECONDS="4")
    assert exit_code(ranks[1 - rank]) == 1
    assert ranks[rank].is_alive(), "it hangs still"
    ranks[rank].kill()
    expected = f"process {1 - rank} of 2 lost another one, which ended or did not answer for 4 seconds"
    assert expected in log.read_text()


@pytest.mark.slow
def test_after_a_process_hung_torchrun_starts_the_group_again(job_for, two, tmp_path):
    """torchrun's 30 seconds are most of it; with the default of ours the group is gone within 60."""
    said = torchrun(job_for(tmp_path), "1 backward 4 STOP", restarts=1, expected=0, BERT_PIPELINE_TIMEOUT_SECONDS="4")
    assert "SABOTAGE" in said and "did not answer for 4 seconds" in said
    assert_identical(tmp_path, two)


LATE = """
import os, time
time.sleep(5 * int(os.environ["RANK"]))
from torch import ones
from bert_pipeline.training.distributed import join_group
accelerator = join_group()
print("together:", int(accelerator.reduce(ones(1))), flush=True)
accelerator.end_training()
"""


def test_a_process_may_come_later_than_it_may_hang(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    ranks = fork_ranks(tmp_path / "late.py", [], 2, tmp_path / "said", BERT_PIPELINE_TIMEOUT_SECONDS="2")
    assert {exit_code(rank) for rank in ranks} == {0}, (tmp_path / "said").read_text()
    assert (tmp_path / "said").read_text().count("together: 2") == 2


STOPPED = ["1 data 5 TERM", "0 heldout 7 TERM-LAUNCHER"]
STOPPED_MORE = [f"{rank} {phase} {step} {deed}" for phase, step in (("forward", 0), ("heldout", 7), ("save", 5))
                for rank, deed in ((0, "TERM"), (1, "TERM"), ("all", "TERM"), (0, "TERM-LAUNCHER"))
                if (rank, phase) != (1, "save")]  # fmt: skip


@pytest.mark.parametrize("sabotage", STOPPED + [pytest.param(s, marks=pytest.mark.slow) for s in STOPPED_MORE])
def test_asked_to_stop_all_save_the_same_step_and_go_on(job_for, two, tmp_path, sabotage):
    job = job_for(tmp_path)
    if "LAUNCHER" in sabotage:  # which hands the signal on, and has an exit code of its own
        said = torchrun(job, sabotage, restarts=1, expected=1)
    else:
        said = train(job, 2, EXIT_RESUME, sabotage=sabotage)
    asked_at, saved = int(sabotage.split()[2]), newest_step(tmp_path)
    assert said.count(f"stopped after step {saved} of 12; run again to go on") == 2, said
    assert saved <= asked_at + 2, "each finishes the step under way, of which one may be a step ahead"
    train(job, 2)
    assert_identical(tmp_path, two)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(job_for, tmp_path, processes):
    said = train(job_for(tmp_path), processes, sabotage=f"{processes - 1} backward 4 NAN")
    assert "SABOTAGE" in said, "the test would prove nothing"
    skipped = [row["skipped_steps"] for row in trace(tmp_path) if "skipped_steps" in row]
    assert skipped == [0] * 4 + [1] + [0] * 7
    [line] = read_rows(tmp_path / "skipped.jsonl")
    assert line["step"] == 5 and line["grad_norm"] == "nan"
    rows = [(name, row) for span in line["pairs"] for name, rows in span["rows"].items() for row in rows]
    assert len(set(rows)) == 16, "the pairs of all processes"
    for path in tmp_path.glob("work/checkpoints/step-????????/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values()), path


LEAVING = """
import time
from torch import nn, ones
from bert_pipeline.training.distributed import join_group
def main():
    accelerator = join_group()
    loss = accelerator.prepare(nn.Linear(4, 4))
    loss(ones(2, 4)).sum().backward()
    accelerator.reduce(ones(1))
    time.sleep(0.02 * accelerator.is_main_process)
    accelerator.wait_for_everyone()
    accelerator.end_training()
main()
"""


@pytest.mark.slow
def test_processes_that_are_done_end(tmp_path):
    """torch 2.13 left one pair in twenty waiting for ever, when gloo's threads and the interpreter met at the end."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    for _ in range(100):
        ranks = fork_ranks(tmp_path / "leaving.py", [], 2, tmp_path / "said")
        assert {exit_code(rank) for rank in ranks} == {0}, (tmp_path / "said").read_text()


HELDOUT = """
import json, sys
from pathlib import Path
from bert_pipeline.recipe import ModelRecipe
from bert_pipeline.training.batches import PairDataset
from bert_pipeline.training.distributed import join_group
from bert_pipeline.training.heldout import heldout_scores
from bert_pipeline.training.loss import PretrainingLoss
from bert_pipeline.training.model import build_model
from bert_pipeline.training.pretrain import Job
job = Job(**json.loads(Path(sys.argv[1]).read_text()))
accelerator = join_group()
dataset = PairDataset(Path(job.nsp_dataset), Path(job.masked_dataset), Path(job.tokenizer), 64, "heldout")
loss = PretrainingLoss(build_model(ModelRecipe(**job.model), 800, 1))
scores = [heldout_scores(loss, dataset, n, 256, accelerator) for n in range(1, 18)]
if accelerator.is_main_process:
    Path(sys.argv[2]).write_text(json.dumps(scores))
"""


def test_held_out_scores_count_each_pair_once(job_for, tmp_path):
    """For 1 to 17 pairs on one process and two. Equal accuracies: the same counts of right guesses over all guesses."""
    job = job_for(tmp_path)
    (tmp_path / "scores.py").write_text(HELDOUT)
    for processes in (1, 2):
        arguments, log = [job, tmp_path / f"{processes}.json"], tmp_path / "said"
        ranks = fork_ranks(tmp_path / "scores.py", arguments, processes, log)
        assert {exit_code(rank) for rank in ranks} == {0}, log.read_text()
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2)]
    assert len(found[0]) == 17
    for alone, together in zip(*found, strict=True):
        for name, value in alone.items():
            assert together[name] == (value if name.endswith("accuracy") else pytest.approx(value, rel=1e-6)), name


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BERT_PIPELINE_WORLD_SIZE": "8"}, "asks for 8 processes, but 1 were launched"),
        ({"BERT_PIPELINE_WORLD_SIZE": "8", "WORLD_SIZE": "4"}, "asks for 8 processes, but 4 were launched"),
        ({"MASTER_ADDR": "10.0.0.1"}, "several processes were meant"),
        (
            {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "false"},
            "2 processes were asked for, but this one finds itself in",
        ),
    ],
)
def test_another_number_of_processes_than_was_asked_for_is_an_error(job_for, tmp_path, environment, message):
    said = train(job_for(tmp_path), 1, expected=1, **environment)
    assert message in said and "remedy:" in said
    assert not list(tmp_path.glob("metrics.jsonl"))


def config_file(name, path, **changed):
    config = yaml.safe_load((ROOT / "infra" / "accelerate" / name).read_text())
    path.write_text(yaml.safe_dump(config | changed))
    return path


def test_the_launcher_starts_fsdp_though_the_usual_port_is_taken(tiny, tiny_recipe, tmp_path, monkeypatch):
    config = config_file("fsdp2.yaml", tmp_path / "fsdp2.yaml", use_cpu=True, num_processes=2, mixed_precision="no")
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(config))
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # someone else has it: as good
            taken.bind(("", 29500))
            taken.listen()
        made = make_stage("pretrained_checkpoint", tiny_recipe, tiny, tmp_path / "out")
    assert made.facts["world_size"] == 2
    assert made.facts["max_logit_difference"] < 1e-5


def test_an_error_that_would_come_again_is_not_tried_again(tiny, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(ROOT / "infra" / "accelerate" / "cpu_2.yaml"))
    first, *others = tiny_recipe.pretrain.phases
    phases = (first.model_copy(update={"learning_rate": 1e30}), *others)
    hot = tiny_recipe.pretrain.model_copy(update={"phases": phases, "max_skipped_steps": 0})
    with pytest.raises(launch.TrainingFailed, match=r"^TrainingError: step 2: the gradient is not finite .*train\.log"):
        make_stage("pretrained_checkpoint", tiny_recipe.model_copy(update={"pretrain": hot}), tiny, tmp_path / "out")
    said = (tmp_path / "out.partial" / "work" / "train.log").read_text()
    assert 1 <= said.count("TrainingError: step 2") <= 2, "once for each process"


def test_training_that_was_asked_to_stop_is_told_from_training_that_failed(tiny, tiny_recipe, tmp_path):
    def stop(row):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(
                    f"{sys.executable}\0-m\0bert_pipeline.training.pretrain\0{tmp_path}".encode()
                ):
                    os.kill(int(path.parent.name), signal.SIGTERM)

    phases = tuple(phase.model_copy(update={"num_steps": 5_000}) for phase in tiny_recipe.pretrain.phases)
    long = tiny_recipe.model_copy(update={"pretrain": tiny_recipe.pretrain.model_copy(update={"phases": phases})})
    with pytest.raises(launch.TrainingStopped, match="asked to stop and saved a checkpoint"):
        make_stage("pretrained_checkpoint", long, tiny, tmp_path / "out", stop)
    assert list(tmp_path.glob("out.partial/work/checkpoints/step-????????"))


@pytest.mark.slow
def test_a_config_that_accelerate_would_run_as_one_process_is_refused(tiny, tiny_recipe, tmp_path, monkeypatch):
    config = config_file("cpu.yaml", tmp_path / "cpu.yaml", num_processes=2)
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(config))
    with pytest.raises(launch.TrainingFailed, match="several processes were meant"):
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


def test_two_hosts_give_the_numbers_of_one(job_for, two, two_hosts, tmp_path):
    hosts, address = two_hosts
    job = job_for(tmp_path)
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
    assert_identical(tmp_path, two)
