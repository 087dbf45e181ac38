"""Checkpoints: what is kept, and what is found when bytes, files or whole checkpoints are not what they were."""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training.runs import exit_code, fork
from training.saving import KEPT, checkpoints_in, load, model_at, names_in, save, steps

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
