"""Reading documents from files: every format and compression, and what happens to broken ones."""

import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.data.sources.files import find_files, read_documents
from bert_pipeline.data.sources.records import Document, Rejection, SourceError
from bert_pipeline.progress import Progress

TEXTS = [
    "β-Blockers lower IFN-γ by 3 µg/mL.\nA second line.",
    "Naïve cafe\u0301 cells\u2028stay one document.",
    'He said "no", twice.',
    "x" * 200_000 + " long",  # beyond csv's own limit on a field
]


def as_txt(texts: list[str]) -> bytes:
    return "\n\n".join(texts).encode()


def as_jsonl(texts: list[str]) -> bytes:
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(texts: list[str]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["id", "text"], *([f"d{n}", text] for n, text in enumerate(texts))])
    return out.getvalue().encode()


def as_parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts}), out)
    return out.getvalue()


FORMATS = {".txt": as_txt, ".jsonl": as_jsonl, ".csv": as_csv, ".parquet": as_parquet}
COMPRESSIONS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path, text_fields: tuple[str, ...] = ("text",), id_field: str = "id") -> list[Any]:
    return list(read_documents(find_files(str(path)), text_fields, id_field))


def read_bytes(name: str, data: bytes, id_field: str = "") -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        return read(path, id_field=id_field)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_and_compression_gives_the_same_documents(tmp_path, suffix, compression):
    path = tmp_path / f"texts{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](FORMATS[suffix](TEXTS)))
    documents = read(path)
    assert [document.texts[0].rstrip("\n") for document in documents] == TEXTS
    expected = [f"{path.name}:{line}" for line in (1, 4, 6, 8)] if suffix == ".txt" else ["d0", "d1", "d2", "d3"]
    assert [document.document_id for document in documents] == expected
    assert {document.source for document in documents} == {path.name}


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_members_one_after_the_other_are_one_file(tmp_path, compression):
    path = tmp_path / f"texts.txt{compression}"
    path.write_bytes(COMPRESSIONS[compression](b"one\n\n") + COMPRESSIONS[compression](b"two\n"))
    assert [document.texts for document in read(path)] == [("one\n",), ("two\n",)]


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff")), max_size=12)


@given(LINES)
def test_a_txt_document_is_a_run_of_lines_that_are_not_blank(lines):
    runs, run = [], []
    for line in [*lines, ""]:
        if line.strip():
            run.append(line)
        elif run:
            runs.append("\n".join(run))
            run = []
    if not runs:
        with pytest.raises(SourceError, match="holds no record"):
            read_bytes("a.txt", "\n".join(lines).encode())
        return
    for newline in ("\n", "\r\n"):
        records = read_bytes("a.txt", newline.join(lines).encode())
        assert len(records) == len(runs)
        for record, text in zip(records, runs, strict=True):
            if isinstance(record, Document):
                assert record.texts[0].rstrip("\n") == text
            else:
                assert record.reason == "document without text"
                assert not any(char.isalnum() for char in text)


WORDS = st.text(st.characters(codec="utf-8"), max_size=30).map(lambda text: "a" + text)


@pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])
@given(st.lists(WORDS, min_size=1, max_size=5))
def test_what_was_written_is_read(write, texts):
    suffix = next(suffix for suffix, function in FORMATS.items() if function is write)
    assert [document.texts for document in read_bytes("a" + suffix, write(texts), id_field="id")] == [
        (text,) for text in texts
    ]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
@given(st.binary(max_size=200))
def test_any_bytes_give_documents_rejections_or_a_source_error(suffix, data):
    try:
        records = read_bytes("a" + suffix, (b"text\n" if suffix == ".csv" else b"") + data)
    except SourceError as error:
        assert "remedy" in str(error) or "header" in str(error)
        return
    for record in records:
        if isinstance(record, Document):
            record.texts[0].encode()
        else:
            record.excerpt.encode()


def test_a_byte_order_mark_and_crlf_are_no_part_of_the_text(tmp_path):
    bom = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(bom + b"one\r\nmore\r\n\r\ntwo\r\n")
    (tmp_path / "b.jsonl").write_bytes(bom + b'{"text": "three"}\r\n\r\n{"text": "four"}\r\n')
    (tmp_path / "c.csv").write_bytes(bom + b'text,n\r\n"five\r\nsix",1\r\n\r\nseven,2\r\n')
    documents = read(tmp_path, id_field="")
    assert [(document.document_id, *document.texts) for document in documents] == [
        ("a.txt:1", "one\nmore\n"),
        ("a.txt:4", "two\n"),
        ("b.jsonl:1", "three"),
        ("b.jsonl:3", "four"),
        ("c.csv:2", "five\r\nsix"),
        ("c.csv:5", "seven"),
    ]


def test_text_fields_keep_their_order_and_an_integer_is_an_id(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"pmid": 7, "abstract": "Body.", "title": "Head."}\n')
    [document] = read(tmp_path, ("title", "abstract"), "pmid")
    assert document == Document("7", ("Head.", "Body."), "a.jsonl", 1)


def test_a_folder_is_read_with_all_below_it_and_a_glob_as_it_says(tmp_path, monkeypatch):
    for name in ("b/x.txt", "a/deep/x.txt.gz", ".hidden/x.txt", "README.md", "a/y.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    assert list(find_files(str(tmp_path))) == ["a/deep/x.txt.gz", "a/y.csv", "b/x.txt"]
    assert list(find_files(f"{tmp_path}/**/*.csv")) == ["a/y.csv"]
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    assert find_files("a/*.csv") == {"y.csv": tmp_path / "a/y.csv"}
    assert find_files("b/x.txt") == {"x.txt": tmp_path / "b/x.txt"}
    monkeypatch.delenv("BERT_PIPELINE_DATA")
    monkeypatch.chdir(tmp_path)
    assert list(find_files("*/*.txt*")) == ["b/x.txt"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "runs[1]").mkdir()
    (tmp_path / "runs[1]" / "a.txt").write_text("text")
    assert list(find_files(str(tmp_path / "runs[1]"))) == ["a.txt"]
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path / "runs[1]"))
    assert list(find_files("*.txt")) == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "data", "record", "reason", "excerpt"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": "cut', "line 2", "line is not JSON", "cut"),
        ("a.jsonl", b'{"text": "fine"}\n["text"]\n', "line 2", "line is not a JSON object", '["text"]'),
        ("a.jsonl", b"[" * 100_000, "line 1", "line is not JSON", "[[["),
        ("a.jsonl", b'\n{"txt": "wrong key"}\n', "line 2", "text field text is missing", "wrong key"),
        ("a.jsonl", b'{"text": null}\n', "line 1", "text field text is missing", "None"),
        ("a.jsonl", b'{"text": 12345}\n', "line 1", "text field text is not a string", "12345"),
        ("a.jsonl", b'{"text": " .\\u0000"}\n', "line 1", "document without text", "."),
        ("a.jsonl", b'{"text": "caf\xe9 au lait"}\n', "line 1", "not UTF-8", "caf\\xe9 au lait"),
        ("a.jsonl", b'{"text": "half \\ud83d pair"}\n', "line 1", "half a surrogate pair", "half \\ud83d pair"),
        ("a.txt", b"one\n\ntwo\ncaf\xe9\n\nthree\n", "line 3", "not UTF-8", "caf\\xe9"),
        ("a.txt", b"one\n\n---\n", "line 3", "document without text", "---"),
        ("a.csv", b'id,text\n1,"two\nlines"\n2,b,c\n', "line 4", "wrong number of fields", "3 for 2 columns: 2,b,c"),
        ("a.csv", b"id,text\n1,caf\xe9\n", "line 2", "not UTF-8", "caf\\xe9"),
        ("a.csv", b'id,text\n1,"a"b\n2,c\n', "line 2", "row is not CSV", '1,"a"b'),
    ],
)
def test_a_broken_record_is_set_aside_and_the_others_are_read(name, data, record, reason, excerpt):
    rejections = [found for found in read_bytes(name, data) if isinstance(found, Rejection)]
    [rejection] = rejections
    assert (rejection.file, rejection.record) == (name, record)
    assert reason in rejection.reason
    assert excerpt in rejection.excerpt
    assert name in str(rejection) and record in str(rejection)


def test_a_parquet_value_that_is_not_utf8_is_set_aside(tmp_path):
    column = pa.array([b"fine", b"caf\xe9", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    documents = read(tmp_path, id_field="")
    assert documents[0] == Document("a.parquet:1", ("fine",), "a.parquet", 1)
    assert [(found.record, found.reason.split(",")[0]) for found in documents[1:]] == [
        ("row 2", "bytes that are not UTF-8"),
        ("row 3", "text field text is missing"),
    ]


def test_a_record_without_an_id_is_rejected(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "first"}\n{"id": "", "text": "no id"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "x", "text": "second"}\n{"id": true, "text": "no id"}\n')
    found = read(tmp_path)
    assert [each.texts for each in found if isinstance(each, Document)] == [("first",), ("second",)]
    rejections = [each for each in found if isinstance(each, Rejection)]
    assert [(each.file, each.record, each.reason, each.excerpt) for each in rejections] == [
        ("a.jsonl", "line 2", "id field id is not a string or an integer", "''"),
        ("b.jsonl", "line 2", "id field id is not a string or an integer", "True"),
    ]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_a_compressed_file_that_was_cut_short_stops_the_reading(tmp_path, suffix, compression):
    path = tmp_path / f"texts{suffix}{compression}"
    texts = [f"Document {n} is about {n * 7919 % 10007}." for n in range(2000)]
    whole = COMPRESSIONS[compression](FORMATS[suffix](texts))
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(SourceError, match=rf"{path.name}: cut short or corrupt after (line|row) \d+: .*; remedy: copy"):
        read(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"a\.txt: empty, it holds no record; remedy"),
        ("a.txt", b" \n\n", r"a\.txt: empty, it holds no record; remedy"),
        ("a.jsonl.gz", gzip.compress(b""), r"a\.jsonl\.gz: empty, it holds no record; remedy"),
        ("a.csv", b"id,text\n", r"a\.csv: empty, it holds no record; remedy"),
        ("a.gz.txt.gz", b"plain text", r"a\.gz\.txt\.gz: cut short or corrupt after line 0: Not a gzipped.*; remedy"),
        ("a.txt.xz", b"plain text", r"a\.txt\.xz: cut short or corrupt after line 0: .*; remedy"),
        ("a.txt.zst", b"plain text", r"a\.txt\.zst: cut short or corrupt after line 0: .*; remedy"),
        ("a.parquet", b"plain text", r"a\.parquet: cut short or corrupt after row 0: .*; remedy"),
        ("a.parquet", b"", r"a\.parquet: cut short or corrupt after row 0: .*; remedy"),
        ("a.csv", b"pmid,abstract\n1,b\n", r"a\.csv: no column text; the columns are pmid, abstract; remedy"),
        ("a.csv", b'id,text\n1,a\n2,"open\n3,b\n', r"a\.csv: line 3: a quoted field never ends; remedy"),
        ("a.csv", b'id,"te"xt\n', r"a\.csv: line 1: the header is not CSV: .*te"),
        ("a.json", b"{}", r"a\.json: unknown suffix \.json; remedy: name it \.txt, \.jsonl"),
        ("texts", b"{}", r"texts: unknown suffix \(none\); remedy"),
    ],
)
def test_a_broken_file_stops_the_reading(name, data, message):
    with pytest.raises(SourceError, match=message):
        read_bytes(name, data)


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path):
    pq.write_table(pa.table({"abstract": ["x"], "pmid": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: no column text; the columns are abstract, pmid; remedy"):
        read(tmp_path)


def test_a_path_that_leads_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=rf"{tmp_path}/missing: no such file or folder; remedy: .*BERT_PIPELINE_DATA"):
        find_files("missing")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(SourceError, match=rf"{tmp_path}: 1 files, none of them readable; remedy: name it \.txt"):
        find_files(".")
    with pytest.raises(SourceError, match=rf"{tmp_path}/\*\.md: 1 files, none of them readable; remedy"):
        find_files("*.md")
    with pytest.raises(SourceError, match="0 files, none of them readable"):
        find_files("nowhere/*.txt")


@pytest.mark.parametrize("suffix", FORMATS)
def test_progress_ends_at_the_size_of_the_files(tmp_path, suffix):
    for compression in COMPRESSIONS:
        data = COMPRESSIONS[compression](FORMATS[suffix](TEXTS))
        (tmp_path / f"a{suffix}{compression}").write_bytes(data)
    files = find_files(str(tmp_path))
    size = sum(path.stat().st_size for path in files.values())
    progress = Progress("reading", size, "bytes")
    assert len(list(read_documents(files, ("text",), progress=progress))) == 4 * len(TEXTS)
    assert progress.done == size
