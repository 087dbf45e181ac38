"""Checkpoints: what is kept, how damage is found, and what a save leaves when its system calls are killed or fail."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training.runs import exit_code, fork
from training.saving import KEPT, checkpoints_in, load, model_at, names_in, save, state_at, steps

from bert_pipeline.training.checkpoint import FILES, MODEL, OPTIMIZER, RECORD, SUMS, CheckpointError, Checkpoints, _sums


def test_nothing_saved_yet_is_not_an_error(tmp_path):
    assert checkpoints_in(tmp_path / "none").load_newest(*model_at(0)) is None
    (tmp_path / "step-00000001.partial").mkdir()
    assert checkpoints_in(tmp_path).load_newest(*model_at(0)) is None


def test_the_newest_are_kept(two):
    save(two, 3, 99_999_999, 100_000_000)
    assert names_in(two) == steps(99_999_999, 100_000_000)
    assert load(two) == 100_000_000


def test_sha256sum_reads_the_sums(two):
    assert not subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=two / "step-00000002").returncode


def test_what_has_not_made_a_step_is_saved_as_adamw_begins(tmp_path):
    def go_on(model, optimizer):
        torch.manual_seed(5)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        return list(model.parameters())

    fresh, _ = model_at(1)
    checkpoints_in(tmp_path).save(1, fresh, torch.optim.AdamW(fresh.parameters(), fused=True), {})
    model, optimizer = model_at(2)
    checkpoints_in(tmp_path).load_newest(model, optimizer)
    expected = go_on(fresh, torch.optim.AdamW(fresh.parameters(), fused=True))
    assert all(map(torch.equal, expected, go_on(model, optimizer)))


def flip(path: Path, random: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[random.integers(len(content))] ^= 1 << random.integers(8)
    path.write_bytes(content)


def truncate(path: Path, random: np.random.Generator) -> None:
    os.truncate(path, random.integers(path.stat().st_size))


def lengthen(path: Path, random: np.random.Generator) -> None:
    with path.open("ab") as stream:
        stream.write(random.bytes(random.integers(1, 5000)))


def zero_a_page(path: Path, random: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    start = int(random.integers(0, len(content), endpoint=False)) // 4096 * 4096
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def swap(path: Path, random: np.random.Generator) -> None:
    shutil.copy(path.parent.parent / "step-00000001" / path.name, path)


def remove(path: Path, random: np.random.Generator) -> None:
    path.unlink()


@pytest.mark.parametrize("count", [48, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_goes_unseen(two, tmp_path, caplog, count):
    """Every kind of damage to every file: found before a tensor is used, named, and the checkpoint before it loaded."""
    random = np.random.default_rng(0)
    kinds = (flip, truncate, zero_a_page, swap, remove, lengthen)
    newest = two / "step-00000002"
    shutil.copytree(newest, tmp_path / "whole")
    for damage, name in itertools.islice(itertools.cycle(itertools.product(kinds, (*FILES, SUMS))), count):
        damage(newest / name, random)
        caplog.clear()
        assert load(two) == 1, (damage, name)
        assert (
            str(newest) in caplog.text
            and name in caplog.text
            and "falling back to the checkpoint before" in caplog.text
        )
        if damage is not remove:
            assert re.search(r"SHA-256 .*, but SHA256SUMS has .", caplog.text), caplog.text
        shutil.rmtree(newest)
        shutil.copytree(tmp_path / "whole", newest)
    assert load(two) == 2


def test_a_whole_checkpoint_under_the_name_of_another_step_is_found(two, caplog):
    shutil.rmtree(two / "step-00000002")
    shutil.copytree(two / "step-00000001", two / "step-00000002")
    assert load(two) == 1
    assert "expected step 2" in caplog.text and "found step 1" in caplog.text


def test_where_all_are_damaged_nothing_starts_from_the_beginning(two):
    for path in two.glob("*/model.safetensors"):
        path.write_bytes(b"")
    model, optimizer = model_at(0)
    with pytest.raises(
        CheckpointError, match=r"all checkpoints in .* are damaged: .*00002/model.*00001/model.*; remedy: "
    ):
        checkpoints_in(two).load_newest(model, optimizer)
    assert all(map(torch.equal, model.parameters(), model_at(0)[0].parameters()))


def test_damaged_ones_do_not_count_as_kept(two):
    (two / "step-00000002" / MODEL).write_bytes(b"")
    save(two, 3)
    assert names_in(two) == steps(1, 3)


def test_a_run_that_went_back_replaces_what_is_ahead_of_it(two):
    """It saves an earlier step (because it was stopped), or the same step again."""
    save(two, 5)
    for path in (two / "step-00000005", two / "step-00000002"):
        (path / MODEL).write_bytes(b"")
    save(two, 6)
    (two / "step-00000006" / MODEL).write_bytes(b"")
    save(two, 5)
    assert names_in(two) == steps(5)
    assert load(two) == 5
    save(two, 7, 7)
    assert names_in(two) == steps(5, 7)


def rewrite_sums(checkpoint: Path) -> None:
    (checkpoint / SUMS).write_text("".join(f"{line}\n" for line in _sums(checkpoint)))


@pytest.mark.parametrize("key", ["step", "identity", "state"])
def test_a_record_that_lacks_something_is_refused(two, key):
    for path in two.iterdir():
        record = json.loads((path / RECORD).read_text())
        del record[key]
        (path / RECORD).write_text(json.dumps(record))
        rewrite_sums(path)
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.json does not belong to this checkpoint: expected .*; remedy"
    ):
        load(two)


def lacking(tensors, key):
    tensors.pop(key)


def too_many(tensors, key):
    tensors["another"] = tensors[key].clone()


def of_another_shape(tensors, key):
    tensors[key] = tensors[key][..., :-1].contiguous()


def of_another_type(tensors, key):
    tensors[key] = tensors[key].half()


@pytest.mark.parametrize("change", [lacking, too_many, of_another_shape, of_another_type])
@pytest.mark.parametrize(("name", "key"), [(MODEL, "1.weight"), (OPTIMIZER, "1.weight/exp_avg_sq")])
def test_tensors_of_another_model_or_optimizer_are_refused(two, change, name, key):
    from safetensors.torch import load_file, save_file

    newest = two / "step-00000002"
    tensors = load_file(newest / name)
    change(tensors, key)
    save_file(tensors, newest / name)
    rewrite_sums(newest)
    model, optimizer = model_at(0)
    with pytest.raises(CheckpointError, match=rf"00002/{name}: (another|{key}): expected .*, found .*; remedy: "):
        checkpoints_in(two).load_newest(model, optimizer)
    assert all(map(torch.equal, model.parameters(), model_at(0)[0].parameters())), "a tensor was used"


def test_work_of_another_identity_is_refused_before_its_shapes(two):
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match=r"\(mine, not other\); remedy: remove"):
        Checkpoints(two, "other", KEPT).load_newest(other, torch.optim.AdamW(other.parameters()))


def load_as(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Accelerator(cpu=True)
    print(f"process {rank} loaded step {load(folder)}")


def test_all_processes_load_what_the_main_process_chooses(two, tmp_path):
    """Also if another process sees a newer one. A process that does not see the chosen one raises an error."""
    (two / "step-00000002" / MODEL).write_bytes(b"")
    more, fewer = tmp_path / "more", tmp_path / "fewer"
    save(more, 1, 2)
    save(fewer, 2)
    for other, expected in ((more, "process 1 loaded step 1"), (fewer, "CheckpointError: process 1 cannot read the")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs = [tmp_path / f"{other.name}-{rank}" for rank in range(2)]
        processes = [fork(load_as, rank, port, folder, log=logs[rank]) for rank, folder in enumerate((two, other))]
        for process in processes:
            exit_code(process)
        assert "process 0 loaded step 1" in logs[0].read_text()
        assert expected in logs[1].read_text()


# System calls of a save

CALLS = (
    *("openat", "?open", "write", "pwrite64", "writev", "ftruncate", "fallocate", "fsync", "fdatasync", "?rename"),
    *("renameat", "renameat2", "?mkdir", "mkdirat", "?unlink", "unlinkat", "?rmdir", "?link", "linkat", "?chmod"),
)
END = "the end of the save"


def save_traced(folder: Path, step: int, log: Path, *injected: str) -> None:
    """Save, with strace looking on or interfering."""
    model, optimizer = model_at(step)
    checkpoints = checkpoints_in(folder)
    options = ("-y", "-e", f"trace={','.join(CALLS)}", "-o", str(log), *injected)
    tracer = subprocess.Popen(["strace", *options, "-p", str(os.getpid())], stderr=subprocess.PIPE)
    assert b"attached" in tracer.stderr.readline()
    checkpoints.save(step, model, optimizer, state_at(step))
    Path(END).unlink(missing_ok=True)


def trace_of_save(folder: Path, step: int, log: Path, *injected: str) -> tuple[int, list[str]]:
    """The exit code of a process that saves, and the lines of its trace that belong to the save."""
    trace = log.with_suffix(".strace")
    process = fork(save_traced, folder, step, trace, *injected, log=log)
    code = exit_code(process)
    lines: list[str] = []
    while not (lines and lines[-1].startswith("+++")):  # strace writes the last line after the process is gone
        lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
        time.sleep(0.001)
    trace.unlink()
    return code, list(itertools.takewhile(lambda line: END not in line, lines))


@pytest.fixture(scope="module")
def strace(tmp_path_factory):
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr}")


def calls_in(lines: list[str]) -> list[tuple[str, int]]:
    """(call, k): the k-th call of its name, from 1, for every call of a trace."""
    seen: Counter[str] = Counter()
    found = []
    for line in lines:
        if match := re.match(r"(\w+)\(", line):
            seen[match[1]] += 1
            found.append((match[1], seen[match[1]]))
    return found


def nothing_saved(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def gone_back(folder: Path) -> None:
    """Steps 2 and 3 are damaged: the run has gone back to 1 and saves 3 again."""
    for step in (2, 3):
        shutil.copytree(folder / "step-00000001", folder / f"step-{step:08d}", dirs_exist_ok=True)
        (folder / f"step-{step:08d}" / MODEL).write_bytes(b"")


def leftovers(folder: Path) -> None:
    for name in ("step-00000003.partial", "step-00000000.deleted"):
        shutil.copytree(folder / "step-00000001", folder / name)


def as_it_is(folder: Path) -> None:
    pass


SITUATIONS = (as_it_is, nothing_saved, gone_back, leftovers)


@pytest.mark.parametrize(
    ("before", "harmless"),
    [
        (as_it_is, {"openat"}),
        *(pytest.param(f, set(), marks=pytest.mark.slow, id=f"{f.__name__}-all") for f in SITUATIONS),
    ],
)
def test_a_save_may_be_killed_at_every_system_call(strace, two, tmp_path, caplog, before, harmless):
    """The newest whole checkpoint is the new one or the old one; the next save needs no help and leaves no litter."""
    before(two)
    template, log = tmp_path / "template", tmp_path / "log"
    shutil.copytree(two, template)
    code, lines = trace_of_save(two, 3, log)
    assert code == 0, log.read_text()
    points = [(call, number) for call, number in calls_in(lines) if call not in harmless]
    assert len(points) >= 20, "the test would prove little"
    loaded = Counter()
    for call, number in points:
        shutil.rmtree(two)
        shutil.copytree(template, two)
        code, _ = trace_of_save(two, 3, log, "-e", f"inject={call}:signal=KILL:when={number}")
        assert code == -signal.SIGKILL, (call, number)
        newest = load(two) if before is not nothing_saved or (two / "step-00000003").exists() else 0
        loaded[newest] += 1
        coming = 4 if newest == 3 else 3
        save(two, coming)
        assert names_in(two) == steps(newest, coming) - steps(0), (call, number)
    print(f"{before.__name__}: killed at {len(points)} calls, newest whole checkpoint then: {dict(loaded)}")
    assert set(loaded) == {as_it_is: {2, 3}, nothing_saved: {0, 3}, gone_back: {1, 3}, leftovers: {2, 3}}[before]
    assert bool(caplog.text) == (before is gone_back), "a whole checkpoint was called damaged"


def test_nothing_is_published_before_it_is_on_disk(strace, two, tmp_path):
    """Each file: all writes, then fsync; their folder: fsync after the last name in it; then the rename that publishes;
    then fsync of the folder of checkpoints. What is deleted has durably lost its name before.
    """
    _, lines = trace_of_save(two, 3, tmp_path / "log")
    partial, final = two / "step-00000003.partial", two / "step-00000003"

    def places(pattern: str) -> list[int]:
        found = [n for n, line in enumerate(lines) if re.match(pattern, line)]
        assert found, pattern
        return found

    def on(path: Path) -> str:
        return rf"\(\d+<{re.escape(str(path))}>"

    (published,) = places(rf'rename\w*\(.*"{re.escape(str(partial))}", .*"{re.escape(str(final))}"')
    for name in (*FILES, SUMS):
        written = places(r"write\w*" + on(partial / name)) if name in (RECORD, SUMS) else places(rf'rename.*/{name}"')
        assert max(written) < min(places(r"fsync" + on(partial / name))) < published, name
    assert min(places(r"write" + on(partial / SUMS))) > max(places(r"write" + on(partial / RECORD)))
    names = places(rf"(openat\(.*{re.escape(str(partial))}/.*O_CREAT|rename\w*\(.*{re.escape(str(partial))}/)")
    assert max(names) < min(places(r"fsync" + on(partial))) < published
    synced = places(r"fsync" + on(two))
    assert synced[0] > published
    (forgotten,) = places(rf'rename\w*\(.*"{re.escape(str(two))}/step-00000001", .*\.deleted"')
    assert synced[0] < forgotten < synced[1] < min(places(r"(unlink|rmdir)"))


def failing_calls(everything: bool) -> list[str]:
    counts = {"mkdir": 1, "ftruncate": 2, "write": 4, "renameat": 2, "fsync": 8, "rename": 2, "unlinkat": 4, "rmdir": 1}
    points = [f"{call}:when={k + 1}" for call, count in counts.items() for k in range(count)]
    errors = ("EIO", "EDQUOT", "ENOSPC")
    if everything:
        return [f"{point}:error={error}" for point in points for error in errors]
    return [f"{point}:error={error}" for point, error in zip(points[::3], itertools.cycle(errors))]


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_save_that_fails_leaves_the_old_checkpoints_and_no_litter(strace, two, tmp_path, everything):
    template, log = tmp_path / "template", tmp_path / "log"
    shutil.copytree(two, template)
    loaded = Counter()
    for point in failing_calls(everything):
        shutil.rmtree(two)
        shutil.copytree(template, two)
        log.unlink(missing_ok=True)
        code, lines = trace_of_save(two, 3, log, "-e", f"inject={point}")
        assert code == 0, log.read_text()
        assert any("(INJECTED)" in line for line in lines), point
        assert re.search(r"could not be (saved|deleted)", log.read_text()), point
        newest = load(two)
        loaded[newest] += 1
        assert not list(two.glob("*.partial"))
        save(two, 4)
        assert names_in(two) == steps(4, newest), point
    print(f"failed at {sum(loaded.values())} calls, newest whole checkpoint then: {dict(loaded)}")
    assert set(loaded) == {2, 3}


@pytest.mark.parametrize("levels", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_moment_of_a_save(small_disk, caplog, levels):
    folder, filler = small_disk / "checkpoints", small_disk / "filler"
    save(folder, 1, 2)
    needed = sum(path.stat().st_size for path in (folder / "step-00000002").iterdir())
    failed = 0
    for free in np.linspace(0, 1.5 * needed, levels, dtype=int):
        with filler.open("wb") as stream:
            disk = os.statvfs(small_disk)
            stream.write(bytes(disk.f_bavail * disk.f_frsize - int(free)))
        caplog.clear()
        save(folder, 3)
        failed += "could not be saved, training continues without it" in caplog.text
        assert load(folder) == (2 if caplog.text else 3)
        filler.unlink()
        save(folder, 1, 2)
        assert names_in(folder) == steps(1, 2)
    print(f"{levels} fill levels, {failed} saves failed")
    assert 0 < failed < levels


def test_the_third_failed_save_in_a_row_stops(small_disk, caplog):
    folder, filler = small_disk / "checkpoints", small_disk / "filler"
    checkpoints = checkpoints_in(folder)
    checkpoints.save(1, *model_at(1), state_at(1))
    for first in (2, 5):  # a save that succeeds forgives those before it
        with filler.open("wb") as stream:
            disk = os.statvfs(small_disk)
            stream.write(bytes(disk.f_bavail * disk.f_frsize))
        for step in (first, first + 1):
            checkpoints.save(step, *model_at(step), state_at(step))
        if first == 2:
            filler.unlink()
            checkpoints.save(4, *model_at(4), state_at(4))
    with pytest.raises(
        CheckpointError, match=r"step-00000007 could not be saved, the third .*; remedy: repair or free the disk"
    ):
        checkpoints.save(7, *model_at(7), state_at(7))
    assert load(folder) == 4
