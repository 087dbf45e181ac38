"""The remote tier when transfers, disks, processes, blobs or addresses fail."""

import errno
import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import eventually
from store.remotes import AT_ONCE, BLOB, CONTENT, KEY, ORIGIN, content, failing, flip, forged, make, pull, write

from bert_pipeline.core.files import cached_digest
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError
from bert_pipeline.store.object_store import Folder, Persistent, RemoteError, open_store
from bert_pipeline.store.remote import Remote
from bert_pipeline.web.downloads import DiskError


def test_an_interrupted_push_is_invisible_and_the_next_one_completes_it(tier, shared, tmp_path, caplog):
    def cut(operation, key, calls):
        if operation == "put" and len(list((shared / "blobs").glob("*"))) >= 2:
            raise ConnectionResetError("cut")

    broken, _ = failing(shared, cut)
    here = make(tmp_path / "here", broken)
    assert "was not pushed: cannot write" in caplog.text and "remedy: run again when the store answers" in caplog.text
    assert not (shared / KEY).exists() and not tier.pull("tokenizer", here.fingerprint, tmp_path / "there")
    pushed = tier.push(here)
    assert 0 < pushed["sent_files"] < pushed["files"] == 5
    assert content(pull(tmp_path / "there", tier).path) == content(here.path)
    assert not list(shared.rglob("*.draft"))


def test_the_next_make_pushes_after_a_failed_push(tier, shared, tmp_path):
    def down(*call):
        raise TimeoutError("no answer")

    broken, store = failing(shared, down)
    make(tmp_path / "here", broken)
    assert len(store.calls) == 3 + 1  # 3 attempts, then 1 for each later request
    assert artifact.load(tmp_path / "here").facts == {"files": 4} and not list(shared.iterdir())
    make(tmp_path / "here", tier)
    pull(tmp_path / "there", tier)


@settings(max_examples=15)
@given(st.lists(st.booleans(), max_size=60))
def test_whatever_fails_a_manifest_means_a_complete_artifact(tmp_path_factory, failures):
    root = tmp_path_factory.mktemp("faults")
    (root / "shared").mkdir()
    schedule = iter(failures)

    def fault(operation, key, calls):
        if next(schedule, False):
            raise ConnectionResetError("cut")

    broken, _ = failing(root / "shared", fault)
    here = make(root / "here", broken)
    sound = Remote(open_store(f"file://{root / 'shared'}", AT_ONCE))
    if (root / "shared" / KEY).exists():
        assert content(pull(root / "there", sound).path) == content(here.path)
    else:
        assert not sound.pull("tokenizer", here.fingerprint, root / "there")
    there = artifact.make(root / "elsewhere", ORIGIN, write(CONTENT), tier=broken)
    assert content(there.path).keys() == content(here.path).keys()


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"0"), Path.unlink], ids=["bit", "cut", "gone"])
def test_a_damaged_blob_is_rejected_and_the_next_builder_repairs_it(tier, shared, tmp_path, caplog, damage):
    make(tmp_path / "here", tier)
    digest = cached_digest(tmp_path / "here" / "part" / "shard-0")
    damage(shared / "blobs" / digest)
    built = make(tmp_path / "there", tier)  # pulled in vain, built, pushed
    assert {name: built.path.joinpath(name).read_bytes() for name in CONTENT} == CONTENT
    assert f"{shared}/blobs/{digest}" in caplog.text and "remedy:" in caplog.text
    assert content(pull(tmp_path / "third", tier).path) == content(tmp_path / "here")


def test_a_lost_record_of_another_builder_cannot_be_repaired(tier, shared, tmp_path, caplog):
    make(tmp_path / "here", tier)
    (shared / "blobs" / cached_digest(tmp_path / "here" / "record.json")).unlink()
    time.sleep(0.002)  # so that the two records have different times
    make(tmp_path / "there", tier)
    assert f"{KEY} names {tier.url}/blobs/" in caplog.text and "remedy: remove the manifest there" in caplog.text
    (shared / KEY).unlink()
    tier.push(artifact.load(tmp_path / "there"))
    assert content(pull(tmp_path / "third", tier).path) == content(tmp_path / "there")


def test_a_damaged_shard_is_not_pushed(tier, shared, tmp_path):
    shard = {"bytes": 5, "sha256": artifact.hashlib.sha256(b"whole").hexdigest()}
    entry = {"name": "shard-0", "fingerprint": "f", "files": {"shard-0": shard}, "facts": {}}
    line = json.dumps(entry | {"check": artifact.fingerprint(entry)})
    index = f'{line}\n{{"shards": 1}}\n'.encode()
    made = make(tmp_path / "here", None, {"shard-0": b"whole", "shards.jsonl": index})
    flip(made.path / "shard-0")
    with pytest.raises(ArtifactError, match="shard-0 is missing or changed; remedy"):
        tier.push(made)
    assert not list(shared.iterdir())
    (made.path / "shard-0").write_bytes(b"whole")
    assert tier.push(made)["sent_files"] == 3


def test_a_full_disk_is_an_error_and_arrived_files_are_kept(tier, shared, tmp_path):
    here, gets = make(tmp_path / "here", tier), itertools.count()

    def fill(operation, key, calls):
        if operation == "get" and next(gets) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    full, _ = failing(shared, fill)
    with pytest.raises(DiskError, match="remedy: make room"):
        make(tmp_path / "there", full)
    assert not (tmp_path / "there").exists() and not (tmp_path / "there.partial").exists()
    again, store = failing(shared, lambda *call: None)
    assert content(pull(tmp_path / "there", again).path) == content(here.path)
    assert [operation for operation, _ in store.calls].count("get") < 5


def test_a_pull_that_does_not_fit_does_not_start(tier, shared, tmp_path):
    (shared / KEY).parent.mkdir()
    (shared / KEY).write_bytes(forged({"large": BLOB | {"bytes": 10**18}}))
    with pytest.raises(DiskError, match="bytes are free, but the pull needs 1,000,000,000,000,000,000; remedy"):
        make(tmp_path / "here", tier)


class Stuck(Folder):
    """Lets `allowed` transfers through and hangs at the next."""

    def __init__(self, root: Path, allowed: int) -> None:
        super().__init__(root)
        self.left = allowed

    def put(self, path, key, on_bytes):
        self._hang(key)
        super().put(path, key, on_bytes)

    def get(self, key, path, on_bytes):
        self._hang(key)
        super().get(key, path, on_bytes)

    def _hang(self, key):
        self.left -= 1
        if self.left < 0:
            (self._root / "stuck").touch()
            time.sleep(600)


def _make_stuck(root: Path, out: Path) -> None:
    make(out, Remote(Persistent(Stuck(root, 2), f"file://{root}", AT_ONCE)))


def kill_when_stuck(shared: Path, out: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_make_stuck, args=(shared, out))
    process.start()
    eventually((shared / "stuck").exists)
    eventually(lambda: len(list((shared / "blobs").glob("[!.]*"))) >= 2)  # drafts begin with a dot
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (shared / "stuck").unlink()


def test_a_killed_push_and_a_killed_pull_are_resumed(tier, shared, tmp_path):
    kill_when_stuck(shared, tmp_path / "here")
    here = artifact.load(tmp_path / "here")
    assert not (shared / KEY).exists() and not tier.pull("tokenizer", here.fingerprint, tmp_path / "x")
    assert tier.push(here)["sent_files"] == 3
    kill_when_stuck(shared, tmp_path / "there")
    assert not (tmp_path / "there").exists() and (tmp_path / "there.pulling").exists()
    again, store = failing(shared, lambda *call: None)
    assert content(pull(tmp_path / "there", again).path) == content(here.path)
    assert [operation for operation, _ in store.calls].count("get") == 3
    assert not (tmp_path / "there.pulling").exists()


def test_an_unmounted_share_is_an_error_and_not_created(tmp_path, caplog):
    tier = Remote(open_store(f"file://{tmp_path}/share", AT_ONCE))
    make(tmp_path / "here", tier)
    assert f"{tmp_path}/share does not exist" in caplog.text and "mount the share" in caplog.text
    assert not (tmp_path / "share").exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("bucket/prefix", "is no remote store; remedy: use s3://bucket/prefix"),
        ("sftp://host/folder", "is no remote store"),
        ("file://relative/folder", "is no remote store"),
        ("s3://", "is no remote store"),
        ("s3://AKIA123:very/secret@bucket/prefix", "must not contain credentials or options; remedy"),
        ("https://user:very/secret@host/prefix", "must not contain credentials or options"),
        ("s3://bucket/prefix?token=very/secret", "must not contain credentials or options"),
    ],
)
def test_an_invalid_address_is_refused_without_showing_secrets(url, told):
    with pytest.raises(RemoteError) as refused:
        open_store(url, AT_ONCE)
    assert told in str(refused.value) and "secret" not in str(refused.value) and "AKIA" not in str(refused.value)


def test_errors_of_a_store_are_one_line_without_credentials(shared, tmp_path):
    def forge(*call):
        raise ConnectionError("lost http://me:s3cret/x@host/b?X-Amz-Signature=s3cret\n\x1b[31mINFO all is well")

    broken, _ = failing(shared, forge)
    with pytest.raises(RemoteError) as refused:
        broken.push(make(tmp_path / "here", None))
    told = str(refused.value)
    assert "s3cret" not in told and "\n" not in told and "\x1b" not in told and "http://host/b" in told
    assert told.startswith(f"cannot read file://{shared}/{KEY}: ConnectionError")
