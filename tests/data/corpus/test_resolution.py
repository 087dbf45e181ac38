"""The resolution of records equals a replay of all records, one after the other (fault row I10)."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bert_pipeline.data.corpus import ledger as ledgers
from bert_pipeline.data.corpus import resolution
from bert_pipeline.data.corpus.ledger import Ledger
from bert_pipeline.data.corpus.resolution import LIVES, resolve, write_outcome
from bert_pipeline.data.corpus.shard import deal, write_shard
from bert_pipeline.data.sources.records import Document
from bert_pipeline.formats.corpus import iterate_documents
from bert_pipeline.formats.tables import SPLITS
from bert_pipeline.recipe import CorpusRecipe

SECTION = CorpusRecipe(source="pubmed", path="x", heldout_fraction=0.3, documents_per_shard=4, drop_retracted=True)


def replay(files: list[list[Document]], drop_retracted: bool) -> dict[str, Document]:
    """The corpus after applying all records in order. Duplicate texts are not removed."""
    versions: dict[tuple[str, int], Document] = {}
    for record in (record for file in files for record in file):
        if record.deleted:
            versions.pop((record.document_id, record.version), None)
        else:
            versions[record.document_id, record.version] = record
    latest = {record.document_id: record for _, record in sorted(versions.items())}
    notices = {retracted for record in latest.values() for retracted in record.retracts}
    return {
        name: record
        for name, record in latest.items()
        if record.texts[1] and not (drop_retracted and (record.retracted or name in notices))
    }


def resolved(files: list[list[Document]], out: Path, section: CorpusRecipe):
    names: list[str] = []
    for file in files:
        for name, records in deal(section, file):
            write_shard(out, section, name, records)
            names.append(name)
    random.Random(1).shuffle(names)
    ledger = Ledger.open(out, names, [f"f{n}" for n in range(len(files))])
    versioned = section.source == "pubmed"
    fates = resolve(ledger, versioned, section.drop_retracted, section.near_duplicate_threshold)
    counts = write_outcome(ledger, fates, {f"{name}.parquet": "" for name in names})
    return fates, counts


def live_documents(out: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for row in pq.read_table(out / "live.parquet").to_pylist():
        table = pq.read_table(out / f"{row['shard']}.parquet").to_pylist()
        alive = [each for number, each in enumerate(table) if number not in row["left_out"]]
        assert len(alive) == row["documents"]
        for each in alive:
            assert each["document_id"] not in found, "each id once"
            found[each["document_id"]] = (each["version"], each["sentences"][-1])
    return found


RECORDS = st.builds(
    Document,
    document_id=st.sampled_from([f"id-{n}" for n in range(8)]),
    texts=st.sampled_from(["", "First text of", "Second text of", "Third text of"]).map(lambda text: ("Title.", text)),
    source=st.just(""),
    version=st.sampled_from([1, 1, 1, 2, 3]),
    retracted=st.sampled_from([False, False, False, True]),
    retracts=st.sampled_from([(), (), (), ("id-3",), ("id-1", "id-5")]),
    deleted=st.sampled_from([False, False, False, False, True]),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.lists(st.lists(RECORDS, min_size=1, max_size=12), min_size=1, max_size=5),
    drop_retracted=st.booleans(),
    at_a_time=st.sampled_from([1, 3, 2**22]),
)
def test_the_outcome_equals_a_replay(tmp_path_factory, files, drop_retracted, at_a_time):
    check_history(tmp_path_factory.mktemp("history"), files, drop_retracted, at_a_time)


@pytest.mark.slow
def test_a_thousand_histories_equal_a_replay(tmp_path_factory):
    rng = random.Random(7)
    for number in range(1000):
        files = [
            [
                Document(
                    f"id-{rng.randrange(12)}",
                    ("Title.", rng.choice(["", "First text of", "Second text of", "Third text of"])),
                    "",
                    version=rng.choice([1, 1, 1, 2, 3]),
                    retracted=rng.random() < 0.1,
                    retracts=(f"id-{rng.randrange(12)}",) if rng.random() < 0.1 else (),
                    deleted=rng.random() < 0.15,
                )
                for _ in range(rng.randint(1, 30))
            ]
            for _ in range(rng.randint(1, 6))
        ]
        check_history(tmp_path_factory.mktemp(f"h{number}-"), files, rng.random() < 0.5, rng.choice([5, 2**22]))


def check_history(out: Path, files: list[list[Document]], drop_retracted: bool, at_a_time: int) -> None:
    def placed(record: Document, source: str, number: int) -> Document:
        """The record with a text that no other document has."""
        text = record.texts[1] and f"{record.texts[1]} {record.document_id}."
        texts = () if record.deleted else (record.texts[0], text)
        return record._replace(source=source, number=number, texts=texts)

    files = [[placed(record, f"f{n}", k) for k, record in enumerate(file, 1)] for n, file in enumerate(files)]
    section = SECTION.model_copy(update={"drop_retracted": drop_retracted, "min_words": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledgers, "RECORDS_AT_A_TIME", at_a_time)
        fates, counts = resolved(files, out, section)
    found = live_documents(out)
    expected = replay(files, drop_retracted)
    assert found == {name: (record.version, record.texts[1]) for name, record in expected.items()}
    num_records = sum(not record.deleted for file in files for record in file)
    assert num_records == sum(counts.values()) + len(found), "every record is accounted for"
    dropped = pq.read_table(out / "dropped.parquet").to_pylist()
    assert len(dropped) == sum(counts.values()) and all(row["reason"] for row in dropped)
    assert int((fates.codes == LIVES).sum()) == len(found)


def write(out: Path, files: list[list[tuple[str, str]]], section: CorpusRecipe):
    records = [
        [Document(name, ("", text), f"f{n}", number) for number, (name, text) in enumerate(file, 1)]
        for n, file in enumerate(files)
    ]
    return resolved(records, out, section)


def test_a_revision_without_a_change_of_content_moves_no_row(tmp_path):
    """The earlier row is kept; the later record is dropped as a revision that changes nothing."""
    same, other = ("a", "The same words."), ("b", "Some words.")
    _, counts = write(tmp_path, [[same, other], [same, ("b", "Better words.")]], SECTION)
    assert counts == {"superseded by a later version": 1, "a revision that changes nothing here": 1}
    dropped = pq.read_table(tmp_path / "dropped.parquet").to_pylist()
    assert {(row["document_id"], row["source"], row["detail"]) for row in dropped} == {
        ("b", "f0", "stays: b (f1, record 2)"),
        ("a", "f1", "stays: a (f0, record 1)"),
    }


def test_the_first_of_documents_with_the_same_text_is_kept(tmp_path):
    section = SECTION.model_copy(update={"source": "files", "drop_retracted": False})
    files = [[("a", "Words here."), ("b", "Words  here.")], [("c", "Words here."), ("a", "Other words.")]]
    _, counts = write(tmp_path, files, section)
    assert counts == {"duplicate text": 2, "duplicate document id": 1}
    assert [sentences for split in SPLITS for sentences in texts(tmp_path, split)] == [["Words here."]]


def texts(out: Path, split: str) -> list[list[str]]:
    try:
        return list(iterate_documents(out, split))
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("band_bytes", [1, 2**29])
def test_near_duplicates_of_an_earlier_document_are_dropped(tmp_path, monkeypatch, band_bytes):
    monkeypatch.setattr(resolution, "BAND_BYTES", band_bytes)
    rng = random.Random(3)
    words = [f"word{n}" for n in range(3000)]
    base = [rng.choices(words, k=150) for _ in range(6)]
    near = [[*text[:149], "changed"] for text in base]
    section = SECTION.model_copy(update={"source": "files", "drop_retracted": False, "near_duplicate_threshold": 0.8})
    files = [
        [(f"base-{n}", f"The {' '.join(text)}.") for n, text in enumerate(base)],
        [(f"near-{n}", f"The {' '.join(text)}.") for n, text in enumerate(near)],
    ]
    _, counts = write(tmp_path, files, section)
    assert counts == {"near duplicate": 6}
    for row in pq.read_table(tmp_path / "dropped.parquet").to_pylist():
        assert row["document_id"].startswith("near-")
        assert row["detail"].startswith(f"stays: {row['document_id'].replace('near', 'base')} (f0, record ")
        assert "similarity 0.9" in row["detail"] or row["detail"].endswith(")")


def test_a_superseded_version_causes_no_duplicate(tmp_path):
    """The old version of `a` has the text of `b`, but it is superseded, so `b` is not a duplicate."""
    _, counts = write(tmp_path, [[("a", "Shared words."), ("b", "Shared words.")], [("a", "New words.")]], SECTION)
    assert counts == {"superseded by a later version": 1}
    assert set(live_documents(tmp_path)) == {"a", "b"}
