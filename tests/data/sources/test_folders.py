"""Which files of a folder are read, and an account of all others: links, suffixes, archives, names."""

import bz2
import gzip
import io
import json
import logging
import os
import stat
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.data.sources.archives import MAX_EXPANSION, SMALL_MEMBER
from bert_pipeline.data.sources.files import read_documents
from bert_pipeline.data.sources.folders import by_reason, find_files, list_files
from bert_pipeline.data.sources.records import Document, Rejection, SourceError
from bert_pipeline.store.artifact import files_fingerprint


def write(folder: Path, *names: str, text: str = "Text of it.") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(path: Path, id_field: str = "") -> list[Document | Rejection]:
    return list(read_documents(find_files(str(path)), ("text",), id_field))


def reasons(path: Path) -> dict[str, str]:
    return {each.file: each.reason for each in list_files(str(path)).passed_over}


def everything_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_every_file_is_read_or_named(tmp_path, caplog):
    names = ["a.txt", "B.TXT", "c.text", "d.md", "e.Txt", "sub/f.txt"]
    others = [".hidden/g.txt", ".h.txt", "i.pdf", "j.doc", "sub/k.pdf", "noend", "README.md", "l.txt.lz4", "state.json"]
    write(tmp_path, *names, *others)
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    listing = list_files(str(tmp_path))
    assert list(listing.files) == sorted(names)
    assert {*listing.files, *(each.file for each in listing.passed_over)} == everything_below(tmp_path)
    assert by_reason(listing.passed_over) == {
        "unknown suffix .pdf": {"files": 2, "bytes": 22},
        "hidden": {"files": 2, "bytes": 22},
        "unknown suffix .doc": {"files": 1, "bytes": 11},
        "unknown suffix (none)": {"files": 1, "bytes": 11},
        "unknown suffix .lz4": {"files": 1, "bytes": 11},
        "README.md describes the folder": {"files": 1, "bytes": 11},
        "metadata of datasets": {"files": 1, "bytes": 11},
        "not a regular file": {"files": 1, "bytes": 0},
        "broken link": {"files": 1, "bytes": 0},
    }
    with caplog.at_level(logging.INFO):
        find_files(str(tmp_path))
        find_files(str(tmp_path))
    [record] = caplog.records
    assert record.levelno == logging.WARNING, "more is passed over than read"
    assert "reading 6 files (66 bytes), passing over 11 (99 bytes): 2 hidden (22 bytes)" in record.message
    assert "2 unknown suffix .pdf (22 bytes)" in record.message and "remedy" in record.message


def test_a_little_that_is_passed_over_is_no_warning(tmp_path, caplog):
    write(tmp_path, "a.txt", text="x" * 100)
    write(tmp_path, "b.pdf")
    with caplog.at_level(logging.INFO):
        find_files(str(tmp_path))
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_linked_folders_are_read_once_and_loops_are_named(tmp_path):
    texts, elsewhere = tmp_path / "texts", tmp_path / "elsewhere"
    write(texts, "a.txt", "inner/b.txt")
    write(elsewhere, "c.txt", "deep/d.txt")
    links = {
        "linked": elsewhere, "again": elsewhere, "deep": elsewhere / "deep", "alias": texts / "inner",
        "inner/up": texts, "loop": texts / "loop", ".secret": elsewhere,
    }  # fmt: skip
    for name, target in links.items():
        (texts / name).symlink_to(target)
    (elsewhere / "back").symlink_to(tmp_path)
    assert list(find_files(str(texts))) == ["a.txt", "again/c.txt", "again/deep/d.txt", "inner/b.txt"]
    known = "leads to a folder that is read already or that surrounds this one"
    assert reasons(texts) == {
        **dict.fromkeys(("linked", "deep", "alias", "inner/up", "again/back"), known),
        "loop": "broken link",
        ".secret": "hidden",
    }
    assert list(find_files(f"{texts}/**/*.txt")) == list(find_files(str(texts)))
    assert list(find_files(f"{texts}/linked/*.txt")) == ["c.txt"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "closed/b.txt")
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "closed":  # root may open any folder
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert reasons(tmp_path) == {"closed": "folder cannot be opened: Permission denied"}


def test_a_glob_with_two_stars_selects_by_pattern(tmp_path):
    write(tmp_path, "a.txt", "x/a.txt", "x/y/a.txt", "x/y/b.txt", "x/y/c.pdf", "z/b.csv")
    assert list(find_files(f"{tmp_path}/**/a.txt")) == ["a.txt", "x/a.txt", "x/y/a.txt"]
    assert list(find_files(f"{tmp_path}/x/**/*")) == ["a.txt", "y/a.txt", "y/b.txt"]
    assert list(find_files(f"{tmp_path}/**/y/*.txt")) == ["x/y/a.txt", "x/y/b.txt"]
    assert list(find_files(f"{tmp_path}/x/**")) == ["a.txt", "y/a.txt", "y/b.txt"]
    assert reasons(tmp_path / "x" / "**") == {"y/c.pdf": "unknown suffix .pdf"}


def test_the_fingerprint_of_a_folder_is_that_of_its_names_and_contents(tmp_path):
    """Computed before links and further suffixes were read."""
    write(tmp_path, "a.txt", "sub/b.jsonl", "sub/c.csv.gz", "README.md", ".hidden.txt")
    assert files_fingerprint(find_files(str(tmp_path))) == FINGERPRINT


FINGERPRINT = "cd7e5fcc1ce5da92"


# Names


def test_a_name_that_is_not_utf8_is_shown_escaped(tmp_path):
    name = "한국어".encode("cp949")
    (tmp_path / os.fsdecode(name + b".txt")).write_text("One.\n\nTwo.\n")
    (tmp_path / os.fsdecode(name + b".pdf")).write_text("x")
    shown = name.decode("ascii", "backslashreplace")
    files = find_files(str(tmp_path))
    assert list(files) == [f"{shown}.txt"] and reasons(tmp_path) == {f"{shown}.pdf": "unknown suffix .pdf"}
    assert [each.document_id for each in read(tmp_path)] == [f"{shown}.txt:1", f"{shown}.txt:3"]
    files_fingerprint(files).encode()
    files[f"{shown}.txt"].write_bytes(b"")
    with pytest.raises(SourceError) as raised:
        read(tmp_path)
    assert f"{shown}.txt: empty" in str(raised.value) and str(raised.value).encode()


def test_two_names_that_look_alike_are_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xb0.txt")).write_text("x")
    (tmp_path / "\\xb0.txt").write_text("x")
    with pytest.raises(SourceError, match=r"two files are shown as \\xb0.txt, .*remedy: rename one"):
        find_files(str(tmp_path))


# Zip archives


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_is_read_like_a_folder(tmp_path, method):
    members = {
        "b.txt": b"One.\n\nTwo.\n",
        "sub/a.jsonl.gz": gzip.compress(b'{"text": "Three."}\n{"text": 4}\n'),
        "c.PARQUET": parquet(text=["Five."]),
        "d.txt.bz2": bz2.compress(b"Six."),
        "figure.png": b"x" * 1000,
        "__MACOSX/._b.txt": b"x",
        ".hidden.txt": b"x",
        "inner.zip": b"x",
        "folder/": b"",
    }
    (tmp_path / "a.zip").write_bytes(zipped(members, method))
    found = [(each.document_id, *each.texts) if isinstance(each, Document) else str(each) for each in read(tmp_path)]
    assert found == [
        ("a.zip/b.txt:1", "One.\n"),
        ("a.zip/b.txt:3", "Two.\n"),
        ("a.zip/c.PARQUET:1", "Five."),
        ("a.zip/d.txt.bz2:1", "Six."),
        ("a.zip/sub/a.jsonl.gz:1", "Three."),
        "a.zip/sub/a.jsonl.gz, line 2: text field text is not a string: '4'",
    ]
    documents = [each for each in read(tmp_path) if isinstance(each, Document)]
    assert [(each.source, each.number) for each in documents] == [("a.zip", n) for n in range(1, 6)]
    assert reasons(tmp_path) == {
        "a.zip/figure.png": "unknown suffix .png",
        "a.zip/__MACOSX/._b.txt": "hidden",
        "a.zip/.hidden.txt": "hidden",
        "a.zip/inner.zip": "archive in an archive",
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("../up.txt", b"x", "member name leads out of the archive"),
        ("a/../../up.txt", b"x", "member name leads out of the archive"),
        ("/etc/up.txt", b"x", "member name leads out of the archive"),
        ("C:\\up.txt", b"x", "member name leads out of the archive"),
        ("..\\up.txt", b"x", "member name leads out of the archive"),
        ("bomb.txt", bytes(8 * SMALL_MEMBER), f"member is more than {MAX_EXPANSION} times as large"),
    ],
)
def test_a_hostile_member_is_rejected_and_the_others_are_read(tmp_path, name, data, reason):
    (tmp_path / "a.zip").write_bytes(zipped({"0.txt": b"One.", name: data, "z.txt": b"Two."}))
    before = everything_below(tmp_path)
    found = read(tmp_path)
    assert [each.texts for each in found if isinstance(each, Document)] == [("One.",), ("Two.",)]
    [rejection] = [each for each in found if isinstance(each, Rejection)]
    assert rejection.reason.startswith(reason) and rejection.file == f"a.zip/{name}"
    assert everything_below(tmp_path) == before


def test_links_encrypted_and_repeated_members_are_rejected(tmp_path):
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(link, "/etc/passwd")
        archive.writestr("same.txt", "First.")
        archive.writestr("same.txt", "Second.")
        archive.writestr("secret.txt", "x")
    data = bytearray(out.getvalue())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of encryption in the directory entry of the last member
    (tmp_path / "a.zip").write_bytes(data)
    found = read(tmp_path)
    assert [each.reason if isinstance(each, Rejection) else each.texts for each in found] == [
        "member is not a plain file",
        ("First.",),
        "two members have this name",
        "member is encrypted",
    ]


def test_overlapping_members_are_refused(tmp_path):
    """Fifield 2019, "A better zip bomb": many directory entries share the compressed data of one."""
    data = zipped({"a.txt": b"x" * 10_000, "b.txt": b"y"}, zipfile.ZIP_STORED)
    directory = data.index(b"PK\x01\x02")
    size = data.index(b"PK\x01\x02", directory + 1) - directory
    entry = data[directory : directory + size]
    end = data[data.index(b"PK\x05\x06") :]
    many = entry * 5
    end = end[:8] + (5).to_bytes(2, "little") * 2 + len(many).to_bytes(4, "little") + end[16:]
    (tmp_path / "a.zip").write_bytes(data[:directory] + many + end)
    with pytest.raises(SourceError, match=r"a\.zip: cut short or corrupt: members overlap, as in a zip bomb; remedy"):
        read(tmp_path)


def test_a_damaged_zip_stops_the_reading(tmp_path):
    whole = zipped({"a.txt": b"One. " * 100, "b.txt": os.urandom(3000).hex().encode()}, zipfile.ZIP_STORED)
    for cut in (30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.zip").write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"a\.zip: cut short or corrupt: .*; remedy: copy"):
            read(tmp_path)
    at = whole.index(b"One.")
    (tmp_path / "a.zip").write_bytes(whole[:at] + b"T" + whole[at + 1 :])
    with pytest.raises(SourceError, match=r"a\.zip/a\.txt: cut short or corrupt.*: Bad CRC-32.*; remedy"):
        read(tmp_path)


def test_an_error_in_a_member_names_it(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped({"a.csv": b"id,title\n1,b\n"}))
    with pytest.raises(SourceError, match=r"/a\.zip/a\.csv: no column text; the columns are id, title; remedy"):
        read(tmp_path)
    (tmp_path / "a.zip").write_bytes(zipped({}))
    with pytest.raises(SourceError, match=r"/a\.zip: empty, it holds no readable file; remedy"):
        read(tmp_path)


# Causes in words


def test_uuids_are_ids_and_other_bytes_name_their_field(tmp_path):
    raw = [bytes.fromhex("86d13909e5f0462d9631e17cfdd1587a"), bytes(range(0xF0, 0x100))]
    storage = pa.array(raw, pa.binary(16))
    (tmp_path / "a.parquet").write_bytes(
        parquet(id=pa.ExtensionArray.from_storage(pa.uuid(), storage), text=["a", "b"])
    )
    ids = [each.document_id for each in read(tmp_path, "id")]
    assert ids == ["86d13909-e5f0-462d-9631-e17cfdd1587a", "f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff"]
    (tmp_path / "a.parquet").write_bytes(parquet(id=storage, text=["a", "b"]))
    assert {each.reason for each in read(tmp_path, "id")} == {"bytes that are not UTF-8, in field id"}


ROWS = [{"id": "1", "text": "One {\n} [,", "n": [1, {"a": None}]}, {"id": "2", "text": "Two"}]


@pytest.mark.parametrize("indent", [0, 1, 4, "\t"])
def test_pretty_printed_json_is_read(tmp_path, indent):
    write(tmp_path, "a.json", text="\n".join(json.dumps(row, indent=indent) for row in ROWS) + "\n")
    write(tmp_path, "b.json", text=json.dumps(ROWS[0], indent=indent))
    write(tmp_path, "c.json", text=json.dumps(ROWS, indent=indent))
    assert [each.texts[0] for each in read(tmp_path)] == ["One {\n} [,", "Two", "One {\n} [,", "One {\n} [,", "Two"]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
def test_pretty_printed_json_lines_are_named(tmp_path, suffix):
    for row in (ROWS, ROWS[0]):
        write(tmp_path, f"a.{suffix}", text="\n" + json.dumps(row, indent=2))
        with pytest.raises(
            SourceError, match=rf"a\.{suffix}: line 2: '.' is not a whole JSON object: .*remedy: name it"
        ):
            read(tmp_path)


INVISIBLE = ["\ufeff", "\u200b", "\u200b\u200d \u2060", "\u00ad", "\u200e", "\u3164", "\u00a0\u3000", "\x1a", "\ufe0f"]


@pytest.mark.parametrize("blank", INVISIBLE, ids=ascii)
def test_a_line_without_a_visible_character_is_blank(tmp_path, blank):
    write(tmp_path, "a.txt", text=f"One.\n{blank}\nTwo\u200b words.\n{blank}\n{blank}\nThree.\n{blank}")
    assert [(each.number, *each.texts) for each in read(tmp_path)] == [
        (1, "One.\n"),
        (3, "Two\u200b words.\n"),
        (6, "Three.\n"),
    ]
    (tmp_path / "a.txt").unlink()
    write(tmp_path, "a.jsonl", text=f'{{"text": "One"}}\n{blank}\n\ufeff{{"text": "Two"}}\n')
    write(tmp_path, "b.csv", text=f"{blank}\ntext,n\nOne,1\n{blank}\nTwo,2\n")
    write(tmp_path, "c.tsv", text=f"{blank}\ntext\tn\nOne\t1\n{blank}\nTwo\t2\n")
    assert [each.texts[0] for each in read(tmp_path)] == ["One", "Two"] * 3
