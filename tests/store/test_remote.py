import errno
import itertools
import json
import logging
import multiprocessing
import os
import signal
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.cli import main
from bert_pipeline.core.files import cached_digest
from bert_pipeline.store import artifact, manifest, remote
from bert_pipeline.store.artifact import Artifact, ArtifactError
from bert_pipeline.store.object_store import Folder, Persistent, RemoteError, open_store
from bert_pipeline.store.remote import Remote
from bert_pipeline.web.connections import Patience
from bert_pipeline.web.downloads import DiskError

AT_ONCE = Patience(attempts=3, first_pause=0.0)
ORIGIN = artifact.origin("tokenizer", {"size": 3}, {"raw_corpus": "abc"}, "1")
KEY = f"tokenizer/{artifact.fingerprint(ORIGIN)}.json"
CONTENT = {"vocab.txt": b"a\nb\n", "part/shard-0": b"0" * 3000, "part/shard-1": b"1" * 2000, "empty": b""}


def write(files: dict[str, bytes]):
    def build(path: Path) -> dict:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return {"files": len(files)}

    return build


def make(path: Path, tier: Remote | None, files: dict[str, bytes] = CONTENT, origin: dict = ORIGIN) -> Artifact:
    return artifact.make(path, origin, write(files), tier=tier)


def pull(path: Path, tier: Remote, origin: dict = ORIGIN) -> Artifact:
    """The artifact as another machine has it, which cannot build it."""
    return artifact.make(path, origin, lambda out: pytest.fail("it was not pulled"), tier=tier)


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Failing(Folder):
    """A folder that does what `fault(operation, key, calls)` says before each operation."""

    def __init__(self, root: Path, fault) -> None:
        super().__init__(root)
        self.fault, self.calls = fault, []

    def _before(self, operation, key):
        self.calls.append((operation, key))
        self.fault(operation, key, len(self.calls))

    def size(self, key):
        self._before("size", key)
        return super().size(key)

    def read(self, key):
        self._before("read", key)
        return super().read(key)

    def create(self, key, content):
        self._before("create", key)
        return super().create(key, content)

    def put(self, path, key, on_bytes):
        self._before("put", key)
        super().put(path, key, on_bytes)

    def get(self, key, path, on_bytes):
        self._before("get", key)
        super().get(key, path, on_bytes)


def failing(root: Path, fault, patience: Patience = AT_ONCE) -> tuple[Remote, Failing]:
    store = Failing(root, fault)
    return Remote(Persistent(store, f"file://{root}", patience)), store


@pytest.fixture
def shared(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def tier(shared):
    return Remote(open_store(f"file://{shared}", AT_ONCE))


@pytest.fixture(params=["file", "memory"])
def each_tier(request, shared):
    url = f"file://{shared}" if request.param == "file" else f"memory://{uuid.uuid4().hex}/prefix"
    return Remote(open_store(url, AT_ONCE))


def test_what_one_machine_made_another_need_not_build(each_tier, tmp_path, caplog):
    here = make(tmp_path / "here", each_tier)
    there = pull(tmp_path / "there", each_tier)
    assert content(there.path) == content(here.path) and there.record == here.record
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.pulling"))
    assert pull(tmp_path / "there", each_tier) == there
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_was_pushed_or_pulled_is_not_asked_for_again(shared, tmp_path):
    remote, store = failing(shared, lambda *asked: None)
    make(tmp_path / "here", remote)
    pull(tmp_path / "there", remote)
    store.calls.clear()
    make(tmp_path / "here", remote)
    pull(tmp_path / "there", remote)
    assert not store.calls
    elsewhere, other = failing(tmp_path, lambda *asked: None)  # what another remote has is not known
    make(tmp_path / "here", elsewhere)
    assert other.calls


def test_files_that_artifacts_share_are_there_once(tier, shared, tmp_path):
    make(tmp_path / "a", tier)
    before = len(list((shared / "blobs").iterdir()))
    grown = CONTENT | {"part/shard-2": b"2" * 50, "part/shard-3": b"0" * 3000}
    pushed = tier.push(make(tmp_path / "b", None, grown, ORIGIN | {"code_version": "2"}))
    assert len(list((shared / "blobs").iterdir())) - before == 2 == pushed["sent_files"]  # shard-2 and the record
    record = (tmp_path / "b" / "record.json").stat().st_size
    assert pushed["sent_bytes"] == 50 + record
    assert pushed["bytes"] == sum(len(content) for content in grown.values()) + record
    assert content(pull(tmp_path / "c", tier, ORIGIN | {"code_version": "2"}).path) == content(tmp_path / "b")


def test_an_upload_that_is_cut_shows_nothing_and_is_gone_on_with(tier, shared, tmp_path, caplog):
    def cut(operation, key, calls):
        if operation == "put" and len(list((shared / "blobs").glob("*"))) >= 2:
            raise ConnectionResetError("cut")

    broken, _ = failing(shared, cut)
    here = make(tmp_path / "here", broken)
    assert (
        "was not pushed: cannot write" in caplog.text and "remedy: run it again when the store answers" in caplog.text
    )
    assert not (shared / KEY).exists() and not tier.pull("tokenizer", here.fingerprint, tmp_path / "there")
    pushed = tier.push(here)
    assert 0 < pushed["sent_files"] < pushed["files"] == 5
    assert content(pull(tmp_path / "there", tier).path) == content(here.path)
    assert not list(shared.rglob("*.draft"))


def test_the_next_make_sends_what_the_last_one_could_not(tier, shared, tmp_path):
    def down(*asked):
        raise TimeoutError("no answer")

    broken, store = failing(shared, down)
    make(tmp_path / "here", broken)
    assert len(store.calls) == 3 + 1  # once it was given up, it is asked but once
    assert artifact.load(tmp_path / "here").facts == {"files": 4} and not list(shared.iterdir())
    make(tmp_path / "here", tier)
    pull(tmp_path / "there", tier)


@settings(max_examples=15)
@given(st.lists(st.booleans(), max_size=60))
def test_whatever_fails_a_manifest_promises_only_what_is_there(tmp_path_factory, failures):
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


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"0"), Path.unlink], ids=["bit", "cut", "gone"])
def test_a_damaged_blob_is_never_taken_and_is_mended_by_who_builds(tier, shared, tmp_path, caplog, damage):
    make(tmp_path / "here", tier)
    digest = cached_digest(tmp_path / "here" / "part" / "shard-0")
    damage(shared / "blobs" / digest)
    built = make(tmp_path / "there", tier)  # pulled in vain, built, pushed
    assert {name: built.path.joinpath(name).read_bytes() for name in CONTENT} == CONTENT
    assert f"{shared}/blobs/{digest}" in caplog.text and "remedy:" in caplog.text
    assert content(pull(tmp_path / "third", tier).path) == content(tmp_path / "here")


def test_a_record_that_the_first_builder_alone_has_cannot_be_mended(tier, shared, tmp_path, caplog):
    make(tmp_path / "here", tier)
    (shared / "blobs" / cached_digest(tmp_path / "here" / "record.json")).unlink()
    time.sleep(0.002)  # so that the other record's time is another
    make(tmp_path / "there", tier)
    assert f"{KEY} names {tier.url}/blobs/" in caplog.text and "remedy: remove the manifest there" in caplog.text
    (shared / KEY).unlink()
    tier.push(artifact.load(tmp_path / "there"))
    assert content(pull(tmp_path / "third", tier).path) == content(tmp_path / "there")


def test_of_two_contents_under_one_name_the_first_stays_and_the_second_is_named(tier, shared, tmp_path, caplog):
    first = make(tmp_path / "first", tier)
    second = make(tmp_path / "second", None, CONTENT | {"part/shard-0": b"other"})
    with pytest.raises(RemoteError, match="1 files differ, among them part/shard-0; both are kept; remedy: remove"):
        tier.push(second)
    make(tmp_path / "second", tier)
    assert "was not pushed" in caplog.text and str(tmp_path / "second") in caplog.text
    assert content(pull(tmp_path / "there", tier).path) == content(first.path)


def test_the_same_content_built_twice_is_the_same(tier, tmp_path):
    make(tmp_path / "first", tier)
    time.sleep(0.002)
    second = make(tmp_path / "second", None)
    assert second.record["made"] != artifact.load(tmp_path / "first").record["made"]
    assert tier.push(second)["sent_files"] == 0


def test_a_damaged_shard_is_not_pushed(tier, shared, tmp_path):
    shard = {"bytes": 5, "sha256": artifact.hashlib.sha256(b"whole").hexdigest()}
    entry = {"name": "shard-0", "fingerprint": "f", "files": {"shard-0": shard}, "facts": {}}
    line = json.dumps(entry | {"check": artifact.fingerprint(entry)})
    index = f'{line}\n{{"shards": 1}}\n'.encode()
    made = make(tmp_path / "here", None, {"shard-0": b"whole", "shards.jsonl": index})
    flip(made.path / "shard-0")
    with pytest.raises(ArtifactError, match="shard-0 is missing, or not what was made; remedy"):
        tier.push(made)
    assert not list(shared.iterdir())
    (made.path / "shard-0").write_bytes(b"whole")
    assert tier.push(made)["sent_files"] == 3


def forged(files: dict, origin: dict = ORIGIN) -> bytes:
    """A manifest that is whole, of these files."""
    found = {"origin": origin, "files": files}
    return json.dumps(found | {"check": artifact.fingerprint(found)}).encode()


BLOB = {"bytes": 4, "sha256": artifact.hashlib.sha256(b"evil").hexdigest()}


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"[]",
        b'{"origin": {}',
        forged({}, ORIGIN | {"code_version": "2"}),
        forged({"../evil": BLOB}),
        forged({"/evil": BLOB}),
        forged({"a/../../evil": BLOB}),
        forged({"": BLOB}),
        forged({"evil": BLOB | {"sha256": "../evil"}}),
        forged({"evil": BLOB | {"bytes": -1}}),
        forged({"evil": BLOB | {"mode": 1}}),
        forged({"evil": BLOB}).replace(b'"bytes": 4', b'"bytes": 5'),
    ],
    ids=range(12),
)
def test_a_manifest_that_is_not_what_was_written_is_refused(tier, shared, tmp_path, caplog, written):
    (shared / "blobs").mkdir()
    (shared / "blobs" / BLOB["sha256"]).write_bytes(b"evil")
    (shared / KEY).parent.mkdir()
    (shared / KEY).write_bytes(written)
    with pytest.raises(RemoteError, match=rf"{KEY} is damaged \(.*\); remedy: remove it there"):
        tier.pull("tokenizer", artifact.fingerprint(ORIGIN), tmp_path / "store" / "there")
    assert make(tmp_path / "here", tier).facts == {"files": 4}, "it is built"
    assert not [path for path in tmp_path.rglob("evil*") if path.parent.name != "blobs"]


def test_a_manifest_of_files_that_are_no_artifact_is_refused(tier, shared, tmp_path):
    (shared / "blobs").mkdir()
    (shared / "blobs" / BLOB["sha256"]).write_bytes(b"evil")
    (shared / KEY).parent.mkdir()
    (shared / KEY).write_bytes(forged({"evil": BLOB}))
    with pytest.raises(ArtifactError, match="no artifact"):
        tier.pull("tokenizer", artifact.fingerprint(ORIGIN), tmp_path / "there")
    assert not (tmp_path / "there").exists() and make(tmp_path / "there", tier).facts == {"files": 4}


WHOLE = manifest.Manifest(ORIGIN, {"a": manifest.Blob(3, "0" * 64), "b/c": manifest.Blob(0, "1" * 64)})


@given(st.integers(0, len(WHOLE.dump()) - 1), st.binary(max_size=3), st.integers(0, 9))
def test_a_manifest_is_read_as_it_was_written_or_not_at_all(position, inserted, removed):
    written = WHOLE.dump()
    damaged = written[:position] + inserted + written[position + removed :]
    try:
        assert manifest.parse(damaged) == WHOLE
    except (ValueError, KeyError, TypeError, AttributeError):
        assert damaged != written


def test_a_full_disk_is_named_and_what_has_arrived_is_kept(tier, shared, tmp_path):
    here, asked_for = make(tmp_path / "here", tier), itertools.count()

    def fill(operation, key, calls):
        if operation == "get" and next(asked_for) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    full, _ = failing(shared, fill)
    with pytest.raises(DiskError, match="remedy: make room"):
        make(tmp_path / "there", full)
    assert not (tmp_path / "there").exists() and not (tmp_path / "there.partial").exists()
    again, store = failing(shared, lambda *asked: None)
    assert content(pull(tmp_path / "there", again).path) == content(here.path)
    assert [operation for operation, _ in store.calls].count("get") < 5


def test_what_cannot_fit_is_not_begun(tier, shared, tmp_path):
    (shared / KEY).parent.mkdir()
    (shared / KEY).write_bytes(forged({"large": BLOB | {"bytes": 10**18}}))
    with pytest.raises(DiskError, match="bytes are free, and 1,000,000,000,000,000,000 are to be pulled; remedy"):
        make(tmp_path / "here", tier)


def test_unfinished_work_goes_when_the_finished_is_pulled(tier, tmp_path):
    make(tmp_path / "here", tier)

    def interrupted(path):
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.make(tmp_path / "there", ORIGIN, interrupted, resumable=True)
    assert (tmp_path / "there.partial" / "half").exists()
    there = artifact.make(tmp_path / "there", ORIGIN, interrupted, resumable=True, tier=tier)
    assert content(there.path) == content(tmp_path / "here") and not (tmp_path / "there.partial").exists()


class Stuck(Folder):
    """Lets some transfers through, and hangs at the next."""

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
    deadline = time.monotonic() + 60
    while not (shared / "stuck").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    while len(list((shared / "blobs").glob("[!.]*"))) < 2:  # drafts begin with a dot
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    (shared / "stuck").unlink()


def test_a_killed_push_and_a_killed_pull_are_gone_on_with(tier, shared, tmp_path):
    kill_when_stuck(shared, tmp_path / "here")
    here = artifact.load(tmp_path / "here")
    assert not (shared / KEY).exists() and not tier.pull("tokenizer", here.fingerprint, tmp_path / "x")
    assert tier.push(here)["sent_files"] == 3
    kill_when_stuck(shared, tmp_path / "there")
    assert not (tmp_path / "there").exists() and (tmp_path / "there.pulling").exists()
    again, store = failing(shared, lambda *asked: None)
    assert content(pull(tmp_path / "there", again).path) == content(here.path)
    assert [operation for operation, _ in store.calls].count("get") == 3
    assert not (tmp_path / "there.pulling").exists()


def _race(root: Path, out: Path, files: dict[str, bytes], barrier, told) -> None:
    made = make(out, None, files)
    tier = Remote(open_store(f"file://{root}", AT_ONCE))
    barrier.wait(60)
    try:
        tier.push(made)
        told.put((out.name, ""))
    except RemoteError as error:
        told.put((out.name, str(error)))


@pytest.mark.parametrize("alike", [pytest.param(True, marks=pytest.mark.slow), False])
def test_two_processes_that_push_at_once_agree_or_one_is_refused(tier, shared, tmp_path, alike):
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.Queue()
    files = {name: CONTENT | ({} if alike else {"vocab.txt": name.encode()}) for name in ("a", "b")}
    processes = [
        context.Process(target=_race, args=(shared, tmp_path / name, files[name], barrier, told)) for name in files
    ]
    for process in processes:
        process.start()
    answers = dict(told.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    winners = [name for name, error in answers.items() if not error]
    assert len(winners) == (2 if alike else 1)
    assert all("has another content than" in error for error in answers.values() if error)
    pulled = content(pull(tmp_path / "c", tier).path)
    assert pulled in [content(tmp_path / name) for name in winners]


def test_a_share_that_is_not_mounted_is_named_and_not_made(tmp_path, caplog):
    tier = Remote(open_store(f"file://{tmp_path}/share", AT_ONCE))
    make(tmp_path / "here", tier)
    assert f"{tmp_path}/share is not there" in caplog.text and "mount the share" in caplog.text
    assert not (tmp_path / "share").exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("bucket/prefix", "is no remote store; remedy: name it as s3://bucket/prefix"),
        ("sftp://host/folder", "is no remote store"),
        ("file://relative/folder", "is no remote store"),
        ("s3://", "is no remote store"),
        ("s3://AKIA123:very/secret@bucket/prefix", "credentials or options is refused; remedy"),
        ("https://user:very/secret@host/prefix", "credentials or options is refused"),
        ("s3://bucket/prefix?token=very/secret", "credentials or options is refused"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url, told):
    with pytest.raises(RemoteError) as refused:
        open_store(url, AT_ONCE)
    assert told in str(refused.value) and "secret" not in str(refused.value) and "AKIA" not in str(refused.value)


def test_what_a_store_says_is_told_in_one_line_without_credentials(shared, tmp_path):
    def forge(*asked):
        raise ConnectionError("lost http://me:s3cret/x@host/b?X-Amz-Signature=s3cret\n\x1b[31mINFO all is well")

    broken, _ = failing(shared, forge)
    with pytest.raises(RemoteError) as refused:
        broken.push(make(tmp_path / "here", None))
    told = str(refused.value)
    assert "s3cret" not in told and "\n" not in told and "\x1b" not in told and "http://host/b" in told
    assert told.startswith(f"cannot read file://{shared}/{KEY}: ConnectionError")


def test_the_store_of_a_machine_is_filled_from_the_remote(shared, tmp_path, monkeypatch):
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


def test_push_and_pull_by_hand(shared, tmp_path, monkeypatch, capsys, caplog):
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
    make(inner, None, {}, artifact.origin("run", {}, {}, "1"))  # a part of its artifact, none of the store's
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


def test_a_stage_by_hand_uses_the_remote(shared, tmp_path, monkeypatch, capsys):
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
