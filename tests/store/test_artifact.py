import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError

ORIGIN = artifact.origin("thing", {"size": 3}, {"other": "abc"}, "1")


def build(path: Path) -> dict:
    (path / "content.txt").write_text("whole")
    return {"letters": 5}


def test_an_artifact_is_built_once_and_records_its_origin(tmp_path):
    made = artifact.make(tmp_path / "a", ORIGIN, build)
    again = artifact.make(tmp_path / "a", ORIGIN, lambda path: pytest.fail("built twice"))
    assert made == again and made.facts == {"letters": 5} and made.kind == "thing"
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["origin"] == ORIGIN and record["fingerprint"] == artifact.fingerprint(ORIGIN)
    assert {"at", "seconds", "by", "host", "python", "commit", "version", "wheel"} <= record["made"].keys()


def test_the_fingerprint_depends_only_on_the_origin():
    changed = [
        artifact.origin("other", {"size": 3}, {"other": "abc"}, "1"),
        artifact.origin("thing", {"size": 4}, {"other": "abc"}, "1"),
        artifact.origin("thing", {"size": 3}, {"other": "abd"}, "1"),
        artifact.origin("thing", {"size": 3}, {"other": "abc"}, "2"),
    ]
    assert len({artifact.fingerprint(origin) for origin in [*changed, ORIGIN]}) == 5
    assert artifact.fingerprint(dict(reversed(ORIGIN.items()))) == artifact.fingerprint(ORIGIN)


def test_a_failed_build_leaves_no_artifact(tmp_path):
    def fail(path):
        (path / "half.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        artifact.make(tmp_path / "a", ORIGIN, fail)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no record\.json"):
        artifact.load(tmp_path / "a.partial")
    made = artifact.make(tmp_path / "a", ORIGIN, build)
    assert {path.name for path in made.path.iterdir()} == {"content.txt", "record.json"}


def test_a_resumable_build_finds_the_files_of_the_last_one(tmp_path):
    def interrupted(path):
        (path / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.make(tmp_path / "a", ORIGIN, interrupted, resumable=True)
    made = artifact.make(tmp_path / "a", ORIGIN, lambda path: {"found": (path / "half.txt").exists()}, resumable=True)
    assert made.facts == {"found": True}


def test_a_directory_that_holds_another_artifact_is_refused(tmp_path):
    artifact.make(tmp_path / "a", ORIGIN, build)
    with pytest.raises(ArtifactError, match="remedy: choose another directory"):
        artifact.make(tmp_path / "a", ORIGIN | {"code_version": "2"}, build)
    with pytest.raises(ArtifactError, match="holds a thing; a tokenizer is needed here"):
        artifact.load(tmp_path / "a", "tokenizer")


def leave_unfinished(path: Path, origin: dict, *, resumable: bool) -> Path:
    """What an interrupted build leaves: a checkpoint that is whole, in a directory that is not."""

    def interrupted(folder):
        (folder / "work" / "step-100").mkdir(parents=True)
        (folder / "work" / "step-100" / "model").write_text("days of work")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.make(path, origin, interrupted, resumable=resumable)
    return path.with_name(path.name + ".partial")


@pytest.mark.parametrize(
    ("change", "resumable"),
    [("section", True), ("inputs", True), ("code_version", True), ("kind", True), ("kind", False)],
)
def test_work_of_another_origin_is_refused_and_kept(tmp_path, change, resumable):
    other = ORIGIN | {change: {"another": "b"} if change in ("section", "inputs") else "another"}
    partial = leave_unfinished(tmp_path / "a", other, resumable=True)
    with pytest.raises(ArtifactError) as refused:
        artifact.make(tmp_path / "a", ORIGIN, build, resumable=resumable)
    told = str(refused.value)
    assert told.startswith(f"{partial} holds an unfinished {other['kind']} ({artifact.fingerprint(other)})")
    assert artifact.fingerprint(ORIGIN) in told and f"remedy: finish it with its own recipe, remove {partial}" in told
    assert (partial / "work" / "step-100" / "model").read_text() == "days of work"
    made = artifact.make(tmp_path / "a", other, lambda path: {"found": (path / "work").exists()}, resumable=True)
    assert made.facts == {"found": True}, "its own recipe goes on with it"


def test_leftovers_that_cannot_be_resumed_are_removed(tmp_path):
    other = ORIGIN | {"section": {"size": 4}}
    leave_unfinished(tmp_path / "a", other, resumable=False)
    made = artifact.make(tmp_path / "a", ORIGIN, build)
    assert {path.name for path in made.path.iterdir()} == {"content.txt", "record.json"}


def test_a_build_that_failed_without_output_blocks_no_other_recipe(tmp_path):
    def refuse(path):
        raise ValueError("this recipe cannot be built")

    with pytest.raises(ValueError, match="cannot be built"):
        artifact.make(tmp_path / "a", ORIGIN | {"section": {}}, refuse, resumable=True)
    assert artifact.make(tmp_path / "a", ORIGIN, build, resumable=True).facts == {"letters": 5}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:30]),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"size": 3', b'"size": 1')),  # one bit
    ],
    ids=["missing", "empty", "cut short", "a bit flipped"],
)
def test_work_with_an_unreadable_origin_is_resumed(tmp_path, damage):
    """The disk may take origin.json alone; a resumable build verifies what it finds, so nothing else need be lost."""
    partial = leave_unfinished(tmp_path / "a", ORIGIN, resumable=True)
    before = (partial / "origin.json").read_bytes()
    damage(partial / "origin.json")
    assert not (partial / "origin.json").exists() or (partial / "origin.json").read_bytes() != before

    def go_on(path):
        return {"origin": artifact.read_origin(path), "found": (path / "work" / "step-100" / "model").read_text()}

    made = artifact.make(tmp_path / "a", ORIGIN, go_on, resumable=True)
    assert made.facts == {"origin": ORIGIN, "found": "days of work"}
    assert not list(made.path.glob("origin.json*"))


def _slow_build(path: Path) -> dict:
    with (path.parent / "builds.log").open("a") as log:
        log.write("built\n")
    time.sleep(0.5)
    return build(path)


def _make(path: Path) -> None:
    artifact.make(path, ORIGIN, _slow_build)


def _never_made(path: Path) -> None:
    def endless_build(path: Path) -> dict:
        (path.parent / "begun").touch()
        time.sleep(600)
        return {}

    artifact.make(path, ORIGIN, endless_build)


def test_two_processes_build_the_same_artifact_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make, args=(tmp_path / "a",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "builds.log").read_text() == "built\n"


PARTS = [f"part-{number}" for number in range(5)]


def _race(root: Path, barrier) -> None:
    """A hundred artifacts, each begun at the moment at which the other process begins it."""

    def build_slowly(path: Path) -> dict:
        for name in PARTS:
            (path / name).write_text(f"{os.getpid()}")
            time.sleep(random.random() / 500)
        return {"by": os.getpid()}

    for number in range(100):
        barrier.wait(60)
        made = artifact.make(root / str(number), ORIGIN, build_slowly)
        assert {(made.path / name).read_text() for name in PARTS} == {str(made.facts["by"])}


def test_in_a_hundred_races_one_process_builds_and_readers_see_only_complete_artifacts(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    racers = [context.Process(target=_race, args=(tmp_path, barrier)) for _ in range(2)]
    for racer in racers:
        racer.start()
    reads = 0
    while any(racer.is_alive() for racer in racers):
        for path in tmp_path.iterdir():
            if path.name.isdecimal():
                read = artifact.load(path)
                assert {(path / name).read_text() for name in PARTS} == {str(read.facts["by"])}
                reads += 1
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    builders = {artifact.load(tmp_path / str(number)).facts["by"] for number in range(100)}
    assert builders <= {racer.pid for racer in racers} and reads > 100
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]


def test_a_killed_builder_leaves_no_artifact_and_blocks_nobody(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_never_made, args=(tmp_path / "a",))
    process.start()
    while not (tmp_path / "begun").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "a").exists() and (tmp_path / "a.partial").exists()
    artifact.make(tmp_path / "a", ORIGIN, build)
    assert not (tmp_path / "a.partial").exists()


def test_files_fingerprint_depends_on_names_and_content(tmp_path):
    (tmp_path / "x").write_text("1")
    (tmp_path / "y").write_text("1")
    x, y = tmp_path / "x", tmp_path / "y"
    assert artifact.files_fingerprint({"a": x}) == artifact.files_fingerprint({"a": y})
    assert artifact.files_fingerprint({"a": x}) != artifact.files_fingerprint({"b": x})
    before = artifact.files_fingerprint({"a": x})
    x.write_text("2")
    assert artifact.files_fingerprint({"a": x}) != before
