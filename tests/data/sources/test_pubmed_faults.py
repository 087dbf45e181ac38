"""Broken, cut and hostile PubMed files: rows I2 to I5 of the fault table; large ones are marked slow."""

import gzip
import json
import random
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from data.sources.test_pubmed import HEAD, TAIL, article, literal_citation, read_bytes

from benchmarks.pubmed_files import write_pubmed_files
from bert_pipeline.data.sources.pubmed.reader import Citation, Deletion, read_citations
from bert_pipeline.data.sources.records import Rejection, SourceError

ROOT = Path(__file__).parents[3]
REMEDY = r"some\.xml\.gz: .*byte \d+.*, the last good one with (no )?PMID.*; remedy: download the file again"


@pytest.fixture(scope="module")
def xml(tmp_path_factory) -> bytes:
    [_, path] = write_pubmed_files(tmp_path_factory.mktemp("made"), 1, 40, seed=3, num_updates=1, deleted_fraction=0.1)
    return gzip.decompress(path.read_bytes())


def refused(folder: Path, packed: bytes) -> str:
    path = folder / "some.xml.gz"
    path.write_bytes(packed)
    with pytest.raises(SourceError, match=REMEDY) as error:
        list(read_citations(path))
    return str(error.value)


# I2: files cut short


def test_a_gzip_that_is_cut_anywhere_is_refused(tmp_path, xml):
    packed = gzip.compress(xml)
    rng = random.Random(2)
    for end in [*rng.sample(range(20, len(packed)), 195), 20, *range(len(packed) - 4, len(packed))]:
        assert "cut short" in refused(tmp_path, packed[:end])


def test_a_gzip_that_is_cut_between_its_members_is_refused(tmp_path, xml):
    cuts = sorted(random.Random(3).sample(range(1000, len(xml) - 20), 9))
    parts = [gzip.compress(xml[a:b]) for a, b in zip([0, *cuts], [*cuts, len(xml)], strict=True)]
    assert len(read_bytes(tmp_path, xml)) == 44
    (tmp_path / "some.xml.gz").write_bytes(b"".join(parts))
    assert len(list(read_citations(tmp_path / "some.xml.gz"))) == 44, "consecutive gzip members are one file"
    for count in range(1, len(parts)):
        assert f"cut short after byte {cuts[count - 1]} of its XML" in refused(tmp_path, b"".join(parts[:count]))


def test_a_gzip_with_wrong_sums_or_with_more_behind_it_is_refused(tmp_path, xml):
    packed = gzip.compress(xml)
    for place in (-8, -1):
        flipped = bytearray(packed)
        flipped[place] ^= 1
        assert "corrupt after byte" in refused(tmp_path, bytes(flipped))
    for more in (b"x", b"\0" * 512, b"\x1f\x8b", packed):
        refused(tmp_path, packed + more)
    assert "data after </PubmedArticleSet>" in refused(tmp_path, gzip.compress(xml + b"<a/>"))


def test_flipped_bits_in_a_gzip_are_detected(tmp_path, xml):
    packed = gzip.compress(xml)
    rng = random.Random(4)
    for _ in range(50):
        flipped = bytearray(packed)
        flipped[rng.randrange(18, len(packed))] ^= 1 << rng.randrange(8)
        refused(tmp_path, bytes(flipped))


def test_xml_that_is_cut_anywhere_is_refused(tmp_path, xml):
    for end in [*random.Random(5).sample(range(len(HEAD) + 20, len(xml) - 2), 60), xml.rindex(b"</PubmedArticleSet")]:
        refused(tmp_path, gzip.compress(xml[:end]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"<html>503 Service Unavailable</html>", "does not begin with a PubmedArticleSet: '<html>503"),
        ((HEAD + TAIL).decode().encode("utf-16"), "does not begin with a PubmedArticleSet"),
        (HEAD.replace(b"utf-8", b"ISO-8859-1") + TAIL, "declares the encoding ISO-8859-1"),
        (HEAD + b"&" * 20, "no </PubmedArticleSet>"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, data, message):
    (tmp_path / "some.xml").write_bytes(data)
    with pytest.raises(SourceError, match=rf"some\.xml: .*{message}.*; remedy: "):
        list(read_citations(tmp_path / "some.xml"))


# I3: one broken record among good ones


def spans(xml: bytes) -> list[tuple[int, int]]:
    """Start and end of each PubmedArticle."""
    found, at = [], 0
    while (start := xml.find(b"<PubmedArticle>", at)) >= 0:
        at = xml.index(b"</PubmedArticle>", start) + len(b"</PubmedArticle>")
        found.append((start, at))
    return found


def corruptions(record: bytes, rng: random.Random) -> Iterator[bytes]:
    """One of each kind."""
    at, end = sorted(rng.sample(range(len(record)), 2))
    tags = [n for n in range(len(record)) if record[n] == ord("<")]
    tag = rng.choice(tags)
    tag_end = record.index(b">", tag) + 1
    yield record[:at] + record[at + 1 :]
    yield record[:at] + bytes([record[at] ^ 1 << rng.randrange(8)]) + record[at + 1 :]
    yield record[:at] + rng.choice(list(map(chr, range(128)))).encode() + record[at + 1 :]
    yield record[:at] + rng.choice(["<", ">", "&", '"', "&nbsp;", "&#0;", "&#xD800;", "]]>"]).encode() + record[at:]
    yield (
        record[:at]
        + rng.choice([b"\0", b"\x01", b"\x0b", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xef\xbf\xbf"])
        + record[at:]
    )
    yield record[:at] + rng.choice([b"<!--", b"<![CDATA[", b"<?php ", b"<!DOCTYPE a [", b"-->", b"]]>"]) + record[at:]
    yield record[:at] + record[end:]
    yield record[:at]
    yield record[at:]
    yield record[:tag] + record[tag_end:]
    yield record[:tag] + record[tag:tag_end] + record[tag:]
    yield record[:tag] + rng.choice([b"</", b"<x", b"< ", b"<PubmedArticle>", b"</PubmedArticle>"]) + record[tag + 1 :]


NUM_KINDS = 12


def damage(xml: bytes, folder: Path, repeats: int) -> dict[str, float]:
    """Corrupt one record at a time and count what happens to it and to the others."""
    rng = random.Random(6)
    places = spans(xml)
    whole = [each for each in read_bytes(folder, xml) if isinstance(each, Citation | Deletion)]
    counts = {
        "corruptions": 0,
        "silent": 0,
        "set aside": 0,
        "still well-formed": 0,
        "file refused": 0,
        "all others kept": 0,
    }
    for _ in range(repeats):
        victim = rng.randrange(len(places))
        start, end = places[victim]
        for broken in corruptions(xml[start:end], rng):
            counts["corruptions"] += 1
            others = [each._replace(number=0) for number, each in enumerate(whole) if number != victim]
            try:
                found = read_bytes(folder, xml[:start] + broken + xml[end:])
            except SourceError:
                counts["file refused"] += 1
                continue
            rejected = any(isinstance(each, Rejection) for each in found)
            kept = [each._replace(number=0) for each in found if not isinstance(each, Rejection)]
            extra = [each for each in kept if each not in others]
            counts["all others kept"] += all(each in kept for each in others)
            counts["set aside"] += rejected
            if not rejected:
                counts["still well-formed"] += 1
                try:
                    expected = literal_citation(0, ET.fromstring(broken))
                    expected.pop("date"), expected.pop("revised")  # the oracle handles only dates that exist
                    mine = extra[0]._asdict() if extra else whole[victim]._replace(number=0)._asdict()
                    silent = any(mine[field] != value for field, value in expected.items())
                except (ET.ParseError, AttributeError, ValueError, TypeError):
                    silent = True
                counts["silent"] += silent
    return counts


def test_a_broken_record_is_rejected_and_its_neighbours_are_read(tmp_path, xml):
    counts = damage(xml, tmp_path, repeats=12)
    assert counts["corruptions"] == 12 * NUM_KINDS and counts["set aside"] > 80
    assert counts["silent"] == 0
    assert counts["all others kept"] >= 0.99 * counts["corruptions"]


@pytest.mark.slow
def test_a_thousand_broken_records_are_rejected(tmp_path, xml, capsys):
    counts = damage(xml, tmp_path, repeats=1000 // NUM_KINDS + 1)
    with capsys.disabled():
        print(f"\nI3: {counts}")
    assert counts["corruptions"] >= 1000 and counts["silent"] == 0
    assert counts["all others kept"] >= 0.99 * counts["corruptions"]


def test_a_rejection_says_where_and_why(tmp_path):
    text = f"{article(41)}\n{article(42, article='<ArticleTitle>a' + chr(1) + 'b</ArticleTitle>')}\nstray {article(43)}"
    good, broken, stray, last = read_bytes(tmp_path, text)
    at = (HEAD + text.encode()).index(b"\x01")
    assert (good.pmid, last.pmid, last.number) == ("41", "43", 4)
    assert (broken.file, broken.record) == ("some.xml.gz", f"record 2, byte {at}, after PMID 41")
    assert (
        broken.reason == "broken XML: not well-formed (invalid token), byte 0x01"
        and "<ArticleTitle>a" in broken.excerpt
    )
    assert stray.reason == "text or tags between records" and "after PMID 41" in stray.record


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (article("12x"), "PMID is not a number"),
        (article(""), "no PMID"),
        (article("007"), "PMID is not a number"),
        (article("\u0661"), "PMID is not a number"),
        (article(5).replace('Version="1"', 'Version="one"'), "version of the PMID is not a number"),
        ("<PubmedArticle/>", "no PMID"),
        ("<DeleteCitation><PMID>x</PMID></DeleteCitation>", "PMID is not a number"),
        (article(5, more="&nbsp;"), "broken XML: undefined entity"),
        (article(5, more="<!DOCTYPE a>"), "broken XML: not well-formed (invalid token)"),
        (article(5, more=article(6)), "unlike any record of PubMed"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>", "text or tags between records"),
        ("\x0b", "text or tags between records"),
    ],
)
def test_what_is_not_a_citation_is_rejected(tmp_path, record, reason):
    found = read_bytes(tmp_path, article(1) + record + article(2))
    assert [found[0].pmid, found[-1].pmid] == ["1", "2"]
    assert isinstance(found[1], Rejection) and found[1].reason.startswith(reason)


# I4, I5: hostile files, each read in its own process

CHILD = """
import json, os, re, sys, time
from pathlib import Path
from bert_pipeline.data.sources.pubmed.reader import read_citations
from bert_pipeline.data.sources.records import SourceError, Rejection

def peak():  # not ru_maxrss, which begins at the memory of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def outcomes(path):
    try:
        for each in read_citations(Path(path)):
            yield "rejected" if isinstance(each, Rejection) else each.pmid, str(each)[:2000]
    except SourceError as error:
        yield "refused", str(error)[:2000]

small, *paths = sys.argv[1:]
list(outcomes(small))  # compiles the scanner and takes the memory that every process needs
for path in paths:
    if child := os.fork():  # a fork begins with a peak of its own, and need not import and compile
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    before, begun, kept = peak(), time.process_time(), []
    for number, each in enumerate(outcomes(path)):
        if number < 10:
            kept.append(each)
    report = {"found": kept, "seconds": time.process_time() - begun, "mib": peak(), "more": peak() - before}
    print(json.dumps(report), flush=True)
    os._exit(0)
"""


def read_in_children(folder: Path, *paths: Path) -> list[dict]:
    """Read each file in its own process. Returns for each file: the first records, the seconds of CPU time, the peak
    memory, and how much the peak exceeds that of a small file."""
    small = folder / "small.xml"
    small.write_bytes(HEAD + article(1).encode() + article(2, more="<!-- -->").encode() + TAIL)
    run = subprocess.run([sys.executable, "-c", CHILD, small, *paths], cwd=ROOT, capture_output=True, check=False)
    lines = run.stdout.decode().splitlines()
    assert run.returncode == 0 and lines[1::2] == ["0"] * len(paths), run.stderr.decode()
    return [json.loads(line) for line in lines[::2]]


def in_record(content: str, prolog: bytes = HEAD) -> bytes:
    return prolog + article(1).encode() + article(2, more=content).encode() + article(3).encode() + TAIL


def declaring(declarations: str) -> bytes:
    return HEAD.replace(b'190101.dtd">', f'190101.dtd" [{declarations}]>'.encode())


LAUGHS = "<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(9))
HOSTILE: dict[str, Callable[[str, int], bytes]] = {
    "billion laughs": lambda secret, port: in_record("&a9;", declaring(LAUGHS)),
    "quadratic": lambda secret, port: in_record("&a;" * 50_000, declaring(f"<!ENTITY a '{'x' * 50_000}'>")),
    "file": lambda secret, port: in_record("&a;", declaring(f"<!ENTITY a SYSTEM 'file://{secret}'>")),
    "web": lambda secret, port: in_record("&a;", declaring(f"<!ENTITY a SYSTEM 'http://127.0.0.1:{port}/'>")),
    "parameter": lambda secret, port: in_record("", declaring(f"<!ENTITY % a SYSTEM 'file://{secret}'> %a;")),
    "external dtd": lambda secret, port: in_record(
        "&a;", f'<!DOCTYPE PubmedArticleSet SYSTEM "http://127.0.0.1:{port}/x.dtd">\n<PubmedArticleSet>'.encode()
    ),
    "not declared": lambda secret, port: in_record("&a;"),
    "xinclude": lambda secret, port: in_record(
        f'<x:include xmlns:x="http://www.w3.org/2001/XInclude" href="file://{secret}" parse="text"/>'
    ),
    "deep": lambda secret, port: in_record("<a>" * 10_000 + "</a>" * 10_000),
    "deep, never closed": lambda secret, port: in_record("<a>" * 1_000_000),
    "attributes": lambda secret, port: in_record(
        f"<a {' '.join(f'a{n}={chr(34)}{chr(34)}' for n in range(1_000_000))}/>"
    ),
    "attributes, other quotes": lambda secret, port: in_record(
        f"<b c=''/><a {' '.join(f'a{n}={chr(39)}{chr(39)}' for n in range(1_000_000))}/>"
    ),
    "long name": lambda secret, port: in_record(f"<{'a' * 8_000_000}/>"),
    "long comment": lambda secret, port: in_record(f"<!-- {'a' * 8_000_000} -->"),
    "many comments": lambda secret, port: in_record("<!-- </PubmedArticle> -->" * 100_000),
    "many empty elements": lambda secret, port: in_record("<!-- --><a/>" + "<a/>" * 1_000_000),
    "many fields": lambda secret, port: in_record("<PMID/>" * 1_000_000),
    "references": lambda secret, port: in_record("&#65;" * 1_000_000),
}
LEFT_ALONE = {"xinclude", "many comments", "many empty elements", "references", "long name"}
"""Harmless and well-formed: read without a rejection."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, dict]:
    """What was read from each hostile file, and the requests that a server on this machine received meanwhile."""
    folder = tmp_path_factory.mktemp("hostile")
    requests = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

    secret = folder / "secret.txt"
    secret.write_text("what nobody may read")
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        paths = []
        for number, write in enumerate(HOSTILE.values()):
            paths.append(folder / f"{number}.xml")
            paths[-1].write_bytes(write(str(secret), server.server_port))
        found = read_in_children(folder, *paths)
        server.shutdown()
    return {kind: report | {"requests": requests} for kind, report in zip(HOSTILE, found, strict=True)}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_do_no_harm(reports, kind):
    report = reports[kind]
    outcomes = [outcome for outcome, _ in report["found"]]
    if b"[<!ENTITY" in HOSTILE[kind]("", 0)[:500]:
        assert outcomes == ["refused"] and "declares entities" in report["found"][0][1]
    else:
        assert (outcomes[0], outcomes[-1]) == ("1", "3")
        assert ("rejected" in outcomes[1:-1]) == (kind not in LEFT_ALONE)
    assert "what nobody" not in json.dumps(report["found"]) and not report["requests"]
    assert report["more"] < 100


def bomb(folder: Path, megabytes: int) -> Path:
    """A file with a record of so many MB of XML, compressed to a thousandth, between good records."""
    path = folder / "bomb.xml.gz"
    pack = zlib.compressobj(9, wbits=31)
    begin, end = article(2, article="<ArticleTitle>|</ArticleTitle>").encode().split(b"|")
    with path.open("wb") as file:
        file.write(pack.compress(HEAD + article(1).encode() + begin))
        for _ in range(megabytes):
            file.write(pack.compress(b"x " * 500_000))
        file.write(pack.compress(end + article(3).encode() + TAIL) + pack.flush())
    return path


@pytest.mark.parametrize("megabytes", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_record_that_is_too_large_is_rejected_without_loading_it(tmp_path, megabytes, capsys):
    path = bomb(tmp_path, megabytes)
    [report] = read_in_children(tmp_path, path)
    assert [outcome for outcome, _ in report["found"]] == ["1", "rejected", "3"]
    assert "larger than 16 MiB" in report["found"][1][1]
    assert report["mib"] < 300
    if megabytes == 1000:
        with capsys.disabled():
            print(f"\nI5: {path.stat().st_size:,} bytes: {report['seconds']:.1f} s, {report['mib']:.0f} MiB")


def test_memory_does_not_grow_with_the_file(tmp_path):
    paths = [write_pubmed_files(tmp_path / str(count), 1, count)[0] for count in (500, 4_000)]
    small, large = read_in_children(tmp_path, *paths)
    assert large["mib"] - small["mib"] < 8
