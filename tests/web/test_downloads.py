"""Downloads from a local server that cuts connections, fails, sends wrong data and redirects."""

import dataclasses
import hashlib
import random
import socket
import subprocess
import time

import pytest
from misbehaving_server import Answer, Handler, misbehaving_server

from bert_pipeline.web import connections, downloads
from bert_pipeline.web.connections import DownloadError, Patience
from bert_pipeline.web.downloads import DiskError, fetch, read

CONTENT = random.Random(3).randbytes(300_000)
OTHER = random.Random(4).randbytes(300_000)
V1 = {"etag": '"1"', "last_modified": "Thu, 29 Jan 2026 19:48:11 GMT"}
HASTY = Patience(first_pause=0.001)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def site():
    with misbehaving_server() as site:
        yield site


@pytest.fixture(params=[len(CONTENT), None], ids=["size known", "size unknown"])
def num_bytes(request):
    return request.param


def fetch_content(site, to, num_bytes=300_000, patience=HASTY, **more):
    return fetch(site.url("/f"), to / "f", sha256(CONTENT), num_bytes=num_bytes, patience=patience, **more)


def test_a_file_arrives(site, tmp_path, num_bytes):
    site.answers["/f"] = [Answer(CONTENT, **V1)]
    counts = []
    assert fetch_content(site, tmp_path, num_bytes, on_bytes=counts.append) == "2026-01-29"
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert site.requests == [("/f", None)]
    assert sum(counts) == len(CONTENT)
    assert site.headers[0]["User-Agent"].startswith("bert-pipeline")


def test_a_right_file_is_kept_and_a_wrong_one_is_a_partial_download(site, tmp_path, num_bytes):
    site.answers["/f"] = [Answer(CONTENT, **V1)]
    (tmp_path / "f").write_bytes(CONTENT)
    fetch_content(site, tmp_path, num_bytes)
    assert site.requests == []
    (tmp_path / "f").write_bytes(CONTENT[:123_456])
    fetch_content(site, tmp_path, num_bytes)
    assert site.requests == [("/f", "bytes=123456-")]
    (tmp_path / "f").write_bytes(OTHER)
    fetch_content(site, tmp_path, num_bytes)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [0, None, "chunked"])
@pytest.mark.parametrize("version", [V1, {"etag": '"1"'}, {"last_modified": V1["last_modified"]}, {}])
def test_a_cut_transfer_resumes_at_the_last_byte(length, version, site, tmp_path, num_bytes):
    answer = Answer(CONTENT, length=length, **version)
    site.answers["/f"] = [*(dataclasses.replace(answer, cut_at=at) for at in (100_000, 250_000)), answer]
    fetch_content(site, tmp_path, num_bytes)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.requests == [("/f", None), ("/f", "bytes=100000-"), ("/f", "bytes=250000-")]
    validator = version.get("etag") or version.get("last_modified")
    assert [headers.get("If-Range") for headers in site.headers] == [None, validator, validator]


def test_the_next_run_resumes_the_partial_file(site, tmp_path, num_bytes):
    site.answers["/f"] = [Answer(CONTENT, cut_at=100_000, **V1), Answer(CONTENT, **V1)]
    with pytest.raises(DownloadError, match=r"ended after 100,000 of 300,000 bytes; remedy: run it again"):
        fetch_content(site, tmp_path, num_bytes, Patience(attempts=1))
    assert not (tmp_path / "f").exists()
    assert fetch_content(site, tmp_path, num_bytes) == "2026-01-29"
    assert site.requests[-1] == ("/f", "bytes=100000-") and site.headers[-1]["If-Range"] == '"1"'
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_complete_partial_file_is_not_downloaded_again(site, tmp_path):
    (tmp_path / "f.partial").write_bytes(CONTENT)
    (tmp_path / "f.partial.json").write_text('{"Last-Modified": "Thu, 29 Jan 2026 19:48:11 GMT"}')
    assert fetch_content(site, tmp_path) == "2026-01-29"
    assert site.requests == [] and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_damaged_validators_are_ignored(site, tmp_path):
    (tmp_path / "f.partial").write_bytes(CONTENT[:5])
    (tmp_path / "f.partial.json").write_text('{"ETag": "')
    site.answers["/f"] = [Answer(CONTENT, **V1)]
    fetch_content(site, tmp_path)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_on_the_server_is_downloaded_from_scratch(ignores_if_range, site, tmp_path, num_bytes):
    before = Answer(OTHER, cut_at=100_000, etag='"0"', last_modified="Wed, 28 Jan 2026 19:48:11 GMT")
    site.answers["/f"] = [before, Answer(CONTENT, ignores_if_range=ignores_if_range, **V1)]
    counts = []
    assert fetch_content(site, tmp_path, num_bytes, on_bytes=counts.append) == "2026-01-29"
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(site.requests) == 2 + ignores_if_range
    assert sum(counts) == 400_000, "the rest of the other version is not read"


def test_a_weak_etag_is_not_used_as_validator(site, tmp_path):
    site.answers["/f"] = [Answer(CONTENT, cut_at=100_000, etag='W/"1"'), Answer(CONTENT, etag='W/"1"')]
    fetch_content(site, tmp_path)
    assert site.requests[-1] == ("/f", "bytes=100000-") and "If-Range" not in site.headers[-1]


def test_without_ranges_the_file_is_downloaded_from_scratch(site, tmp_path, num_bytes):
    whole = Answer(CONTENT, ignores_ranges=True)
    site.answers["/f"] = [dataclasses.replace(whole, cut_at=70_000), whole]
    fetch_content(site, tmp_path, num_bytes)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(site.requests) == 2, "the full response is not appended to the partial file"


@pytest.mark.parametrize("left", [b"something else", CONTENT[:-1] + b"?", CONTENT + b"and more"])
def test_a_partial_file_with_other_content_is_discarded(left, site, tmp_path, num_bytes):
    (tmp_path / "f.partial").write_bytes(left)
    site.answers["/f"] = [Answer(CONTENT)]
    fetch_content(site, tmp_path, num_bytes)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_range_that_was_not_requested_is_not_appended(site, tmp_path, num_bytes):
    (tmp_path / "f.partial").write_bytes(CONTENT[:50_000])
    site.answers["/f"] = [Answer(CONTENT, range_begins=40_000)]
    fetch_content(site, tmp_path, num_bytes)
    assert site.requests == [("/f", "bytes=50000-"), ("/f", None)]
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("begins", [0, 5])
def test_a_range_without_a_range_request_is_refused(begins, site, tmp_path):
    headers = {"Content-Range": f"bytes {begins}-299999/300000"}
    site.answers["/f"] = [Answer(CONTENT, status=206, range_begins=begins, headers=headers), Answer(CONTENT)]
    fetch_content(site, tmp_path)
    assert (tmp_path / "f").read_bytes() == CONTENT and len(site.requests) == 2


def test_an_unsatisfiable_range_restarts_the_download(site, tmp_path, num_bytes):
    (tmp_path / "f.partial").write_bytes(CONTENT[:50_000])
    site.answers["/f"] = [Answer(status=416), Answer(CONTENT)]
    fetch_content(site, tmp_path, num_bytes)
    assert site.requests == [("/f", "bytes=50000-"), ("/f", None)]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_retried(status, site, tmp_path):
    site.answers["/f"] = [Answer(status=status), Answer(status=status), Answer(CONTENT)]
    fetch_content(site, tmp_path)
    assert len(site.requests) == 3


@pytest.fixture
def pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    return pauses


def test_pauses_grow_and_attempts_are_limited(site, tmp_path, pauses):
    site.answers["/f"] = [Answer(status=503)]
    with pytest.raises(DownloadError, match=r"the server says 503 Service Unavailable; remedy: "):
        fetch_content(site, tmp_path, patience=Patience())
    assert len(site.requests) == 5
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses)) and len(pauses) == 4
    assert len({pause / 2**n for n, pause in enumerate(pauses)}) == 4, (
        "pauses are random, so that clients do not retry together"
    )


def test_a_pause_is_limited():
    pauses = [Patience(first_pause=1, longest_pause=5).pause(10) for _ in range(100)]
    assert 2.5 <= min(pauses) < max(pauses) <= 5


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "7"}, {"Retry-After": "Thu, 29 Jan 2026 00:00:17 GMT", "Date": "Thu, 29 Jan 2026 00:00:10 GMT"}],
)
def test_retry_after_is_respected(headers, site, tmp_path, pauses, monkeypatch):
    monkeypatch.setattr(Handler, "send_response", Handler.send_response_only)
    site.answers["/f"] = [Answer(status=503, headers=headers), Answer(CONTENT)]
    fetch_content(site, tmp_path)
    assert pauses == [7.0]


@pytest.mark.parametrize("value", ["", "soon", "-5", "Thu, 31 Feb 2026 00:00:17 GMT", "²"])
def test_an_invalid_retry_after_is_ignored(value, site, tmp_path, pauses):
    site.answers["/f"] = [Answer(status=503, headers={"Retry-After": value}), Answer(CONTENT)]
    fetch_content(site, tmp_path, patience=Patience(first_pause=1))
    assert len(pauses) == 1 and 0.5 <= pauses[0] <= 1, "the pause of a server that asks for none"


@pytest.mark.parametrize("value", ["601", "9" * 400])
def test_a_long_retry_after_ends_the_attempts(value, site, tmp_path):
    site.answers["/f"] = [Answer(status=503, headers={"Retry-After": value})]
    with pytest.raises(DownloadError, match=r"503 Service Unavailable, and asks to retry after (601|inf) s; remedy: "):
        fetch_content(site, tmp_path)
    assert len(site.requests) == 1


def test_a_silent_server_times_out(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="timed out; remedy"):
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/f"
        fetch(url, tmp_path / "f", sha256(CONTENT), patience=Patience(attempts=2, first_pause=0.001, silence=0.05))


def test_a_slow_drip_is_abandoned_and_its_bytes_are_kept(site, tmp_path):
    drips = Answer(CONTENT, drip=0.01, drips_at=100_000, **V1)
    site.answers["/f"] = [drips, Answer(CONTENT, **V1)]
    counts = []
    patience = Patience(attempts=50, first_pause=0.001, stall=0.2)  # attempts, for a busy machine stalls, too
    fetch_content(site, tmp_path, patience=patience, on_bytes=counts.append)
    assert len(site.requests) > 1 and sum(counts) == len(CONTENT)


def test_a_dripping_header_is_abandoned(site, tmp_path):
    site.answers["/f"] = [Answer(CONTENT, drip=0.01, drips_header=True)]
    with pytest.raises(DownloadError, match=r"TimeoutError: stalled: \d+ bytes in [\d.]+ s; remedy"):
        fetch_content(site, tmp_path, patience=Patience(attempts=1, stall=0.2))


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_missing_file_is_not_retried(status, site, tmp_path):
    site.answers["/f"] = [Answer(status=status)]
    with pytest.raises(DownloadError, match=rf"/f: the server says {status} .* remedy: "):
        fetch_content(site, tmp_path)
    assert len(site.requests) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"?", CONTENT + b"and more"])
def test_wrong_content_is_refused_and_deleted(content, site, tmp_path):
    site.answers["/f"] = [Answer(content)]
    with pytest.raises(DownloadError, match=rf"wrong content: sha256 is [0-9a-f]*, not {sha256(CONTENT)} \("):
        fetch_content(site, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(site.requests) == 1


def test_wrong_content_is_quarantined_and_downloaded_again(site, tmp_path):
    site.answers["/f"] = [Answer(OTHER), Answer(OTHER), Answer(OTHER), Answer(CONTENT)]
    fetch_content(site, tmp_path, None, quarantine=tmp_path / "aside" / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert (tmp_path / "aside" / "f").read_bytes() == OTHER
    (tmp_path / "f").unlink()
    site.requests.clear()
    site.answers["/f"] = [Answer(OTHER)]
    with pytest.raises(DownloadError, match="wrong content: "):
        fetch_content(site, tmp_path, None, quarantine=tmp_path / "aside" / "f")
    assert len(site.requests) == 4, "one download and three more"


def test_a_content_length_that_is_too_short_or_too_long(site, tmp_path):
    site.answers["/f"] = [Answer(CONTENT, length=1000)]
    fetch_content(site, tmp_path, None)
    assert (tmp_path / "f").read_bytes() == CONTENT, "the digest decides"
    (tmp_path / "f").unlink()
    site.answers["/f"] = [Answer(CONTENT, length=-1000), Answer(CONTENT)]
    with pytest.raises(DownloadError, match=r"wrong content: .* \(299,000 bytes"):
        fetch_content(site, tmp_path, None)


def test_an_endless_response_is_cut_off(site, tmp_path, monkeypatch, num_bytes):
    monkeypatch.setattr(downloads, "MAX_BYTES", len(CONTENT) + 1)
    site.answers["/f"] = [Answer(CONTENT * 100)]
    with pytest.raises(DownloadError, match=r"wrong content: .* \(300,001 bytes"):
        fetch_content(site, tmp_path, num_bytes)


def test_an_html_page_does_not_replace_the_partial_file(site, tmp_path):
    page = Answer(b"<html>maintenance</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    site.answers["/f"] = [Answer(CONTENT, cut_at=100_000, **V1), page, Answer(CONTENT, **V1)]
    fetch_content(site, tmp_path)
    assert site.requests[-1] == ("/f", "bytes=100000-")
    site.answers["/g"] = [page]
    with pytest.raises(
        DownloadError, match=r"/g: HTTPException: the server sent an HTML page \(text/html\) instead of the file"
    ):
        fetch(site.url("/g"), tmp_path / "g", sha256(CONTENT), patience=HASTY)


def test_a_reset_and_a_server_that_is_not_there(site, tmp_path):
    site.answers["/f"] = [Answer(CONTENT, cut_at=100_000, resets=True, **V1), Answer(CONTENT, **V1)]
    fetch_content(site, tmp_path)
    assert (tmp_path / "f").read_bytes() == CONTENT and len(site.requests) == 2
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch(f"http://127.0.0.1:{port}/g", tmp_path / "g", sha256(CONTENT), patience=HASTY)


def test_a_name_that_does_not_resolve(tmp_path):
    with pytest.raises(DownloadError, match=r"no-such-host\.invalid/f: URLError: .*; remedy: run it again later"):
        fetch("https://no-such-host.invalid/f", tmp_path / "f", sha256(CONTENT), patience=Patience(attempts=1))


def test_redirects_are_followed_but_limited(site, tmp_path):
    site.answers["/f"] = [Answer(status=302, headers={"Location": "/g"})]
    site.answers["/g"] = [Answer(CONTENT)]
    fetch_content(site, tmp_path)
    assert (tmp_path / "f").read_bytes() == CONTENT
    (tmp_path / "f").unlink()
    site.requests.clear()
    site.answers["/g"] = [Answer(status=302, headers={"Location": "/f"})]
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch_content(site, tmp_path)
    assert len(site.requests) == 5


@pytest.mark.parametrize("location", ["http://example.org/f", "ftp://example.org/f", "http://127.0.0.1.example.org/f"])
def test_redirects_away_from_https_are_refused(location, site, tmp_path):
    site.answers["/f"] = [Answer(status=302, headers={"Location": location})]
    with pytest.raises(DownloadError, match=r"example.org/f: refused because it is not https"):
        fetch_content(site, tmp_path)


@pytest.mark.parametrize("location", ["http://[::1", "http://127.0.0.1:x/", "//", "http://127.0.0.1:99999/"])
def test_an_invalid_redirect_is_retried(location, site, tmp_path):
    site.answers["/f"] = [Answer(status=302, headers={"Location": location}), Answer(CONTENT)]
    fetch_content(site, tmp_path)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_redirect_to_a_local_file_is_refused(site, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    site.answers["/f"] = [Answer(status=302, headers={"Location": f"file://{tmp_path}/secret"})]
    with pytest.raises(DownloadError):
        fetch_content(site, tmp_path)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    "url", ["http://example.org/f", "ftp://127.0.0.1/f", "file:///etc/hostname", "http://localhost.org"]
)
def test_only_https_is_allowed(url, tmp_path):
    with pytest.raises(DownloadError, match="refused because it is not https"):
        fetch(url, tmp_path / "f", sha256(CONTENT), num_bytes=len(CONTENT))


def test_untrusted_certificates_are_refused(tmp_path, monkeypatch):
    certificate = tmp_path / "certificate"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    try:
        command = ["openssl", "req", *kind, *names, "-keyout", certificate, "-out", tmp_path / "public"]
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here to make a certificate with")
    with certificate.open("a") as file:
        file.write((tmp_path / "public").read_text())
    with misbehaving_server(certificate) as site:
        site.answers["/f"] = [Answer(CONTENT)]
        url = site.url("/f").replace("http:", "https:")
        with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url, tmp_path / "f", sha256(CONTENT), patience=Patience(attempts=1))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public"))
        fetch(url, tmp_path / "f", sha256(CONTENT), patience=HASTY)
        assert (tmp_path / "f").read_bytes() == CONTENT


def test_credentials_are_neither_sent_nor_shown(site, tmp_path):
    url = site.url("/f").replace("127", "me:secret@127")
    site.answers["/g"] = [Answer(status=302, headers={"Location": url})]
    for asked in (url, site.url("/g")):
        with pytest.raises(DownloadError, match="a URL with credentials is refused; remedy") as caught:
            fetch(asked, tmp_path / "f", sha256(CONTENT))
        assert "secret" not in str(caught.value)


def test_a_full_disk_ends_the_download(site, small_disk):
    content = random.Random(5).randbytes(2_000_000)
    site.answers["/f"] = [Answer(content)]
    with pytest.raises(DiskError, match=r"No space left on device; remedy: free disk space.*/f\.partial"):
        fetch(site.url("/f"), small_disk / "f", sha256(content), patience=HASTY)
    assert len(site.requests) == 1 and (small_disk / "f.partial").stat().st_size > 500_000


def test_server_messages_are_made_printable(site, tmp_path):
    site.answers["/f"] = [Answer(status=403, reason="\x1b[2J\u00e9")]
    with pytest.raises(DownloadError) as caught:
        fetch_content(site, tmp_path)
    assert str(caught.value).isprintable() and str(caught.value).isascii()


def test_a_small_response_is_retried_until_it_is_complete(site):
    whole = Answer(b"55")
    site.answers["/n"] = [Answer(status=503), Answer(b"55", cut_at=1), Answer(b"five"), whole]
    assert read(site.url("/n"), int, HASTY) == 55
    assert len(site.requests) == 4
    site.answers["/n"] = [Answer(b"x")]
    with pytest.raises(DownloadError, match=r"/n: ValueError: invalid literal .*; remedy: run it again later"):
        read(site.url("/n"), int, HASTY)


def test_an_endless_small_response_is_cut_off(site, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES_READ", 10)
    site.answers["/n"] = [Answer(b"5" * 1000, length=None)]
    with pytest.raises(DownloadError, match="the response is larger than 10 bytes"):
        read(site.url("/n"), int, HASTY)


CLASSES = {
    "503 and Retry-After": lambda rng: {"status": 503, "content": b"", "headers": {"Retry-After": "0"}},
    "429": lambda rng: {"status": 429, "content": b""},
    "200 to a range": lambda rng: {"ignores_ranges": True, "cut_at": rng.randrange(20_000)},
    "206 of another range": lambda rng: {"range_begins": rng.randrange(20_000), "cut_at": rng.randrange(20_000)},
    "416": lambda rng: {"status": 416, "content": b""},
    "cut": lambda rng: {"cut_at": rng.randrange(20_000)},
    "another version": lambda rng: {"etag": '"0"', "content": rng.randbytes(20_000), "cut_at": rng.randrange(20_000)},
    "length too short": lambda rng: {"length": -rng.randrange(1, 20_000)},
    "length too long": lambda rng: {"length": rng.randrange(1, 20_000), "cut_at": rng.randrange(20_000)},
    "drip": lambda rng: {"drip": 0.005, "drips_at": rng.randrange(20_000)},
    "redirections for ever": lambda rng: {"status": 302, "content": b"", "headers": {"Location": "/f"}},
    "page": lambda rng: {"content": b"<html>", "headers": {"Content-Type": "text/html"}, "ignores_ranges": True},
    "reset": lambda rng: {"cut_at": rng.randrange(20_000), "resets": True},
    "no length, cut": lambda rng: {"cut_at": rng.randrange(20_000), "length": None},
    "chunked, cut": lambda rng: {"cut_at": rng.randrange(20_000), "length": "chunked"},
    "other content": lambda rng: {"content": rng.randbytes(20_000), "etag": rng.choice(['"0"', '"1"'])},
}
"""The faults among the 13 of the fault table that a server can produce, and three more."""
RANGES_WORK = {"503 and Retry-After", "429", "cut", "length too long", "drip", "page", "reset", "chunked, cut"}


def run_schedule(site, tmp_path, seed):
    """Random faults, then a correct response: expect the right content or a DownloadError. Return which it was."""
    rng = random.Random(seed)
    content = rng.randbytes(20_000)
    right = Answer(content, **V1)
    names = rng.choices([*CLASSES], k=rng.randint(1, 6))
    path = tmp_path / f"f{seed}"
    site.requests.clear()
    site.answers["/f"] = [dataclasses.replace(right, **CLASSES[name](rng)) for name in names] + [right]
    arrived = []
    patience = Patience(first_pause=0.0001, stall=0.05 if "drip" in names else 60)
    quarantine = tmp_path / "aside" if rng.random() < 0.5 else None
    try:
        fetch(
            site.url("/f"),
            path,
            hashlib.md5(content).hexdigest(),
            algorithm="md5",
            num_bytes=rng.choice([len(content), None]),
            quarantine=quarantine,
            patience=patience,
            on_bytes=arrived.append,
        )
        is_right = True
    except DownloadError as error:
        is_right = False
        assert "/f: " in str(error) and "; remedy: " in str(error), names
        assert not path.exists(), names
    if is_right:
        assert path.read_bytes() == content, names
        assert not [left for left in tmp_path.iterdir() if left.name.startswith(f"{path.name}.")], names
    if "redirections for ever" not in names:
        assert len(site.requests) <= 5, names
    if set(names) <= RANGES_WORK:
        assert sum(arrived) <= 1.2 * len(content), names
        assert is_right or len(names) >= 5 or "drip" in names  # for a busy machine stalls, too
    return is_right, sum(arrived) / len(content), set(names) <= RANGES_WORK


@pytest.mark.parametrize("seed", range(30))
def test_random_schedules_of_faults(seed, site, tmp_path):
    run_schedule(site, tmp_path, seed)


@pytest.mark.slow
def test_five_hundred_random_schedules(site, tmp_path, capsys):
    began = time.monotonic()
    outcomes = [run_schedule(site, tmp_path, seed) for seed in range(1000, 1500)]
    right = sum(is_right for is_right, *_ in outcomes)
    most = max(share for _, share, ranges_work in outcomes if ranges_work)
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\n{right} right, {500 - right} named; at most {most:.3f} x bytes where ranges work; {seconds:.0f} s")
    assert 100 < right < 500 and 0.99 <= most <= 1.2


def test_default_patience_matches_the_fault_table():
    assert connections.DEFAULT_PATIENCE.attempts == 5 and connections.DEFAULT_PATIENCE.stall == 60
