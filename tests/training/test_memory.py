"""Free memory of a process, and the errors when it is not enough."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from training.runs import exit_code, fork, job_for, train_and_witness

from bert_pipeline.training.memory import TooLittleMemory, explain_out_of_memory, free_on_cpu

GB = 10**9
LITTLE = 512 * 2**20


@pytest.fixture
def machine(tmp_path):
    """A machine with 64 GB free; returns a function that puts this process into a control group."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: 99999999 kB\nMemAvailable:  {64 * GB // 1024} kB\nBuffers: 1 kB\n"
    )
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/\n")

    def enter(line, **groups):
        (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/elsewhere\n{line}\n")
        second = line.startswith("0:")
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        for path, (limit, usage, unused) in groups.items():
            folder = tmp_path / "sys/fs/cgroup" / ("" if second else "memory") / path.replace("_", "/").lstrip("/")
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in zip(names, (limit, usage), strict=True):
                (folder / name).write_text(f"{value}\n")
            stat = "inactive_file" if second else "total_inactive_file"
            (folder / "memory.stat").write_text(f"cache 5\n{stat} {unused}\nactive_file 7\n")
        return tmp_path

    enter.root = tmp_path
    return enter


def test_without_a_group_it_is_what_the_machine_has(machine):
    assert free_on_cpu(machine.root) == pytest.approx(64 * GB, abs=1024)


@pytest.mark.parametrize("line", ["0::/a/b", "4:cpu,memory:/a/b"])
def test_the_tightest_group_counts(machine, line):
    unlimited = "max" if line.startswith("0:") else 2**63 - 4096
    assert free_on_cpu(machine(line, a_b=(8 * GB, 3 * GB, GB), a=(unlimited, 9 * GB, 0))) == 6 * GB
    assert free_on_cpu(machine(line, a_b=(8 * GB, 3 * GB, GB), a=(10 * GB, 9 * GB, 0))) == GB, "the one around it"
    assert free_on_cpu(machine(line, a_b=(unlimited, 1, 0), a=(unlimited, 9, 0))) == pytest.approx(64 * GB, abs=1024)


@pytest.mark.parametrize("line", ["0::/seen/from/outside", "4:memory:/seen/from/outside"])
def test_in_a_container_its_group_is_the_root(machine, line):
    assert free_on_cpu(machine(line, _=(5 * GB, 2 * GB, 0))) == 3 * GB


def test_a_device_without_room_is_told_with_the_remedy():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate")):
        with (
            pytest.raises(
                TooLittleMemory, match=r"at most 4,096 tokens does not fit: .*remedy: a smaller BERT_PIPELINE_PER"
            ),
            explain_out_of_memory(4096),
        ):
            raise error
    with pytest.raises(RuntimeError, match=r"^another$"), explain_out_of_memory(4096):
        raise RuntimeError("another")


def train_in_little_memory(group: Path, job: Path) -> None:
    (group / "memory.limit_in_bytes").write_text(str(LITTLE))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    train_and_witness(job)


def test_a_micro_batch_that_cannot_fit_is_named_before_the_first_step(tiny, tiny_recipe, tmp_path, memory_group):
    """The kernel would kill it, and nobody would hear why. The remedy that is named helps."""
    one_step = {"num_steps": 1, "global_batch_size": 10_000}
    job = job_for(tiny, tiny_recipe, tmp_path, per_device_tokens=10**6, first_phase=one_step)
    process = fork(train_in_little_memory, memory_group, job, log=tmp_path / "log")
    code, said = exit_code(process), (tmp_path / "log").read_text()
    assert code == 1, said
    told = re.search(r"TooLittleMemory: a micro-batch of ([\d,]+) tokens needs at least ([\d,]+) MB \(.* but only "
                     r"([\d,]+) MB are free for each process; remedy: "
                     r"BERT_PIPELINE_PER_DEVICE_TOKENS=(\d+), or auto", said)  # fmt: skip
    assert told, said
    tokens, needed, free, fitting = (int(each.replace(",", "")) for each in told.groups())
    assert tokens > 50_000 and needed > LITTLE / 1e6 >= free
    assert not (tmp_path / "metrics.jsonl").exists()
    job = job_for(tiny, tiny_recipe, tmp_path, per_device_tokens=fitting, first_phase=one_step)
    process = fork(train_in_little_memory, memory_group, job, log=tmp_path / "log")
    assert exit_code(process) == 0, (tmp_path / "log").read_text()
    [step] = (tmp_path / "work" / "samples.jsonl").read_text().splitlines()[-1:]
    assert json.loads(step)["parts"] < 8, "not so small that anything would fit"
