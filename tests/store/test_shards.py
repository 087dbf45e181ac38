"""Building the shards of an artifact: once, whole, and only those that do not stand yet."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bert_pipeline.store.artifact import make, origin
from bert_pipeline.store.executors import ShardError
from bert_pipeline.store.shards import INDEX, Shard, ShardStore, build_shards, read_index, total


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")


def write(folder: Path, name: str, content: str, calls: Path) -> dict:
    """Two files a shard, and a trace of the call."""
    time.sleep(float(os.environ.get("SECONDS_PER_SHARD", 0)))
    with (calls / name).open("a") as trace:
        trace.write("called\n")
    if content == "broken":
        (folder / "half").write_text("half")
        raise ValueError("record 7 is broken")
    for part in ("train", "heldout"):
        (folder / part).mkdir()
        (folder / part / f"shard-{name}.txt").write_text(content)
    return {"characters": len(content), "by_part": [1, len(content)], "example": content}


@pytest.fixture
def calls(tmp_path):
    folder = tmp_path / "calls"
    folder.mkdir()
    return folder


def counted(calls: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in calls.iterdir()}


def build(destination: Path, calls: Path, contents: dict[str, str], code_version: str = "1"):
    """An artifact with a shard for each of `contents`."""

    def of(out: Path) -> dict:
        shards = [Shard(name, [name, text], (name, text, calls)) for name, text in contents.items()]
        return total(entry.facts for entry in build_shards("letters", write, shards, out))

    destination.parent.mkdir(exist_ok=True)
    return make(destination, origin("letters", contents, {}, code_version), of, resumable=True)


def files(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("shard*") if p.is_file()}


def test_an_artifact_holds_its_shards_and_an_index_of_them(tmp_path, calls):
    made = build(tmp_path / "store" / "a", calls, {"one": "x", "two": "yy"})
    assert made.facts == {"characters": 3, "by_part": [2, 3], "example": "x"}
    index = read_index(made.path)
    assert list(index) == ["one", "two"]
    assert index["two"].files["train/shard-two.txt"]["bytes"] == 2
    assert sorted(p.name for p in made.path.iterdir()) == ["heldout", "record.json", INDEX, "train"]


def test_a_grown_artifact_builds_only_its_new_shards(tmp_path, calls):
    build(tmp_path / "store" / "a", calls, {"one": "x", "two": "yy"})
    grown = build(tmp_path / "store" / "b", calls, {"one": "x", "two": "changed", "zero": "new"})
    assert counted(calls) == {"one": 1, "two": 2, "zero": 1}
    fresh = build(tmp_path / "elsewhere" / "b", calls, {"one": "x", "two": "changed", "zero": "new"})
    assert files(grown.path) == files(fresh.path) and grown.facts == fresh.facts
    assert (tmp_path / "store/a/train/shard-one.txt").samefile(grown.path / "train/shard-one.txt")


def test_another_code_version_reuses_no_shard(tmp_path, calls):
    build(tmp_path / "store" / "a", calls, {"one": "x"})
    build(tmp_path / "store" / "b", calls, {"one": "x"}, code_version="2")
    assert counted(calls) == {"one": 2}


def test_a_failed_build_keeps_its_finished_shards_and_resumes(tmp_path, calls):
    destination, contents = tmp_path / "store" / "a", {"one": "x", "two": "yy", "bad": "broken", "four": "zzzz"}
    with pytest.raises(ShardError, match="letters: shard bad: ValueError: record 7 is broken"):
        build(destination, calls, contents)
    assert not destination.exists()
    before = counted(calls)
    with pytest.raises(ShardError):
        build(destination, calls, contents)
    again = {name: count - before.get(name, 0) for name, count in counted(calls).items()}
    assert again["bad"] == 1 and again["one"] == again["two"] == 0
    partial = destination.with_name("a.partial")
    assert files(partial)["train/shard-one.txt"] == "x", "under its final name stands what is whole"
    assert not list(partial.rglob("half"))


def test_a_neighbouring_folder_that_is_no_artifact_is_ignored(tmp_path, calls):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        build_shards("letters", write, [Shard("one", "x", ("one", "x", calls))], tmp_path / folder)
    assert counted(calls) == {"one": 2}


def test_finished_shards_of_a_failed_build_serve_another_recipe(tmp_path, calls):
    with pytest.raises(ShardError):
        build(tmp_path / "store" / "a", calls, {"one": "x", "two": "yy", "bad": "broken"})
    build(tmp_path / "store" / "b", calls, {"one": "x", "two": "yy", "bad": "mended"})
    assert counted(calls) == {"one": 1, "two": 1, "bad": 2}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_built_again(tmp_path, calls, damage, caplog):
    first = build(tmp_path / "store" / "a", calls, {"one": "xxxx", "two": "yy"})
    file = first.path / "train" / "shard-one.txt"
    if damage == "truncate":
        file.write_text("xx")
    elif damage == "flip":
        file.write_text("xxzx")
    else:
        file.unlink()
    second = build(tmp_path / "store" / "b", calls, {"one": "xxxx", "two": "yy", "three": "z"})
    assert counted(calls) == {"one": 2, "two": 1, "three": 1}
    assert files(second.path)["train/shard-one.txt"] == "xxxx"
    assert "train/shard-one.txt is damaged; building it again" in caplog.text


def test_two_shards_with_one_name_are_an_error(tmp_path):
    store = ShardStore("letters", tmp_path)
    store.note("a", {})
    with pytest.raises(ShardError, match="two shards are named group/"):
        store.note("a", {})


def test_files_of_shards_no_longer_needed_are_removed(tmp_path, calls):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "shard-stray.txt").write_text("left over")
    build_shards("letters", write, [Shard("one", "x", ("one", "x", calls))], tmp_path / "out")
    assert set(files(tmp_path / "out")) == {"train/shard-one.txt", "heldout/shard-one.txt", INDEX}


def test_totals_add_numbers_lists_and_dicts_and_keep_the_first_text():
    facts = [{"n": 1, "bins": [1, 2], "of": {"a": 1}, "example": "x"}, {"n": 2, "bins": [3, 4], "of": {"b": 2}}]
    assert total(facts) == {"n": 3, "bins": [4, 6], "of": {"a": 1, "b": 2}, "example": "x"}


def test_a_build_killed_by_sigkill_resumes(tmp_path, calls, monkeypatch):
    """The program runs its shards in its own process group, and dies while one is being written."""
    destination, contents = tmp_path / "store" / "a", {f"n{k:02d}": "x" * k for k in range(20)}
    code = f"import test_shards as t; from pathlib import *; t.build({destination!r}, {calls!r}, {contents})"
    path = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}"
    environment = os.environ | {"PYTHONPATH": path, "SECONDS_PER_SHARD": "0.1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    while not (calls / "n08").exists():
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.wait()
    before = counted(calls)
    made = build(destination, calls, contents)
    again = {name for name, count in counted(calls).items() if count - before.get(name, 0)}
    assert 10 <= len(again) < 20 and "n01" not in again
    assert {name: text for name, text in files(made.path).items() if name != INDEX} == {
        f"{part}/shard-{name}.txt": text for part in ("train", "heldout") for name, text in contents.items()
    }


def fill(folder: Path, size: int) -> dict:
    (folder / "train").mkdir()
    (folder / "train" / f"shard-{size}.bin").write_bytes(b"x" * size)
    return {}


def test_a_full_disk_is_an_error_with_the_missing_bytes_and_leaves_no_partial_file(tmp_path, small_disk):
    shards = [Shard(f"of-{size}", size, (size,)) for size in (100_000, 200_000, 3_000_000)]
    with pytest.raises(ShardError, match=r"shard of-3000000: OSError: .*the disk is full: [\d,]+ bytes are free, and "):
        build_shards("fill", fill, shards, small_disk / "out")
    left = {p.name for p in (small_disk / "out").rglob("*") if p.is_file()}
    assert left == {"shard-100000.bin", "shard-200000.bin", "shards-in-progress.jsonl"}
