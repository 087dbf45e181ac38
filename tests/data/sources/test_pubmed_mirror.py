"""PubMed mirror against a local server with NLM's layout that misbehaves on purpose."""

import dataclasses
import gzip
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest
from filelock import FileLock
from misbehaving_server import Answer, misbehaving_server
from processes import PATIENCE_SECONDS, eventually

from bert_pipeline.cli import main
from bert_pipeline.data.sources.pubmed.listing import FOLDERS, parse_md5
from bert_pipeline.data.sources.pubmed.mirror import download_pubmed, update_pubmed
from bert_pipeline.web.connections import DownloadError, Patience
from bert_pipeline.web.downloads import DiskError

HASTY = Patience(first_pause=0.001)
RELEASED = "Thu, 29 Jan 2026 23:48:11 -0500"


def name(number, year=26):
    return f"pubmed{year}n{number:04d}.xml.gz"


def content(number, num_bytes=3000):
    return gzip.compress(random.Random(number).randbytes(num_bytes), mtime=0)


def md5_line(number, of=None):
    return f"MD5({name(number)})= {hashlib.md5(of or content(number)).hexdigest()}\n".encode()


def page(names, size="3.0K"):
    """A listing in the form of NLM's Apache server."""
    links = "".join(f'<a href="{escape(each)}">{escape(each)}</a>     2026-01-29 14:48  {size}\n' for each in names)
    head = '<a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a> <hr>'
    up = '<a href="/pubmed/">Parent Directory</a>                             -   \n'
    return Answer(f"<html><body><pre>{head}{up}{links}<hr></pre>\n</body></html>\n".encode())


def publish(site, baseline=(1, 2, 3), updates=(4, 5)):
    for folder, numbers in (("baseline", baseline), ("updatefiles", updates)):
        names = ["README.txt", *(f"{name(number)}{end}" for number in numbers for end in ("", ".md5"))]
        site.answers[f"/{folder}/"] = [page(names)]
        for number in numbers:
            path = f"/{folder}/{name(number)}"
            site.answers[path] = [Answer(content(number), etag=f'"{number}"', last_modified=RELEASED)]
            site.answers[f"{path}.md5"] = [Answer(md5_line(number))]


@pytest.fixture
def site():
    with misbehaving_server() as site:
        publish(site)
        yield site


def mirror(site, out, **more):
    return download_pubmed(out, site.url("/"), patience=HASTY, **more)


def rows(out):
    return [json.loads(line) for line in (out / "files.jsonl").read_text().splitlines()]


def mirrored(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.xml.gz") if "quarantine" not in path.parts)


ALL = [f"baseline/{name(n)}" for n in (1, 2, 3)] + [f"updatefiles/{name(n)}" for n in (4, 5)]
LISTINGS = ["/baseline/", "/updatefiles/"]


def without(*paths):
    return [path for path in ALL if path not in paths]


def test_a_mirror_is_built_and_extended(site, tmp_path):
    out = tmp_path / "deep" / "pubmed"
    facts = mirror(site, out)
    assert mirrored(out) == ALL
    num_bytes = sum(len(content(number)) for number in range(1, 6))
    assert facts == {
        "year": 2026,
        "files": 5,
        "bytes": num_bytes,
        "files_fetched": 5,
        "bytes_fetched": num_bytes,
        "last_released": "2026-01-30",
        "passed_over": [f"{each}: '{other}'" for each in FOLDERS for other in ("/pubmed/", "README.txt")],
        "numbers_left_out": 0,
    }
    assert rows(out)[3] == {
        "name": name(4),
        "folder": "updatefiles",
        "bytes": len(content(4)),
        "md5": hashlib.md5(content(4)).hexdigest(),
        "sha256": hashlib.sha256(content(4)).hexdigest(),
        "released": "2026-01-30",
        "url": site.url(f"/updatefiles/{name(4)}"),
    }
    for number, path in enumerate(ALL, 1):
        assert (out / path).read_bytes() == content(number)
        assert parse_md5((out / f"{path}.md5").read_bytes(), name(number)) == hashlib.md5(content(number)).hexdigest()
    assert [path for path in site.paths() if path not in LISTINGS].count(f"/{ALL[0]}") == 1

    site.requests.clear()
    facts = mirror(site, out)
    assert facts["files_fetched"] == facts["bytes_fetched"] == 0 and site.paths() == LISTINGS

    publish(site, updates=(4, 5, 7))
    site.requests.clear()
    facts = mirror(site, out)
    added = f"updatefiles/{name(7)}"
    assert site.paths() == [*LISTINGS, f"/{added}.md5", f"/{added}"]
    assert facts["files_fetched"] == 1 and facts["numbers_left_out"] == 1
    assert [row["name"] for row in rows(out)] == [name(n) for n in (1, 2, 3, 4, 5, 7)]


def test_an_update_uses_the_source_of_the_mirror_and_starts_no_new_one(site, tmp_path):
    with pytest.raises(DownloadError, match="is not a PubMed mirror; remedy: run `bert-pipeline download-pubmed --out"):
        update_pubmed(tmp_path / "none")
    mirror(site, tmp_path)
    publish(site, updates=(4, 5, 6))
    assert update_pubmed(tmp_path)["files_fetched"] == 1 and rows(tmp_path)[5]["url"].startswith(site.url("/"))


def test_never_more_connections_than_allowed(site, tmp_path):
    publish(site, baseline=range(1, 30))
    for answers in site.answers.values():
        answers[0] = dataclasses.replace(answers[0], drip=0.005, drips_at=len(answers[0].content) - 2)
    mirror(site, tmp_path)
    assert site.most_at_once == 3
    with pytest.raises(ValueError, match="parallel is 0; remedy: use 1 or more"):
        mirror(site, tmp_path, parallel=0)


@pytest.mark.parametrize(
    ("headers", "released"),
    [({}, "2026-01-29"), ({"Last-Modified": "Thu, 31 Feb 2026 00:00:00 GMT"}, "2026-01-29")],
)
def test_without_last_modified_the_day_of_the_listing_is_used(headers, released, site, tmp_path):
    site.answers[f"/{ALL[0]}"] = [Answer(content(1), headers=headers)]
    mirror(site, tmp_path)
    assert rows(tmp_path)[0]["released"] == released


# I1: MD5


def fails(site, out, *matches):
    with pytest.raises(DownloadError) as caught:
        mirror(site, out)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + len(matches), lines
    for line, match in zip(sorted(lines[1:]), sorted(matches), strict=True):
        assert line.strip().startswith(match[0]) and match[1] in line and "; remedy: " in line, line
    return lines[0]


def test_content_with_a_wrong_md5_is_quarantined_and_downloaded_again(site, tmp_path):
    right = site.answers[f"/{ALL[1]}"][0]
    wrong = dataclasses.replace(right, content=content(2)[:-1] + b"?")
    site.answers[f"/{ALL[1]}"] = [wrong, wrong, wrong, right]
    mirror(site, tmp_path)
    assert mirrored(tmp_path) == ALL and (tmp_path / ALL[1]).read_bytes() == content(2)
    assert (tmp_path / "quarantine" / name(2)).read_bytes() == wrong.content


def test_only_the_file_with_a_wrong_md5_fails_after_three_refetches(site, tmp_path):
    site.answers[f"/{ALL[1]}"] = [Answer(content(2)[:-1] + b"?")]
    reported = fails(site, tmp_path, (ALL[1], "wrong content: "))
    assert reported.startswith("failed files: 1 (4 verified files in ")
    assert mirrored(tmp_path) == without(ALL[1]) and len(rows(tmp_path)) == 4
    assert site.paths().count(f"/{ALL[1]}") == 4
    publish(site)
    assert mirror(site, tmp_path)["files_fetched"] == 1, "the next run downloads only this file"


@pytest.mark.parametrize(
    "malformed",
    [
        b"",
        b"d41d8cd98f00b204e9800998ecf8427e",
        md5_line(3).replace(b"0003", b"0004"),
        md5_line(3)[:-2],
        md5_line(3) + md5_line(3),
        b"\xff\x00" * 40,
        b"<html>login</html>",
    ],
)
def test_a_malformed_md5_fails_only_its_file(malformed, site, tmp_path):
    site.answers[f"/{ALL[2]}.md5"] = [Answer(malformed)]
    fails(site, tmp_path, (ALL[2], f"no MD5 of {name(3)} in"))
    assert mirrored(tmp_path) == without(ALL[2])
    assert site.paths().count(f"/{ALL[2]}.md5") == 5 and f"/{ALL[2]}" not in site.paths()


def test_missing_files_fail_alone_and_all_failures_are_reported(site, tmp_path):
    del site.answers[f"/{ALL[0]}"]
    del site.answers[f"/{ALL[3]}.md5"]
    site.answers[f"/{ALL[4]}"] = [Answer(content(5), cut_at=10)]
    fails(
        site,
        tmp_path,
        (ALL[0], ".xml.gz: the server says 404 Not Found"),
        (ALL[3], ".xml.gz.md5: the server says 404 Not Found"),
        (ALL[4], "the connection ended after 10 of"),
    )
    assert mirrored(tmp_path) == ALL[1:3]
    assert (tmp_path / f"{ALL[4]}.partial").exists(), "kept for the next run"


@pytest.mark.parametrize(
    "form", ["MD5({name})= {md5}\n", "MD5 ({name}) = {md5}", "{md5}  {name}\n", "{md5} *{name}\r\n"]
)
def test_forms_of_md5_files(form):
    md5 = hashlib.md5(b"").hexdigest()
    assert parse_md5(form.format(name=name(1), md5=md5).encode(), name(1)) == md5
    assert parse_md5(form.format(name=name(1), md5=md5.upper()).encode(), name(1)) == md5


# I11: many faults of a server at once, each on one file; tests/web/test_downloads.py has the others


def test_each_fault_on_a_file_of_its_own(site, tmp_path):
    publish(site, baseline=range(1, 14), updates=())
    faults = {
        1: {"status": 503, "content": b"", "headers": {"Retry-After": "0"}},
        2: {"cut_at": 1000, "ignores_ranges": True},
        3: {"range_begins": 7},
        4: {"status": 416, "content": b""},
        5: {"cut_at": 2000},
        6: {"cut_at": 2000, "etag": '"before"', "content": content(99)},
        7: {"length": 500},
        8: {"length": -500},
        9: {"cut_at": 2000, "length": "chunked"},
        10: {"status": 302, "headers": {"Location": f"/baseline/{name(10)}"}},
        11: {"content": b"<html>", "headers": {"Content-Type": "text/html"}},
        12: {"cut_at": 1500, "resets": True},
        13: {"status": 302, "headers": {"Location": "https://no-such-host.invalid/"}},
    }
    for number, fault in faults.items():
        right = site.answers[f"/baseline/{name(number)}"][0]
        cut = dataclasses.replace(right, cut_at=500)
        site.answers[f"/baseline/{name(number)}"] = [cut, dataclasses.replace(right, **fault), right]
    del site.answers[f"/baseline/{name(10)}"][-1]  # for ever
    with pytest.raises(DownloadError) as caught:
        mirror(site, tmp_path)
    assert f"{name(10)}: the server says 302" in str(caught.value)
    assert str(caught.value).startswith("failed files: 1 (12 verified files in ")
    for row in rows(tmp_path):
        number = int(row["name"][9:13])
        assert (tmp_path / "baseline" / row["name"]).read_bytes() == content(number)
        assert site.paths().count(f"/baseline/{row['name']}") <= 5


# I12: names


HOSTILE = [
    "../pubmed26n0001.xml.gz",
    "..",
    "%2e%2e/pubmed26n0001.xml.gz",
    "%2e%2e%2fpubmed26n0001.xml.gz",
    "/etc/pubmed26n0001.xml.gz",
    "-pubmed26n0001.xml.gz",
    "--out=x.xml.gz",
    "pubmed26n0001.xml.gz\n",
    "\npubmed26n0001.xml.gz",
    "pubmed26n0001.xml.gz\0",
    "pubmed26n\x000001.xml.gz",
    "pubmed26n" + "0" * 284 + ".xml.gz",
    "pubmed26n\u202e1000.xml.gz",
    "\u202epubmed26n0001.xml.gz",
    "PubMed26n0001.xml.gz",
    "pubmed26n0001.XML.GZ",
    "pubmed26n\u0660\u0660\u0660\u0661.xml.gz",
    "pubmed26n0001.xml.gz.md5.md5",
    "https://example.org/pubmed26n0001.xml.gz",
    "pubmed26n0001.xml.gz/../../x",
]
"""Names as they appear after parsing the page, which changes none of them."""


def test_hostile_names_are_skipped_and_reported(site, tmp_path):
    assert len(HOSTILE) == 20 and len(HOSTILE[11]) == 300
    site.answers["/baseline/"] = [page([*HOSTILE, name(1)])]
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents}
    facts = mirror(site, tmp_path / "out")
    reported = [each for each in facts["passed_over"] if each.startswith("baseline: ")]
    assert reported == ["baseline: '/pubmed/'", *(f"baseline: {each[:80]!a}" for each in HOSTILE)]
    assert all(each.isprintable() and each.isascii() for each in reported)
    assert {path for path in tmp_path.parent.rglob("*") if tmp_path not in path.parents} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert mirrored(tmp_path / "out") == [ALL[0], *ALL[3:]]
    fetched = {f"/{path}{end}" for path in mirrored(tmp_path / "out") for end in ("", ".md5")}
    assert set(site.paths()) == {*LISTINGS, *fetched}


# I13: years


def test_years_are_not_mixed(site, tmp_path):
    mirror(site, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    site.answers["/baseline/"] = [page([name(1, 27)])]
    site.answers["/updatefiles/"] = [page([])]
    with pytest.raises(
        DownloadError, match=r"holds 5 files of another year .* than the server \(2027\).*remedy: use an empty folder"
    ):
        mirror(site, tmp_path)
    site.answers["/updatefiles/"] = [page([name(4)])]
    with pytest.raises(DownloadError, match=r"lists files of the years 26 and 27: .* remedy: run it again when"):
        mirror(site, tmp_path / "other")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path in before} == before
    assert mirrored(tmp_path / "other") == []


# existing files, right and wrong


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", None])
def test_a_damaged_record_is_rebuilt_from_the_files(damage, site, tmp_path):
    mirror(site, tmp_path)
    whole = rows(tmp_path)
    if damage is None:
        (tmp_path / "files.jsonl").unlink()
    else:
        lines = (tmp_path / "files.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "files.jsonl").write_bytes(lines[0] + damage + lines[1][20:] + lines[3])
    facts = mirror(site, tmp_path)
    assert facts["bytes_fetched"] == 0 and mirrored(tmp_path) == ALL
    assert [row | {"released": ""} for row in rows(tmp_path)] == [row | {"released": ""} for row in whole]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": f"{name(1)}\n"},
        {"folder": ".."},
        {"bytes": "5"},
        {"bytes": 0},
        {"md5": "x"},
        {"released": "now"},
        {"more": 1},
    ],
)
def test_an_invalid_row_counts_as_damaged(change, site, tmp_path, caplog):
    mirror(site, tmp_path)
    whole = (tmp_path / "files.jsonl").read_text().splitlines()
    (tmp_path / "files.jsonl").write_text("\n".join([json.dumps(json.loads(whole[0]) | change), *whole[1:]]))
    assert mirror(site, tmp_path)["files_fetched"] == 1
    assert "files.jsonl, line 1: damaged" in caplog.text


@pytest.mark.parametrize("left", [b"", content(2)[:1000], content(2) + b"more", content(99, 2000)])
def test_a_file_that_differs_from_its_record_is_downloaded_again(left, site, tmp_path):
    mirror(site, tmp_path)
    (tmp_path / ALL[1]).write_bytes(left)
    facts = mirror(site, tmp_path)
    assert facts["files_fetched"] == 1 and (tmp_path / ALL[1]).read_bytes() == content(2)
    assert mirrored(tmp_path) == ALL


def test_an_unverifiable_file_does_not_keep_its_name(site, tmp_path):
    (tmp_path / "baseline").mkdir()
    (tmp_path / ALL[1]).write_bytes(content(99))
    (tmp_path / "baseline" / name(77)).write_bytes(content(77))
    del site.answers[f"/{ALL[1]}.md5"]
    fails(site, tmp_path, (ALL[1], "404"), (f"baseline/{name(77)}", "neither in files.jsonl nor in the listing"))
    assert ALL[1] not in mirrored(tmp_path)


def test_a_file_that_is_no_longer_listed_is_kept(site, tmp_path):
    mirror(site, tmp_path)
    publish(site, updates=(5,))
    assert mirror(site, tmp_path)["files"] == 5


def test_one_run_at_a_time(site, tmp_path):
    with (
        FileLock(tmp_path / "download.lock"),
        pytest.raises(DownloadError, match="another run is downloading to this folder; rem"),
    ):
        mirror(site, tmp_path)


# listings


def test_an_incomplete_listing_is_retried(site, tmp_path):
    whole = site.answers["/baseline/"][0]
    cut = dataclasses.replace(whole, cut_at=400, length=None)
    site.answers["/baseline/"] = [cut, Answer(status=503), whole]
    assert mirror(site, tmp_path)["files"] == 5
    site.answers["/baseline/"] = [cut]
    with pytest.raises(
        DownloadError, match=r"/baseline/: ValueError: the listing ends before </html>, after 400 bytes"
    ):
        mirror(site, tmp_path)


def test_a_url_without_pubmed_files_is_refused(site, tmp_path):
    site.answers["/baseline/"] = [Answer(b"<html>Hello</html>")]
    with pytest.raises(DownloadError, match=r"/baseline/ lists no PubMed file; remedy: use another --base-url"):
        mirror(site, tmp_path)
    with pytest.raises(DownloadError, match=r"/nowhere/baseline/: the server says 404 Not Found; remedy: "):
        download_pubmed(tmp_path, site.url("/nowhere"), patience=HASTY)
    with pytest.raises(DownloadError, match="refused because it is not https"):
        download_pubmed(tmp_path, "http://example.org/pubmed/")


# interrupted runs


def test_a_full_disk_ends_the_download(site, small_disk):
    publish(site, baseline=(1, 2, 3))
    for number in (1, 2, 3):
        large = content(number, 700_000)
        site.answers[f"/baseline/{name(number)}"] = [Answer(large)]
        site.answers[f"/baseline/{name(number)}.md5"] = [Answer(md5_line(number, large))]
    with pytest.raises(DiskError, match="No space left on device; remedy: free disk space or use another folder"):
        mirror(site, small_disk)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_is_resumed(end, site, tmp_path):
    large = random.Random(9).randbytes(400_000)
    right = Answer(large, etag='"9"', last_modified=RELEASED)
    site.answers[f"/{ALL[0]}"] = [dataclasses.replace(right, drip=3600, drips_at=300_000), right]
    site.answers[f"/{ALL[0]}.md5"] = [Answer(md5_line(1, large))]
    run = subprocess.Popen(
        [sys.executable, "-m", "bert_pipeline.cli", "download-pubmed", "--out", tmp_path, "--base-url", site.url("/")],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / f"{ALL[0]}.partial"
    eventually(lambda: partial.exists() and partial.stat().st_size == 300_000 and len(mirrored(tmp_path)) == 4)
    run.send_signal(end)
    assert run.wait(PATIENCE_SECONDS) != 0
    assert partial.stat().st_size == 300_000 and mirrored(tmp_path) == ALL[1:]
    facts = mirror(site, tmp_path)
    assert site.requests.count((f"/{ALL[0]}", "bytes=300000-")) == 1
    assert facts["bytes_fetched"] == 100_000 and (tmp_path / ALL[0]).read_bytes() == large
    assert rows(tmp_path)[0]["released"] == "2026-01-30"


def test_the_command(site, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    arguments = ["download-pubmed", "--out", str(tmp_path), "--base-url", site.url("/"), "--parallel", "2"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 5
    total = 5 * 3072
    assert f"PubMed: {total:,}/{total:,} bytes  " in caplog.text and "ETA 0:00:00" in caplog.text
    del site.answers[f"/{ALL[1]}"]
    (tmp_path / ALL[1]).unlink()
    assert main(arguments) == 1
    reported = capsys.readouterr().err
    assert "failed files: 1 (4 verified files in" in reported and f"\n    {ALL[1]}: " in reported
