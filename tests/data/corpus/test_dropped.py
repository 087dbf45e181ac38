"""Every dropped or rejected record can be looked up."""

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_pipeline.cli import main
from bert_pipeline.data.corpus import dropped
from bert_pipeline.data.corpus.build import build_raw_corpus
from bert_pipeline.data.corpus.dropped import Query, find_dropped
from bert_pipeline.formats.corpus import DROPPED_SCHEMA
from bert_pipeline.formats.tables import write_table
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError

ROWS = [
    ("11", "a.xml.gz", "superseded by a later version", "kept: version 2", "train/shard-0", 1),
    ("11", "b.xml.gz", "deleted", "", "", -1),
    ("12", "a.xml.gz", "near duplicate", "kept: 10, similarity 0.91", "train/shard-0", 2),
    ("13", "a.xml.gz", "duplicate text", "kept: 10", "", -1),
    ("a.txt:7", "a.txt", "shorter than corpus.min_words", "87 words", "", -1),
]
REJECTED = [
    {"file": "a.txt", "record": "line 7", "reason": "no text", "excerpt": ""},
    {"file": "b.xml.gz", "record": "record 3", "reason": "no date", "excerpt": "<PMID>11</PMID>"},
    {"file": "b.xml.gz", "record": "record 11", "reason": "no text", "excerpt": "\x1b[2J<PMID>115</PMID>"},
]


def table(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, DROPPED_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=DROPPED_SCHEMA)


def write_corpus(destination: Path, rows: list[tuple], rejected: list[dict]) -> Path:
    documents = {"document_id": ["10", "11", "12"], "source": ["a"] * 3}
    documents |= {"sentences": [["Kept."], ["First sentence.", "Second <b>."], ["Near. " * 100]]}

    def build(out: Path) -> dict:
        write_table(out / "train" / "shard-0.parquet", pa.table(documents))
        write_table(out / "dropped.parquet", table(rows))
        (out / "rejected.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rejected))
        return {}

    return artifact.make(destination, artifact.origin("raw_corpus", {}, {}, "1"), build).path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "raw_corpus", ROWS, REJECTED)


def test_an_id_gives_every_reason_and_the_stored_text(corpus):
    found = find_dropped(corpus, Query("11"), 10)
    assert found["dropped"] == {"deleted": 1, "superseded by a later version": 1}
    names = DROPPED_SCHEMA.names
    assert [{name: row[name] for name in names} for row in found["rows"]] == [
        dict(zip(names, row, strict=True)) for row in ROWS[:2]
    ]
    assert [row["text"] for row in found["rows"]] == ["First sentence.\nSecond <b>.", None]
    assert found["rejections"] == REJECTED[1:], "one names it, of the other it is the number; 115 is another id"


def test_an_id_made_of_file_and_number_finds_the_broken_record(corpus):
    found = find_dropped(corpus, Query("a.txt:7"), 10)
    assert found["rejections"] == REJECTED[:1]
    assert found["dropped"] == {"shorter than corpus.min_words": 1}


@pytest.mark.parametrize(
    ("reason", "count", "counts"),
    [
        ("duplicate", 10, {"duplicate text": 1, "near duplicate": 1}),
        ("Near", 10, {"near duplicate": 1}),
        ("no text", 10, {}),
        ("", 2, {row[2]: 1 for row in ROWS}),
        ("", 0, {row[2]: 1 for row in ROWS}),
    ],
)
def test_a_reason_is_counted_in_full_and_shown_in_part(corpus, reason, count, counts):
    found = find_dropped(corpus, Query(reason=reason), count)
    assert found["dropped"] == counts
    assert len(found["rows"]) == min(count, len(counts))
    rejected = sum(reason.lower() in each["reason"] for each in REJECTED)
    assert sum(found["rejected"].values()) == rejected and len(found["rejections"]) == min(count, rejected)


def test_the_command_prints_tables_without_control_characters(corpus, capsys):
    assert main(["dropped", str(corpus)]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert {"records list reason", "1 dropped near duplicate", "2 rejected no text"} <= set(lines)
    assert "12 near duplicate kept: 10, similarity 0.91 a.xml.gz" in lines
    assert "First sentence." in out and "Near. " * 60 not in out, "a long text is cut"
    assert "\\x1b[2J" in out and "\x1b" not in out
    assert main(["dropped", str(corpus), "--id", "12"]) == 0
    assert "Near. " * 60 in capsys.readouterr().out, "the text of one document is not cut"
    assert main(["dropped", str(corpus), "--id", "99"]) == 0
    assert capsys.readouterr().out == "No dropped or rejected record matches.\n"
    assert main(["dropped", str(corpus), "--reason", "near", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == find_dropped(corpus, Query(reason="near"), 10)


def test_a_directory_without_a_corpus_or_with_an_older_one_is_an_error(corpus, tmp_path, capsys):
    assert main(["dropped", str(tmp_path)]) == 1
    assert "is no artifact" in capsys.readouterr().err
    (tmp_path / "record.json").write_bytes((corpus / "record.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"dropped.parquet is missing: .*remedy: build it again"):
        find_dropped(tmp_path, Query(), 3)


def test_a_row_missing_in_its_shard_is_an_error(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [("11", "a", "retracted", "", "train/shard-0", 3)], [])
    with pytest.raises(ArtifactError, match=r"shard-0.parquet has no row 3"):
        find_dropped(corpus, Query("11"), 3)


def test_a_long_list_is_searched_in_the_memory_of_a_batch(tmp_path):
    """1.5 million records in 24 row groups."""
    corpus = write_corpus(tmp_path / "corpus", ROWS, [])
    num_rows, per_group = 1_500_000, 62_500
    with pq.ParquetWriter(corpus / "dropped.parquet", DROPPED_SCHEMA) as writer:
        for first in range(0, num_rows, per_group):
            ids = np.arange(first, first + per_group).astype(str)
            arrays = [ids, *(pa.repeat(pa.scalar(value), per_group) for value in ROWS[1][1:])]
            arrays = [pa.array(array).cast(field.type) for array, field in zip(arrays, DROPPED_SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=DROPPED_SCHEMA))
    held = []

    def watched(*arguments):
        for each in original(*arguments):
            held.append(pa.total_allocated_bytes())
            yield each

    original, before = dropped._dropped, pa.total_allocated_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropped, "_dropped", watched)
        found = find_dropped(corpus, Query("1499999"), 3)
    assert found["dropped"] == {"deleted": 1} and len(found["rows"]) == 1
    whole = pq.read_table(corpus / "dropped.parquet").nbytes
    assert len(held) >= 24 and max(held) - before < whole / 2
    assert max(held) - held[0] < whole / 20, "the last batches take no more than the first"


def test_files_of_the_folder_that_were_not_read_are_listed(tmp_path, capsys):
    """The account by file: what is read, and what is passed over, is what lies in the folder."""
    texts, out = tmp_path / "texts", tmp_path / "corpus"
    (texts / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.text", "sub/c.jsonl"):
        rows = [f"{name} says {number}. It is a text." for number in range(20)]
        lines = [json.dumps({"text": row}) for row in rows]
        (texts / name).write_text("\n".join(lines) if name.endswith("jsonl") else "\n\n".join(rows))
    with (texts / "sub" / "c.jsonl").open("a") as file:
        file.write('\n{"text": 5}\n{"text": "a.txt says 1. It is a text."}\n')
    for name in ("d.pdf", "sub/e.pdf", ".f.txt"):
        (texts / name).write_bytes(b"x" * 7)
    section = CorpusRecipe(path=str(texts), heldout_fraction=0.2, max_rejected_fraction=0.1)
    made = artifact.make(out, artifact.origin("raw_corpus", {}, {}, "1"), lambda out: build_raw_corpus(section, out))
    assert made.facts["passed_over"] == {
        "unknown suffix .pdf": {"files": 2, "bytes": 14},
        "hidden": {"files": 1, "bytes": 7},
    }
    facts = made.facts
    assert facts["records"] == 62 == facts["train_documents"] + facts["heldout_documents"] + 1 + 1
    found = find_dropped(out, Query(), 10)
    assert found["passed_over"] == {"unknown suffix .pdf": 2, "hidden": 1}
    assert sum(found["dropped"].values()) == 1 and sum(found["rejected"].values()) == 1
    read = [json.loads(line)["name"] for line in (out / "sources.jsonl").read_text().splitlines()]
    below = sorted(path.relative_to(texts).as_posix() for path in texts.rglob("*") if path.is_file())
    assert sorted([*read, *(each["file"] for each in found["files"])]) == below
    assert find_dropped(out, Query("sub/e.pdf"), 10)["files"] == [
        {"file": "sub/e.pdf", "bytes": 7, "reason": "unknown suffix .pdf"}
    ]
    assert main(["dropped", str(out), "--reason", "pdf"]) == 0
    printed = capsys.readouterr().out
    assert "sub/e.pdf" in printed and "2" in printed and ".f.txt" not in printed
    pinned = section.model_copy(update={"sources_file": str(tmp_path / "sources.jsonl")})
    (tmp_path / "sources.jsonl").write_text((out / "sources.jsonl").read_text().splitlines()[0] + "\n")
    (tmp_path / "pinned").mkdir()
    build_raw_corpus(pinned, tmp_path / "pinned")
    lines = (tmp_path / "pinned" / "passed_over.jsonl").read_text().splitlines()
    assert {row["file"]: row["reason"] for row in map(json.loads, lines)}["b.text"] == "not in corpus.sources_file"


def test_members_of_an_archive_that_were_not_read_are_listed(tmp_path, caplog):
    """Also where a later build takes the shards of the archive from an earlier one."""
    texts = tmp_path / "texts"
    texts.mkdir()
    meta = "<front><article-meta><article-id pub-id-type='pmc'>{0}</article-id></article-meta></front>"
    article = f"<article>{meta}<body><p>Text {{0}}. It has two sentences.</p></body></article>"
    files = {f"{number}.nxml": article.format(number).encode() for number in range(20)}
    files |= {"a.jpg": b"x" * 7, "b.JPG": b"x" * 5, "LICENCE": b"x"}
    with tarfile.open(texts / "articles.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    section = CorpusRecipe(path=str(texts), text_fields=("body",), heldout_fraction=0.3)
    (texts / "d.pdf").write_bytes(b"xx")
    jpg, none = (f"suffix {each} in a .tar, where only .nxml, .xml are read" for each in (".jpg", "(none)"))
    for build in ("first", "second"):
        origin = artifact.origin("raw_corpus", {"build": build}, {}, "1")
        with caplog.at_level(logging.INFO):
            made = artifact.make(tmp_path / "store" / build, origin, lambda out: build_raw_corpus(section, out))
        assert made.facts["passed_over"] == {
            jpg: {"files": 2, "bytes": 12},
            "unknown suffix .pdf": {"files": 1, "bytes": 2},
            none: {"files": 1, "bytes": 1},
        }
        assert made.facts["records"] == 20
        [found] = find_dropped(made.path, Query("articles.tar.gz/a.jpg"), 10)["files"]
        assert found == {"file": "articles.tar.gz/a.jpg", "bytes": 7, "reason": jpg}
    assert caplog.text.count("passing over 3 members of archives: 2 suffix .jpg in a .tar") == 2
