"""Saves of checkpoints whose system calls are killed, fail, or are put on trial for their order."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from training.runs import exit_code, fork
from training.saving import checkpoints_in, load, model_at, names_in, save, state_at, steps

from bert_pipeline.training.checkpoint import FILES, MODEL, RECORD, SUMS, CheckpointError

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
    for _ in range(6000):
        lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
        if lines and lines[-1].startswith("+++"):
            break
        time.sleep(0.01)
    trace.unlink(missing_ok=True)
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
