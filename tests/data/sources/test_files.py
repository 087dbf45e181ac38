"""Reading documents from files: every format and compression, and the handling of broken files."""

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

from bert_pipeline.core.progress import Progress
from bert_pipeline.data.sources.files import find_files, read_documents
from bert_pipeline.data.sources.records import Document, Rejection, SourceError

TEXTS = [
    "β-Blockers lower IFN-γ by 3 µg/mL.\nA second line.",
    "Naïve cafe\u0301 cells\u2028stay one document.",
    'He said "no", twice.',
    "x" * 200_000 + " long",  # exceeds csv's default field size limit
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


def as_json(texts: list[str]) -> bytes:
    return json.dumps([{"id": f"d{n}", "text": text} for n, text in enumerate(texts)], indent=1).encode()


def as_tsv(texts: list[str]) -> bytes:
    out = io.StringIO(newline="")
    rows = [["id", "text"], *([f"d{n}", text] for n, text in enumerate(texts))]
    csv.writer(out, delimiter="\t").writerows(rows)
    return out.getvalue().encode()


def as_arrow(texts: list[str], new=pa.ipc.new_stream) -> bytes:
    out = io.BytesIO()
    table = pa.table({"id": [f"d{n}" for n in range(len(texts))], "text": texts})
    with new(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return out.getvalue()


def as_arrow_file(texts: list[str]) -> bytes:
    return as_arrow(texts, pa.ipc.new_file)


FORMATS = {
    ".txt": as_txt,
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".parquet": as_parquet,
    ".arrow": as_arrow,
    ".file.arrow": as_arrow_file,
}
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
def test_consecutive_compressed_members_are_one_file(tmp_path, compression):
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


def test_byte_order_marks_and_crlf_are_not_part_of_the_text(tmp_path):
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


def test_a_folder_is_read_recursively_and_a_glob_by_its_pattern(tmp_path, monkeypatch):
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
        ("a.jsonl", b'{"text": "a\x01b"}\n', "line 1", "line is not JSON", "\x01"),
        ("a.json", b'[{"text": "fine"}, null]', "record 2", "array element is not a JSON object", "null"),
        ("a.json", b'[{"text": "fine"}, {"txt": "a"}]', "record 2", "text field text is missing", "txt"),
        ("a.json", b'[{"text": ["a", "b"]}]', "record 1", "text field text is not a string", "['a', 'b']"),
        ("a.json", b'{"text": "fine"}\n{"text": "cut', "record 2", "line is not JSON", "cut"),
        ("a.json", b'[{"text": "caf\xe9 au lait"}]', "record 1", "not UTF-8", "caf\\xe9 au lait"),
        ("a.tsv", b"id\ttext\n1\ta,b\n2\tb\tc\n", "line 3", "wrong number of fields", "3 for 2 columns: 2\tb\tc"),
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
def test_a_broken_record_is_rejected_and_the_others_are_read(name, data, record, reason, excerpt):
    rejections = [found for found in read_bytes(name, data) if isinstance(found, Rejection)]
    [rejection] = rejections
    assert (rejection.file, rejection.record) == (name, record)
    assert reason in rejection.reason
    assert excerpt in rejection.excerpt
    assert name in str(rejection) and record in str(rejection)


def test_a_parquet_value_that_is_not_utf8_is_rejected(tmp_path):
    column = pa.array([b"fine", b"caf\xe9", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    documents = read(tmp_path, id_field="")
    assert documents[0] == Document("a.parquet:1", ("fine",), "a.parquet", 1)
    assert [(found.record, found.reason.split(",")[0]) for found in documents[1:]] == [
        ("row 2", "bytes that are not UTF-8"),
        ("row 3", "text field text is missing"),
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_every_kind_of_string_column_is_text(tmp_path, new, kind):
    table = pa.table({"text": pa.array(["β one", None, "two"]).cast(kind)})
    with new(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    first, rejection, last = read(tmp_path, id_field="")
    assert (first.texts, last.texts) == (("β one",), ("two",))
    assert (rejection.record, rejection.reason) == ("row 2", "text field text is missing")


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
@pytest.mark.parametrize("nested", [["a", "b"], {"en": "a"}])
def test_a_nested_text_column_is_refused_before_a_row_is_read(tmp_path, suffix, nested):
    table = pa.table({"text": [nested], "id": ["x"]})
    if suffix == ".parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(
        SourceError, match=r"column text is nested \((list|struct)<.*\); remedy: write its text to a column"
    ):
        read(tmp_path)


@pytest.mark.parametrize("write", [as_arrow, as_arrow_file])
def test_an_arrow_file_that_was_cut_anywhere_stops_the_reading(tmp_path, write):
    """Arrow itself accepts a stream that ends between two record batches."""
    whole = write([f"Text {number}." for number in range(20)])
    (tmp_path / "a.arrow").write_bytes(whole)
    assert len(read(tmp_path)) == 20
    for cut in range(0, len(whole), 8):
        (tmp_path / "a.arrow").write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"a\.arrow: cut short or corrupt after row \d+: "):
            read(tmp_path)


def test_two_arrow_streams_in_one_file_stop_the_reading(tmp_path):
    (tmp_path / "a.arrow").write_bytes(as_arrow(["one"]) + as_arrow(["two"]))
    with pytest.raises(SourceError, match="cut short or corrupt after row 1"):
        read(tmp_path)


@given(
    st.lists(st.dictionaries(st.sampled_from(["text", "n"]), st.text() | st.floats(allow_nan=False) | st.integers())),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 40),
)
def test_a_json_array_is_read_the_same_in_blocks_of_any_size(rows, indent, ascii_only, block):
    """Compared with json.loads; half a surrogate pair may occur."""
    from bert_pipeline.data.sources import text_readers

    data = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    whole, text_readers.JSON_BLOCK = text_readers.JSON_BLOCK, block
    try:
        found = list(text_readers.read_json(io.BytesIO(data), text_readers.Wanted(("text",))))
    finally:
        text_readers.JSON_BLOCK = whole
    assert found == list(enumerate(json.loads(data.decode("utf-8", "surrogateescape")), 1))


def test_control_characters_in_text_are_kept(tmp_path):
    """The corpus removes them later. Only LF, CR and CRLF end a line."""
    odd = "a\x00b\x01c\u2028d\u2029e\u0085f\x0bg\x0ch\x1ci\ufeffj\u200bk\x7fl"
    (tmp_path / "a.txt").write_text(odd + "\r\n\r\nsecond\r\rthird", newline="")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": odd}) + "\r\n")
    (tmp_path / "c.csv").write_text(f"text\n{odd}\n", newline="")
    texts = [document.texts[0].rstrip("\n") for document in read(tmp_path, id_field="")]
    assert texts == [odd, "second", "third", odd, odd]


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
    with pytest.raises(SourceError, match=rf"{path.name}: cut short or .* after (line|row|record) \d+: .*; remedy: "):
        read(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"a\.txt: empty, it holds no record; remedy"),
        ("a.txt", b" \n\n", r"a\.txt: empty, it holds no record; remedy"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz: empty, it holds no record; remedy"),
        ("a.csv", b"id,text\n", r"a\.csv: empty, it holds no record; remedy"),
        ("a.gz.txt.gz", b"plain text", r"a\.gz\.txt\.gz: cut short or corrupt after line 0: Not a gzipped.*; remedy"),
        ("a.txt.xz", b"plain text", r"a\.txt\.xz: cut short or corrupt after line 0: .*; remedy"),
        ("a.txt.zst", b"plain text", r"a\.txt\.zst: cut short or corrupt after line 0: .*; remedy"),
        ("a.parquet", b"plain text", r"a\.parquet: cut short or corrupt after row 0: .*; remedy"),
        ("a.parquet", b"", r"a\.parquet: cut short or corrupt after row 0: .*; remedy"),
        ("a.csv", b"pmid,abstract\n1,b\n", r"a\.csv: no column text; the columns are pmid, abstract; remedy"),
        ("a.csv", b'id,text\n1,a\n2,"open\n3,b\n', r"a\.csv: line 3: a quoted field never ends; remedy"),
        ("a.csv", b'id,"te"xt\n', r"a\.csv: line 1: the header is not CSV: .*te"),
        ("a.doc", b"{}", r"a\.doc: unknown suffix \.doc; remedy: use \.txt, \.jsonl"),
        ("a.json", b"[]", r"a\.json: empty, it holds no record; remedy"),
        (
            "a.json",
            b'[{"text": "a"}',
            r"a\.json: cut short or not JSON after record 1: Expecting ',' or '\]'.*; remedy",
        ),
        ("a.json", b'[{"text": "a"}, {"te', r"a\.json: cut short or not JSON after record 1: Unterminated string"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', r"a\.json: cut short or not JSON after record 1: Expecting ','"),
        ("a.json", b"[" * 100_000, r"a\.json: cut short or not JSON after record 0: .*recursion"),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', r"a\.json: text after the end of the JSON array: .*; remedy"),
        ("a.txt", "Text.\nMore.".encode("utf-16"), r"a\.txt: text in UTF-16 or UTF-32; remedy: convert it to UTF-8"),
        ("a.txt", "Text.".encode("utf-16-be"), r"a\.txt: text in UTF-16 or UTF-32; remedy: convert it to UTF-8"),
        ("a.jsonl", '{"text": "ß"}'.encode("utf-16-le"), r"a\.jsonl: text in UTF-16 or UTF-32; remedy"),
        ("a.json", '[{"text": "ß"}]'.encode("utf-32"), r"a\.json: text in UTF-16 or UTF-32; remedy"),
        ("a.csv", "id,text\n".encode("utf-16"), r"a\.csv: text in UTF-16 or UTF-32; remedy"),
        ("a.tsv", b"id\ttitle\n1\tb\n", r"a\.tsv: no column text; the columns are id, title; remedy"),
        ("a.csv", b"text,text\n1,b\n", r"a\.csv: more than one column text; the columns are text, text; remedy"),
        ("a.arrow", b"", r"a\.arrow: cut short or corrupt after row 0: .*; remedy"),
        ("a.arrow", b"plain text", r"a\.arrow: cut short or corrupt after row 0: .*; remedy"),
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


def test_an_error_names_a_path_without_files(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=rf"{tmp_path}/missing: no such file or folder; remedy: .*BERT_PIPELINE_DATA"):
        find_files("missing")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(SourceError, match=rf"{tmp_path}: 1 files, none in a supported format; remedy: use \.txt"):
        find_files(".")
    with pytest.raises(SourceError, match=rf"{tmp_path}/\*\.md: 1 files, none in a supported format; remedy"):
        find_files("*.md")
    with pytest.raises(SourceError, match="0 files, none in a supported format"):
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


ROWS = [{"id": f"d{n}", "text": f"Document {n} says “β” and\tmore.", "label": n} for n in range(2500)]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("name", ["a.json", "lines.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.arrow"])
def test_texts_equal_those_of_datasets(tmp_path, datasets, name):
    builder = {"jsonl": "json", "tsv": "csv"}.get(suffix := name.rpartition(".")[2], suffix)
    path, table = tmp_path / name, pa.Table.from_pylist(ROWS)
    if name == "a.json":
        path.write_text(json.dumps(ROWS))
    elif builder == "json":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    elif builder == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "label"], delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    elif builder == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    options = {"delimiter": "\t"} if suffix == "tsv" else {}
    theirs = datasets.load_dataset(
        builder, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"), **options
    )
    ours = list(read_documents({name: path}, ("text",), "id"))
    assert [(each.document_id, *each.texts) for each in ours] == list(zip(theirs["id"], theirs["text"], strict=True))
    if builder != "arrow":  # datasets reads an Arrow file in place
        assert texts_of(tmp_path / "cache") == list(theirs["text"]), "the cache written by datasets is a corpus, too"


def texts_of(path: Path) -> list[str]:
    return [document.texts[0] for document in read(path)]


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_saved_by_datasets_is_read_without_its_metadata(tmp_path, datasets, splits):
    whole = datasets.Dataset.from_list(ROWS)
    saved = whole.train_test_split(test_size=0.2, shuffle=False) if splits else whole
    folder = tmp_path / "saved"
    saved.save_to_disk(str(folder), **({} if splits else {"num_shards": 3}))
    loaded = datasets.load_from_disk(str(folder))
    parts = list(loaded.values()) if splits else [loaded]
    for part in parts:  # leaves cache-*.arrow beside the data
        part.map(lambda row: {"text": row["text"].upper()})
    assert list(folder.rglob("cache-*.arrow"))
    theirs = sorted(text for part in parts for text in part["text"])
    assert sorted(texts_of(folder)) == theirs and len(theirs) == len(ROWS)


READ_AND_TELL_PEAK = """
import re, sys
from pathlib import Path
from bert_pipeline.data.sources.files import read_documents
path = Path(sys.argv[1])
sizes = [len(document.texts[0]) for document in read_documents({path.name: path}, ("text",))]
print(sizes, re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_record_of_100_mb_is_read_in_bounded_memory(tmp_path, run_python, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(FORMATS[suffix](["word " * 20_000_000, "small"]))
    done = run_python("-c", READ_AND_TELL_PEAK, str(path))
    assert done.returncode == 0, done.stderr
    sizes, kilobytes = done.stdout.rsplit(" ", 1)
    assert json.loads(sizes)[1] == 5 and int(kilobytes) < 2**20, done.stdout
