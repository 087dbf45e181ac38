"""Archives of articles: hostile and broken ones give Rejections or a SourceError, and never write a file."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from bert_pipeline.data.sources.archives import MAX_DESCRIPTION_BYTES
from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.folders import find_files
from bert_pipeline.data.sources.jats import MAX_BYTES
from bert_pipeline.data.sources.records import Document, PassedOver, Rejection, SourceError

COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def article(number: int, text: str = "Text.") -> bytes:
    ids = f'<article-id pub-id-type="pmc">{number}</article-id>'
    return f"<article><front><article-meta>{ids}</article-meta></front><body><p>{text}</p></body></article>".encode()


def plain(name: str, data: bytes = b"", **header) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in header.items():
        setattr(member, key, value)
    return member, data


GOOD = [plain("PMC000/PMC1.xml", article(1)), plain("PMC000/PMC2.nxml", article(2))]


def tar(*parts: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, data in parts:
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read(path: Path) -> list[Document | Rejection]:
    found = read_documents(find_files(str(path)), ("body",))
    return [each for each in found if not isinstance(each, PassedOver)]


def read_between_good_ones(tmp_path: Path, *parts: tuple[tarfile.TarInfo, bytes]) -> list[Rejection]:
    """Rejections from the parts; the articles before and after them must be read, and nothing may be written."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.tar.gz"
    path.write_bytes(gzip.compress(tar(GOOD[0], *parts, GOOD[1])))
    before = sorted(tmp_path.rglob("*"))
    first, *rejections, last = read(path)
    assert (first.document_id, last.document_id) == ("PMC1", "PMC2")
    assert sorted(tmp_path.rglob("*")) == before
    return rejections


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_member_is_an_article_and_other_files_are_passed_over_by_name(tmp_path, compression, form):
    folder, long_name = plain("PMC000", type=tarfile.DIRTYPE), "d/" * 60 + "PMC2.NXML"
    parts = [folder, GOOD[0], plain("fig.jpg", b"\xff" * 3000), plain(long_name, article(2, "Zwölf."))]
    (tmp_path / f"a.tar{compression}").write_bytes(COMPRESSIONS[compression](tar(*parts, form=form)))
    name = f"a.tar{compression}"
    assert read(tmp_path) == [Document("PMC1", ("Text.",), name, 2), Document("PMC2", ("Zwölf.",), name, 4)]
    everything = [*read_documents(find_files(str(tmp_path)), ("body",))]
    reason = "suffix .jpg in a .tar, where only .nxml, .xml are read"
    assert everything[1:2] == [PassedOver(f"{name}/fig.jpg", 3000, reason)] and len(everything) == 3


@pytest.mark.parametrize(
    ("part", "reason", "excerpt"),
    [
        (plain("../PMC3.nxml", article(3)), "member name leads out of the archive", "../PMC3.nxml"),
        (plain("a/../../PMC3.nxml", article(3)), "member name leads out of the archive", "a/../../PMC3.nxml"),
        (plain("/etc/PMC3.nxml", article(3)), "member name leads out of the archive", "/etc/PMC3.nxml"),
        (plain("a.nxml", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "member is not a plain file", "type 2"),
        (plain("a.nxml", type=tarfile.LNKTYPE, linkname="PMC000/PMC1.xml"), "member is not a plain file", "type 1"),
        (plain("a.nxml", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "member is not a plain file", "type 3"),
        (plain("a.nxml", type=tarfile.BLKTYPE, devmajor=8), "member is not a plain file", "type 4"),
        (plain("a.nxml", type=tarfile.FIFOTYPE), "member is not a plain file", "type 6"),
        (plain("a.nxml", b"\0" * (MAX_BYTES + 1)), "member is larger than 16 MiB", "16,777,217 bytes"),
        (plain("a.nxml", article(3)[:-20]), "article is not well-formed XML", "a.nxml: "),
        (plain("a.nxml"), "article is not well-formed XML", "a.nxml: "),
    ],
)
def test_a_hostile_or_broken_member_is_rejected_and_the_others_are_read(tmp_path, part, reason, excerpt):
    [rejection] = read_between_good_ones(tmp_path, part)
    assert (rejection.file, rejection.record, rejection.reason) == ("a.tar.gz", "member 2", reason)
    assert excerpt in rejection.excerpt


def test_memory_holds_one_member_at_a_time(tmp_path):
    """A bomb of 64 MiB among 5,000 members."""
    many = [plain(f"{number}.txt") for number in range(5000)]
    path = tmp_path / "a.tar.gz"
    bomb = plain("bomb.nxml", bytes(2**26))
    path.write_bytes(gzip.compress(tar(GOOD[0], *many, bomb, GOOD[1]), 1))
    del bomb
    tracemalloc.start()
    first, rejection, last = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (first.document_id, last.document_id) == ("PMC1", "PMC2")
    assert rejection.reason == "member is larger than 16 MiB"
    assert peak < 2**22


@pytest.mark.slow
def test_a_hundred_thousand_members_are_read_in_little_memory(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(100_000):
            member, data = plain(f"{number}.nxml", article(number))
            archive.addfile(member, io.BytesIO(data))
    tracemalloc.start()
    assert sum(1 for _ in read(tmp_path)) == 100_000
    _, peak = tracemalloc.get_traced_memory()
    assert peak < 100 * 2**20, "the documents themselves are held by this test"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_description_of_a_member_that_would_fill_memory_stops_the_reading(tmp_path, kind):
    header = plain("x", type=kind, size=MAX_DESCRIPTION_BYTES + 1)[0].tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(tar(GOOD[0])[:1024] + header + bytes(2**22))
    with pytest.raises(SourceError, match=r"a\.tar: cut short or corrupt after member 1: header that claims 1,048,577"):
        read(tmp_path)


def test_a_negative_size_stops_the_reading(tmp_path):
    """CVE-2025-8194."""
    header = bytearray(plain("x.nxml", size=1)[0].tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(tar(GOOD[0])[:1024] + header + bytes(2048))
    with pytest.raises(SourceError, match=r"cut short or corrupt after member 1: header that claims -1 bytes: x\.nxml"):
        read(tmp_path)


def test_a_sparse_member_is_no_plain_file(tmp_path):
    """A few bytes on disk may expand to many."""
    header = plain("s.nxml", type=tarfile.GNUTYPE_SPARSE, size=0)[0].tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(tar(GOOD[0])[:1024] + header + tar(GOOD[1]))
    assert [getattr(each, "reason", "") for each in read(tmp_path)] == ["", "member is not a plain file", ""]


def test_an_archive_that_was_cut_anywhere_stops_the_reading(tmp_path):
    """Python's tarfile takes a cut between two members, or a damaged header after the first, for the end."""
    whole = tar(*GOOD, plain("PMC3.xml", article(3, "Much text. " * 400)))
    end = len(whole.rstrip(b"\0"))
    path = tmp_path / "a.tar"
    for cut in range(1, end, 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"a\.tar: cut short or corrupt after member [0-3]: .*remedy: copy"):
            read(path)
    for boundary in (1024, 2048):
        path.write_bytes(whole[:boundary])
        with pytest.raises(SourceError, match="cut short or corrupt"):
            read(path)
        path.write_bytes(whole[:boundary] + b"x" + whole[boundary + 1 :])
        with pytest.raises(SourceError, match="cut short or corrupt"):
            read(path)


def test_a_compressed_archive_that_was_cut_or_changed_stops_the_reading(tmp_path):
    whole = gzip.compress(tar(*GOOD, plain("blob.bin", os.urandom(50_000))))
    path = tmp_path / "a.tar.gz"
    for cut in (20, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="cut short or corrupt"):
            read(path)
    path.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    with pytest.raises(SourceError, match="cut short or corrupt after member 3: CRC check failed"):
        read(path)


def test_two_archives_in_one_file_stop_the_reading(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar(GOOD[0]) + tar(GOOD[1]))
    with pytest.raises(SourceError, match=r"a\.tar: data after the end of the archive; remedy"):
        read(tmp_path)


@pytest.mark.parametrize("data", [tar(), tar(plain("readme.txt", b"x")), tar(plain("d", type=tarfile.DIRTYPE))])
def test_an_archive_without_articles_stops_the_reading(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar: empty, it holds no record; remedy"):
        read(tmp_path)
