"""Downloads against a real server on this machine that cuts, fails, lies and redirects."""

import hashlib
import http.server
import json
import random
import re
import socket
import threading
import tomllib
from dataclasses import dataclass, field

import pytest

from bert_pipeline.cli import main
from bert_pipeline.evaluation import download
from bert_pipeline.evaluation.download import DownloadError, Source, download_blurb, fetch, load_sources
from bert_pipeline.evaluation.tasks import TaskError

CONTENT = random.Random(3).randbytes(300_000)
TYPED = b"Aspirin\tB-Chemical\nhelps\tO\n\nB-12\tB-Chemical\nacid\tI-Chemical\n\n"
PLAIN = b"Aspirin\tB\nhelps\tO\n\nB-12\tB\nacid\tI\n\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """What a path answers, answer after answer; the last one stays."""

    port: int = 0
    answers: dict[str, list[dict]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE_SECONDS", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.requests.append((self.path, self.headers.get("Range")))
            answers = site.answers.get(self.path, [{"status": 404}])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            content = answer.get("content", b"")
            status, begin = answer.get("status", 200), 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if status == 200 and asked and not answer.get("ignores_ranges"):
                status, begin = 206, int(asked[1])
            self.send_response(status)
            if status == 206:
                first = answer.get("range_begins", begin)
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            if "location" in answer:
                self.send_header("Location", answer["location"])
            if not answer.get("says_no_length"):
                self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin : answer.get("cut_at")])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.port = server.server_address[1]
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def fetch_content(site, path, to):
    fetch(site.url(path), sha256(CONTENT), len(CONTENT), to)


def test_a_file_arrives(site, tmp_path):
    site.answers["/f"] = [{"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert site.requests == [("/f", None)]


@pytest.mark.parametrize("says_no_length", [False, True])
def test_a_cut_connection_is_taken_up_where_it_broke(says_no_length, site, tmp_path):
    cuts = [{"content": CONTENT, "cut_at": at, "says_no_length": says_no_length} for at in (100_000, 250_000)]
    site.answers["/f"] = [*cuts, {"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.requests == [("/f", None), ("/f", "bytes=100000-"), ("/f", "bytes=250000-")]


def test_the_next_run_takes_up_what_this_one_left(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.answers["/f"] = [{"content": CONTENT, "cut_at": 100_000}, {"content": CONTENT}]
    with pytest.raises(DownloadError, match=r"ended after 100,000 of 300,000 bytes; remedy: run it again"):
        fetch_content(site, "/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()
    fetch_content(site, "/f", tmp_path / "f")
    assert site.requests[-1] == ("/f", "bytes=100000-")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_server_without_ranges_begins_again(site, tmp_path):
    whole = {"content": CONTENT, "ignores_ranges": True}
    site.answers["/f"] = [whole | {"cut_at": 70_000}, whole]
    fetch_content(site, "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(site.requests) == 2, "the whole answer is not appended to what lay there"


@pytest.mark.parametrize("left", [b"something else", CONTENT[:-1] + b"?", CONTENT + b"and more"])
def test_what_lay_there_of_another_file_is_thrown_away(left, site, tmp_path):
    (tmp_path / "f.partial").write_bytes(left)
    site.answers["/f"] = [{"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_range_that_was_not_asked_for_is_not_appended(site, tmp_path):
    (tmp_path / "f.partial").write_bytes(CONTENT[:50_000])
    site.answers["/f"] = [{"content": CONTENT, "range_begins": 40_000}, {"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert site.requests == [("/f", "bytes=50000-")] * 2


def test_an_unsatisfiable_range_begins_again(site, tmp_path):
    (tmp_path / "f.partial").write_bytes(CONTENT[:50_000])
    site.answers["/f"] = [{"status": 416}, {"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert site.requests == [("/f", "bytes=50000-"), ("/f", None)]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status, site, tmp_path):
    site.answers["/f"] = [{"status": status}, {"status": status}, {"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert len(site.requests) == 3


def test_patience_ends_and_grows(site, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    site.answers["/f"] = [{"status": 503}]
    with pytest.raises(DownloadError, match=r"the server says 503 Service Unavailable; remedy: "):
        fetch_content(site, "/f", tmp_path / "f")
    assert len(site.requests) == download.ATTEMPTS
    assert pauses == [0.001 * 2**n for n in range(download.ATTEMPTS - 1)]


def test_a_silent_server_is_left_and_asked_again(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="timed out; remedy"):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/f", sha256(CONTENT), len(CONTENT), tmp_path / "f")


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_not_there_is_not_asked_for_again(status, site, tmp_path):
    site.answers["/f"] = [{"status": status}]
    with pytest.raises(DownloadError, match=rf"/f: the server says {status} .* remedy: "):
        fetch_content(site, "/f", tmp_path / "f")
    assert len(site.requests) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"?", CONTENT + b"and more"])
def test_other_content_is_refused_and_not_kept(content, site, tmp_path):
    site.answers["/f"] = [{"content": content}]
    with pytest.raises(DownloadError, match=rf"not {sha256(CONTENT)}: the content is another"):
        fetch_content(site, "/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    assert len(site.requests) == 1


def test_an_endless_answer_is_left(site, tmp_path, monkeypatch):
    site.answers["/f"] = [{"content": CONTENT * 100}]
    monkeypatch.setattr(download, "_sha256", lambda path: str(path.stat().st_size))
    with pytest.raises(DownloadError, match=f"sha256 is {len(CONTENT) + 1}, not"):
        fetch_content(site, "/f", tmp_path / "f")


def test_redirections_are_followed(site, tmp_path):
    site.answers["/f"] = [{"status": 302, "location": "/g"}]
    site.answers["/g"] = [{"content": CONTENT}]
    fetch_content(site, "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["http://example.org/f", "ftp://example.org/f", "http://127.0.0.1.example.org/f"])
def test_redirections_to_what_is_not_https_are_refused(location, site, tmp_path):
    site.answers["/f"] = [{"status": 302, "location": location}]
    with pytest.raises(DownloadError, match=r"example.org/f: not https, and refused"):
        fetch_content(site, "/f", tmp_path / "f")


def test_a_redirection_to_a_file_is_refused(site, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    site.answers["/f"] = [{"status": 302, "location": f"file://{tmp_path}/secret"}]
    with pytest.raises(DownloadError):
        fetch_content(site, "/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    "url", ["http://example.org/f", "ftp://127.0.0.1/f", "file:///etc/hostname", "http://localhost.org"]
)
def test_only_https_is_spoken(url, tmp_path):
    with pytest.raises(DownloadError, match="not https, and refused"):
        fetch(url, sha256(CONTENT), len(CONTENT), tmp_path / "f")


def source(site, path, becomes, content, form="as it is", **more):
    pinned = {"url": site.url(path), "sha256": sha256(content), "num_bytes": len(content), "form": form}
    row = {"terms": "free", "cite": "Us", "page": "https://example.org", "downloads": [pinned | {"becomes": becomes}]}
    return Source.model_validate_json(json.dumps(row | more))


def test_sets_are_fetched_made_and_found_again(site, tmp_path):
    site.answers = {"/devel.tsv": [{"content": TYPED}], "/train.tsv": [{"content": CONTENT}]}
    sources = {
        "Chem": source(site, "/devel.tsv", {"dev.tsv": sha256(PLAIN)}, TYPED, "tags without types"),
        "Raw": source(site, "/train.tsv", {"train.tsv": sha256(CONTENT)}, CONTENT),
    }
    facts = download_blurb(tmp_path, sources=sources)
    assert [each["state"] for each in facts.values()] == ["fetched", "fetched"]
    assert facts["Chem"]["files"] == {"dev.tsv": sha256(PLAIN)}
    assert (tmp_path / "Chem" / "dev.tsv").read_bytes() == PLAIN
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "Chem/dev.tsv",
        "Raw/train.tsv",
    ]
    (tmp_path / "Raw" / "train.tsv").write_bytes(b"spoilt")
    facts = download_blurb(tmp_path, sources=sources)
    assert [each["state"] for each in facts.values()] == ["found", "fetched"]
    assert [path for path, _ in site.requests] == ["/devel.tsv", "/train.tsv", "/train.tsv"]


def test_terms_come_first(site, tmp_path):
    site.answers["/f"] = [{"content": CONTENT}]
    sources = {"Own": source(site, "/f", {"dev.tsv": sha256(CONTENT)}, CONTENT, must_accept=True)}
    facts = download_blurb(tmp_path, sources=sources)
    assert facts["Own"]["state"] == "not fetched" and "--accept-terms" in facts["Own"]["why_not"]
    assert not site.requests
    assert download_blurb(tmp_path, ["Own"], accept_terms=True, sources=sources)["Own"]["state"] == "fetched"


def test_one_failure_leaves_the_others_whole_and_is_told_in_the_end(site, tmp_path):
    site.answers["/f"] = [{"content": CONTENT}]
    right = {"dev.tsv": sha256(CONTENT)}
    sources = {
        "Gone": source(site, "/gone", right, CONTENT),
        "Other": source(site, "/f", {"dev.tsv": sha256(b"other")}, CONTENT),
        "Here": source(site, "/f", right, CONTENT),
    }
    with pytest.raises(DownloadError, match=r"Gone: .*404.*; Other: .*though what was fetched is right"):
        download_blurb(tmp_path, sources=sources)
    assert (tmp_path / "Here" / "dev.tsv").read_bytes() == CONTENT
    assert not (tmp_path / "Other" / "dev.tsv").exists()


def test_pubmedqa_is_split_as_its_authors_split_it():
    """500 and ten folds, each answer by itself. On their own questions the manifest's hashes prove it byte for byte."""
    answers = ["yes"] * 552 + ["no"] * 338 + ["maybe"] * 110
    random.Random(1).shuffle(answers)
    questions = {str(n): {"QUESTION": f"{n}?", "final_decision": answer} for n, answer in enumerate(answers)}
    names = ["train_set.json", "dev_set.json", "test_set.json"]
    made = download.FORMS["PubMedQA's split"](json.dumps(questions).encode(), names)
    splits = {name: json.loads(content) for name, content in made.items()}
    assert [len(splits[name]) for name in names] == [450, 50, 500]
    assert {id_: row for split in splits.values() for id_, row in split.items()} == questions
    for name, share in zip(names, (0.45, 0.05, 0.5), strict=True):
        of_yes = sum(row["final_decision"] == "yes" for row in splits[name].values())
        assert abs(of_yes - 552 * share) < 2
    assert made["dev_set.json"].startswith(b'{\n    "')


def test_the_manifest_is_pinned_and_complete():
    sources = load_sources()
    assert len(sources) == 13
    for name, each in sources.items():
        assert bool(each.downloads) != bool(each.why_not), name
        for pinned in each.downloads:
            assert re.match(r"https://raw\.githubusercontent\.com/[\w-]+/[\w.-]+/[0-9a-f]{40}/", pinned.url), pinned.url
            assert all(re.fullmatch("[0-9a-f]{64}", known) for known in pinned.becomes.values())
            assert all(re.fullmatch(r"[a-z_]+\.(tsv|json)", file) for file in pinned.becomes), (
                "no way out of the folder"
            )
            assert (pinned.form == "as it is") == (pinned.sha256 in pinned.becomes.values())
        made = [file for pinned in each.downloads for file in pinned.becomes]
        splits = ["train_set.json", "dev_set.json", "test_set.json"] if name == "PubMedQA" else None
        assert not made or made == (splits or ["train.tsv", "dev.tsv", "test.tsv"])


def test_the_command(tmp_path, capsys):
    names = [name for name, each in tomllib.loads(download.MANIFEST.read_text()).items() if "why_not" in each]
    assert main(["download-blurb", "--out", str(tmp_path), "--json", "--task", *names]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["BioASQ"]["why_not"] == "BioASQ asks for a registration" and "bioasq.org" in facts["BioASQ"]["page"]
    assert main(["download-blurb", "--out", str(tmp_path), "--task", "BC2GM"]) == 0
    assert "--accept-terms" in capsys.readouterr().out
    assert main(["download-blurb", "--out", str(tmp_path), "--task", "bioask"]) == 1
    assert "no set is named bioask; remedy: name some of BC5CDR-chem" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(TaskError):
        download_blurb(tmp_path, ["BLUE"])
