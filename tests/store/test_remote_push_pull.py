"""Push and pull of artifacts, between stores and by the commands."""

import json
import logging
import multiprocessing
import time
import uuid
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS
from store.remotes import AT_ONCE, CONTENT, ORIGIN, content, failing, flip, make, pull

from bert_pipeline.cli import main
from bert_pipeline.store import artifact, remote
from bert_pipeline.store.artifact import ArtifactError
from bert_pipeline.store.object_store import RemoteError, open_store
from bert_pipeline.store.remote import Remote


@pytest.fixture(params=["file", "memory"])
def each_tier(request, shared):
    url = f"file://{shared}" if request.param == "file" else f"memory://{uuid.uuid4().hex}/prefix"
    return Remote(open_store(url, AT_ONCE))


def test_another_machine_pulls_instead_of_building(each_tier, tmp_path, caplog):
    here = make(tmp_path / "here", each_tier)
    there = pull(tmp_path / "there", each_tier)
    assert content(there.path) == content(here.path) and there.record == here.record
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.pulling"))
    assert pull(tmp_path / "there", each_tier) == there
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_after_a_push_or_pull_the_remote_gets_no_more_requests(shared, tmp_path):
    remote, store = failing(shared, lambda *call: None)
    make(tmp_path / "here", remote)
    pull(tmp_path / "there", remote)
    store.calls.clear()
    make(tmp_path / "here", remote)
    pull(tmp_path / "there", remote)
    assert not store.calls
    elsewhere, other = failing(tmp_path, lambda *call: None)  # a new remote gets its own requests
    make(tmp_path / "here", elsewhere)
    assert other.calls


def test_files_that_artifacts_share_are_stored_once(tier, shared, tmp_path):
    make(tmp_path / "a", tier)
    before = len(list((shared / "blobs").iterdir()))
    grown = CONTENT | {"part/shard-2": b"2" * 50, "part/shard-3": b"0" * 3000}
    pushed = tier.push(make(tmp_path / "b", None, grown, ORIGIN | {"code_version": "2"}))
    assert len(list((shared / "blobs").iterdir())) - before == 2 == pushed["sent_files"]  # shard-2 and the record
    record = (tmp_path / "b" / "record.json").stat().st_size
    assert pushed["sent_bytes"] == 50 + record
    assert pushed["bytes"] == sum(len(content) for content in grown.values()) + record
    assert content(pull(tmp_path / "c", tier, ORIGIN | {"code_version": "2"}).path) == content(tmp_path / "b")


def test_the_same_content_built_twice_is_pushed_once(tier, tmp_path):
    make(tmp_path / "first", tier)
    time.sleep(0.002)
    second = make(tmp_path / "second", None)
    assert second.record["made"] != artifact.load(tmp_path / "first").record["made"]
    assert tier.push(second)["sent_files"] == 0


def test_different_content_under_one_name_is_refused(tier, shared, tmp_path, caplog):
    first = make(tmp_path / "first", tier)
    second = make(tmp_path / "second", None, CONTENT | {"part/shard-0": b"other"})
    with pytest.raises(RemoteError, match="1 files differ, among them part/shard-0; both are kept; remedy: remove"):
        tier.push(second)
    make(tmp_path / "second", tier)
    assert "was not pushed" in caplog.text and str(tmp_path / "second") in caplog.text
    assert content(pull(tmp_path / "there", tier).path) == content(first.path)


def _race(root: Path, out: Path, files: dict[str, bytes], barrier, told) -> None:
    made = make(out, None, files)
    tier = Remote(open_store(f"file://{root}", AT_ONCE))
    barrier.wait(PATIENCE_SECONDS)
    try:
        tier.push(made)
        told.put((out.name, ""))
    except RemoteError as error:
        told.put((out.name, str(error)))


@pytest.mark.parametrize("alike", [pytest.param(True, marks=pytest.mark.slow), False])
def test_of_two_concurrent_pushes_different_content_is_refused(tier, shared, tmp_path, alike):
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.Queue()
    files = {name: CONTENT | ({} if alike else {"vocab.txt": name.encode()}) for name in ("a", "b")}
    processes = [
        context.Process(target=_race, args=(shared, tmp_path / name, files[name], barrier, told)) for name in files
    ]
    for process in processes:
        process.start()
    answers = dict(told.get(timeout=PATIENCE_SECONDS) for _ in processes)
    for process in processes:
        process.join()
    winners = [name for name, error in answers.items() if not error]
    assert len(winners) == (2 if alike else 1)
    assert all("have different content" in error for error in answers.values() if error)
    pulled = content(pull(tmp_path / "c", tier).path)
    assert pulled in [content(tmp_path / name) for name in winners]


def test_a_pull_removes_unfinished_work_of_the_same_artifact(tier, tmp_path):
    make(tmp_path / "here", tier)

    def interrupted(path):
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.make(tmp_path / "there", ORIGIN, interrupted, resumable=True)
    assert (tmp_path / "there.partial" / "half").exists()
    there = artifact.make(tmp_path / "there", ORIGIN, interrupted, resumable=True, tier=tier)
    assert content(there.path) == content(tmp_path / "here") and not (tmp_path / "there.partial").exists()


def test_load_pulls_a_missing_artifact(shared, tmp_path, monkeypatch):
    place = tmp_path / "store" / "tokenizer" / artifact.fingerprint(ORIGIN)
    monkeypatch.delenv("BERT_PIPELINE_REMOTE", raising=False)
    assert remote.from_environment() is None
    with pytest.raises(ArtifactError, match="no artifact"):
        remote.load(tmp_path / "store", "tokenizer", place.name)
    monkeypatch.setenv("BERT_PIPELINE_REMOTE", f"file://{shared}")
    with pytest.raises(ArtifactError, match="no artifact"):
        remote.load(tmp_path / "store", "tokenizer", place.name)
    here = make(tmp_path / "here", remote.from_environment())
    assert remote.load(tmp_path / "store", "tokenizer", place.name).record == here.record
    assert content(place) == content(here.path)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_push_and_pull_commands(shared, tmp_path, monkeypatch, capsys, caplog):
    store = tmp_path / "home" / "artifacts"
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BERT_PIPELINE_REMOTE", "")
    code, _, err = run(capsys, "push")
    assert code == 1 and "BERT_PIPELINE_REMOTE is not set; remedy" in err
    monkeypatch.setenv("BERT_PIPELINE_REMOTE", f"file://{shared}")
    task = artifact.origin("evaluation/MedNLI", {}, {}, "1")
    for origin in (ORIGIN, task):
        (store / origin["kind"]).mkdir(parents=True)
        make(store / origin["kind"] / artifact.fingerprint(origin), None, origin=origin)
    inner = store / "tokenizer" / artifact.fingerprint(ORIGIN) / "runs"
    make(inner, None, {}, artifact.origin("run", {}, {}, "1"))  # part of another artifact, not one of the store's
    code, out, _ = run(capsys, "push", "--json")
    assert code == 0 and {facts["kind"] for facts in json.loads(out)} == {"tokenizer", "evaluation/MedNLI"}
    code, out, _ = run(capsys, "push")
    assert code == 0 and out == f"2 artifacts are in file://{shared}, 0 bytes were sent\n"

    arguments = ("pull", "evaluation/MedNLI", artifact.fingerprint(task))
    code, out, _ = run(capsys, *arguments, "--out", tmp_path / "there")
    assert code == 0 and str(tmp_path / "there") in out
    assert content(tmp_path / "there") == content(store / "evaluation" / "MedNLI" / artifact.fingerprint(task))
    code, _, err = run(capsys, "pull", "tokenizer", "0" * 16, "--out", tmp_path / "none")
    assert code == 1 and "has no tokenizer 0000000000000000; remedy" in err
    code, _, err = run(capsys, "pull", "evaluation/../../x", "0" * 16)
    assert code == 1 and "names no artifact; remedy" in err

    flip(store / "tokenizer" / artifact.fingerprint(ORIGIN) / "record.json")
    code, out, err = run(capsys, "push")
    assert code == 1 and out.startswith("1 artifacts are in") and "1 of 2 artifacts were not sent" in err
    assert "record.json is damaged" in caplog.text


def test_a_stage_command_uses_the_remote(shared, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "mine.toml"
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"Aspirin relieved pain {n}. Dose {n} was given." for n in range(20))
    )
    recipe.write_text(f'corpus = {{ path = "{tmp_path}/text.txt", heldout_fraction = 0.2 }}\n')
    monkeypatch.setenv("BERT_PIPELINE_REMOTE", f"file://{shared}")
    for name in ("a", "b"):
        code, _, _ = run(capsys, "raw-corpus", "--recipe", recipe, "--out", tmp_path / name / "raw_corpus")
        assert code == 0
    assert content(tmp_path / "a" / "raw_corpus") == content(tmp_path / "b" / "raw_corpus")  # the record, too
