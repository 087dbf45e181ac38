"""The remote tier against a real S3 API server, moto's, in a process of its own."""

import io
import logging
import multiprocessing
import os
import queue
import random
import shutil
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from bert_pipeline.store import artifact, object_store
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.store.object_store import RemoteError, open_store
from bert_pipeline.store.remote import Remote
from bert_pipeline.web.connections import Patience

pytestmark = pytest.mark.slow

AT_ONCE = Patience(attempts=3, first_pause=0.01)
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
log = logging.getLogger(__name__)

SECRET = "canary/canary-canary"


def credentials(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "AKIACANARY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


@pytest.fixture(scope="module")
def server():
    """The port of an empty server."""
    pytest.importorskip("moto", reason="needs moto, of the extra dev")
    pytest.importorskip("s3fs", reason="needs s3fs, of the extra s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,))
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    assert process.is_alive(), "moto's server does not answer"
    yield port
    process.kill()


def _serve(port: int) -> None:
    """Moto takes a request that is cut, in its headers or its body, for the whole; this refuses it, as S3 does."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def strict(environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or (0 if environ["REQUEST_METHOD"] in ("GET", "HEAD") else 1))
        body = environ["wsgi.input"].read(length)
        if len(body) < length:
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [b"<Error><Code>IncompleteBody</Code></Error>"]
        return moto(environ | {"wsgi.input": io.BytesIO(body)}, start_response)

    make_server("127.0.0.1", port, strict, threaded=True).serve_forever()


@pytest.fixture
def url(server, monkeypatch, request):
    import s3fs

    for name, value in credentials(f"http://127.0.0.1:{server}").items():
        monkeypatch.setenv(name, value)
    bucket = request.node.name.replace("_", "-")[:60].strip("-")
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/prefix"


def make(path: Path, tier: Remote | None, files: dict[str, bytes], name: object = "") -> Artifact:
    def build(out: Path) -> dict:
        for name, content in files.items():
            (out / name).write_bytes(content)
        return {}

    return artifact.make(path, artifact.origin("tokenizer", {"name": name}, {}, "1"), build, tier=tier)


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def remote(url: str) -> Remote:
    return Remote(open_store(url, AT_ONCE))


def test_files_of_zero_and_many_parts_are_restored(url, tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    files = {"empty": b"", "large": random.Random(1).randbytes((23 << 20) + 7), "small": b"1", "same": b"1"}
    here = make(tmp_path / "here", None, files)
    pushed = remote(url).push(here)
    assert pushed["sent_files"] == 4 and remote(url).push(here)["sent_files"] == 0
    assert remote(url).pull("tokenizer", here.fingerprint, tmp_path / "there")
    assert content(tmp_path / "there") == content(here.path)


def _write_races(url: str, root: Path, writer: int, races: int, environment: dict, barrier, told) -> None:
    os.environ.update(environment)
    tier = remote(url)
    for race in range(races):
        made = make(root / f"{race}-{writer}", None, {"shared": b"s", "mine": f"{race} of {writer}".encode()}, race)
        barrier.wait(120)
        try:
            tier.push(made)
            told.put((race, writer, made.fingerprint, ""))
        except RemoteError as error:
            told.put((race, writer, made.fingerprint, str(error)))


def test_of_four_writers_one_wins(server, url, tmp_path):
    races, writers = 30, 4
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(writers), context.Queue()
    environment = credentials(f"http://127.0.0.1:{server}")
    processes = [
        context.Process(target=_write_races, args=(url, tmp_path, writer, races, environment, barrier, told))
        for writer in range(writers)
    ]
    for process in processes:
        process.start()
    answers = []
    while len(answers) < races * writers:
        try:
            answers.append(told.get(timeout=120))
        except queue.Empty:
            break
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    won: dict[int, list] = {}
    for race, writer, fingerprint, error in answers:
        if error:
            assert "have different content" in error and "remedy" in error
        else:
            won.setdefault(race, []).append((writer, fingerprint))
    assert len(answers) == races * writers and len(won) == races
    tier = remote(url)
    for race, winners in won.items():
        [(writer, fingerprint)] = winners
        assert tier.pull("tokenizer", fingerprint, tmp_path / f"{race}-pulled")
        assert content(tmp_path / f"{race}-pulled") == content(tmp_path / f"{race}-{writer}")
    assert len({writer for [(writer, _)] in won.values()}) > 1, "it was no race"


class Proxy:
    """Between client and server: of each connection it may drop what comes after some bytes, or say it is busy."""

    def __init__(self, port: int) -> None:
        self._server, self.random = port, random.Random()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.faults = self._listener.getsockname()[1], 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        fault = self.random.choice(["none", "busy", "request cut", "answer cut"])
        self.faults += fault != "none"
        limit = int(10 ** self.random.uniform(1, 6))
        if fault == "busy":
            with client:
                client.recv(1 << 16)
                client.sendall(BUSY)
            return
        server = socket.create_connection(("127.0.0.1", self._server))
        pumps = [(client, server, limit if fault == "request cut" else None)]
        pumps += [(server, client, limit if fault == "answer cut" else None)]
        threads = [threading.Thread(target=self._pump, args=pump, daemon=True) for pump in pumps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while chunk := source.recv(1 << 16):
                if limit is not None and passed + len(chunk) > limit:
                    target.sendall(chunk[: limit - passed])
                    break
                target.sendall(chunk)
                passed += len(chunk)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def test_network_faults_never_show_a_partial_artifact(server, url, tmp_path, monkeypatch, caplog):
    """100 schedules of faults; in every tenth, files of several parts."""
    import s3fs

    monkeypatch.setattr(object_store, "PART_BYTES", 5 << 20)
    files = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{server}", use_listings_cache=False)
    direct, outcomes, proxy = remote(url), {"pushed": 0, "not pushed": 0, "pulled": 0, "built": 0}, Proxy(server)
    direct.pull("tokenizer", "0" * 16, tmp_path / "none")  # connects, before the address changes
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    through = remote(url)
    for seed in range(100):
        proxy.random.seed(seed)
        chance = random.Random(seed)
        given = {f"file-{n}": chance.randbytes(30_000 + n) for n in range(2)}
        given["large"] = chance.randbytes((11 << 20) if seed % 10 == 0 else 100_000)
        here = make(tmp_path / "here", through, given, seed)
        is_there = files.exists(f"{url.removeprefix('s3://')}/tokenizer/{here.fingerprint}.json")
        outcomes["pushed" if is_there else "not pushed"] += 1
        assert direct.pull("tokenizer", here.fingerprint, tmp_path / "there") == is_there
        if is_there:
            assert content(tmp_path / "there") == content(here.path)
            shutil.rmtree(tmp_path / "there")
        direct.push(here)  # the next one sends what is missing
        if through.try_pull("tokenizer", here.fingerprint, tmp_path / "there"):
            outcomes["pulled"] += 1
            assert content(tmp_path / "there") == content(here.path)
        else:
            outcomes["built"] += 1
            assert not (tmp_path / "there").exists()
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    proxy.close()
    blobs = files.ls(f"{url.removeprefix('s3://')}/blobs", detail=False)
    assert all(artifact.hashlib.sha256(files.cat_file(blob)).hexdigest() == blob.rpartition("/")[2] for blob in blobs)
    assert len(blobs) == 400 and proxy.faults > 100 and min(outcomes.values()) > 0, outcomes
    assert SECRET not in caplog.text and "AKIACANARY" not in caplog.text
    log.info("%s after %d faults", outcomes, proxy.faults)


def _push(url: str, path: Path, environment: dict) -> None:
    os.environ.update(environment)
    object_store.PART_BYTES = 5 << 20
    remote(url).push(artifact.load(path))


def test_a_push_killed_at_random_moments_is_resumed(server, url, tmp_path):
    files = {f"file-{n}": random.Random(n).randbytes(12 << 20) for n in range(6)}
    here, environment = make(tmp_path / "here", None, files), credentials(f"http://127.0.0.1:{server}")
    chance, killed = random.Random(7), 0
    for _ in range(5):
        process = multiprocessing.get_context("spawn").Process(target=_push, args=(url, here.path, environment))
        process.start()
        process.join(chance.uniform(1.0, 3.0))
        if process.is_alive():
            process.kill()
            killed += 1
        process.join(60)
        there = tmp_path / "there"
        if remote(url).pull("tokenizer", here.fingerprint, there):
            assert content(there) == content(here.path)
            shutil.rmtree(there)
    assert killed
    remote(url).push(here)
    assert remote(url).pull("tokenizer", here.fingerprint, tmp_path / "there")
    assert content(tmp_path / "there") == content(here.path)


def test_an_unreachable_server_and_a_missing_bucket_are_errors(url, tmp_path, monkeypatch, caplog):
    missing = remote("s3://no-such-bucket/prefix")
    make(tmp_path / "a", missing, {"file": b"1"})
    assert "cannot write s3://no-such-bucket/prefix/blobs/" in caplog.text
    assert "does not exist; remedy: create the bucket" in caplog.text
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        gone = remote(url)
        make(tmp_path / "b", gone, {"file": b"1"}, "b")
    assert f"was not pulled and is built instead: cannot read {url}/tokenizer/" in caplog.text
    assert "was not pushed" in caplog.text and "remedy: run again when the store answers" in caplog.text
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteError, match=r"NoCredentialsError.*remedy: check the credentials"):
        remote(url).push(artifact.load(tmp_path / "b"))
    assert SECRET not in caplog.text and "AKIACANARY" not in caplog.text
