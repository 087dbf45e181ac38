"""A corpus of PubMed files: updates build only their own shards, and the corpus of any day can be rebuilt."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.pubmed_files import write_pubmed_files
from bert_pipeline.data.corpus.build import build_raw_corpus
from bert_pipeline.data.corpus.sources import source_files
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.formats.corpus import corpus_shards
from bert_pipeline.formats.tables import SPLITS
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact
from bert_pipeline.store.shards import read_index

BASELINE, UPDATES, CITATIONS = 20, 2, 40


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """Baseline and update files, with the record of their downloads."""
    folder = tmp_path_factory.mktemp("pubmed")
    paths = write_pubmed_files(folder, BASELINE, CITATIONS, num_updates=UPDATES, deleted_fraction=0.1)
    lines = []
    for number, path in enumerate(paths, 1):
        data = path.read_bytes()
        day = "2026-01-05" if path.parent.name == "baseline" else f"2026-01-{number - BASELINE + 10:02d}"
        lines.append(
            {"name": path.name, "folder": path.parent.name, "bytes": len(data), "md5": hashlib.md5(data).hexdigest()}
            | {"sha256": hashlib.sha256(data).hexdigest(), "released": day, "url": f"https://example.org/{path.name}"}
        )
    (folder / "files.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def recipe(mirror: Path, **fields) -> CorpusRecipe:
    defaults = {"source": "pubmed", "path": str(mirror), "min_words": 50, "heldout_fraction": 0.2}
    defaults |= {"documents_per_shard": 16, "drop_retracted": True, "near_duplicate_threshold": 0.8}
    return CorpusRecipe.model_validate(defaults | fields)


def make(section: CorpusRecipe, destination: Path) -> Artifact:
    origin = {"kind": "raw_corpus", "section": section.model_dump(), "files": sorted(source_files(section))}
    return artifact.make(destination, origin, lambda out: build_raw_corpus(section, out))


def live(corpus: Path) -> dict[str, list[str]]:
    """Ids and sentences; each id once."""
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        for shard in corpus_shards(corpus, split):
            rows = shard.read("document_id", "sentences").to_pylist()
            assert len(rows) == shard.num_documents
            for row in rows:
                assert row["document_id"] not in found
                found[row["document_id"]] = row["sentences"]
    return found


def digests(corpus: Path) -> dict[str, str]:
    return {
        str(path.relative_to(corpus)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in corpus.rglob("*")
        if path.is_file() and path.name != "record.json"
    }


def test_updates_build_only_their_shards_and_equal_a_build_from_scratch(mirror, tmp_path, in_this_process):
    section = recipe(mirror)
    first = make(section.model_copy(update={"cutoff": "2026-01-05"}), tmp_path / "store" / "first")
    grown = make(section, tmp_path / "store" / "grown")
    before, after = read_index(first.path), read_index(grown.path)
    new = [name for name in after if name not in before]
    assert new == [f"file/pubmed26n{number:04d}.xml.gz" for number in range(BASELINE + 1, BASELINE + UPDATES + 1)]
    shards = [file for entry in after.values() for file in entry.files if not file.startswith("records")]
    written = [file for file in shards if (grown.path / file).stat().st_nlink == 1]
    assert 0 < len(written) < 0.15 * len(shards)
    alone = make(section, tmp_path / "alone" / "grown")
    assert digests(grown.path) == digests(alone.path)
    now = live(grown.path)
    assert any(now.get(name) != sentences for name, sentences in live(first.path).items()), (
        "the updates revise and delete"
    )


def test_yesterdays_corpus_can_be_rebuilt(mirror, tmp_path, in_this_process):
    section = recipe(mirror)
    yesterday = make(section.model_copy(update={"cutoff": "2026-01-11"}), tmp_path / "yesterday")
    assert yesterday.facts["cut_off"] == "2026-01-11" and yesterday.facts["files"] == BASELINE + 1
    by_list = section.model_copy(update={"sources_file": str(yesterday.path / "sources.jsonl")})
    again = make(by_list, tmp_path / "again")
    assert digests(again.path) == digests(yesterday.path)
    assert again.facts == yesterday.facts


def test_the_error_for_a_changed_or_missing_source_names_it(mirror, tmp_path, in_this_process):
    copy = shutil.copytree(mirror, tmp_path / "mirror")
    corpus = make(recipe(copy, cutoff="2026-01-05"), tmp_path / "corpus")
    listed = recipe(copy, sources_file=str(corpus.path / "sources.jsonl"))
    last = copy / "baseline" / f"pubmed26n{BASELINE:04d}.xml.gz"
    shutil.copyfile(copy / "baseline" / "pubmed26n0001.xml.gz", last)
    with pytest.raises(SourceError, match=rf"{last.name}: its sha256 is .* lists .*; remedy: restore the original"):
        make(listed, tmp_path / "other")
    with pytest.raises(
        SourceError, match=rf"{last.name}: .*, but it was downloaded with .*; remedy: remove it, and run"
    ):
        make(recipe(copy), tmp_path / "changed")
    last.unlink()
    with pytest.raises(SourceError, match=rf"lists {last.name}, which is missing; remedy: restore it"):
        make(listed, tmp_path / "missing")
    with pytest.raises(SourceError, match=r"none of \d+ files was released by corpus.cutoff = 2025-12-31"):
        make(recipe(mirror, cutoff="2025-12-31"), tmp_path / "early")
    (copy / "files.jsonl").unlink()
    with pytest.raises(SourceError, match=r"its release date is unknown.*download-pubmed"):
        make(recipe(copy, cutoff="2026-01-05"), tmp_path / "unknown")


def test_every_record_is_accounted_for_and_can_be_looked_up(mirror, tmp_path, in_this_process):
    made = make(recipe(mirror), tmp_path / "corpus")
    facts = made.facts
    documents = facts["train_documents"] + facts["heldout_documents"]
    assert facts["records"] == documents + facts["dropped_documents"] + facts["rejected_documents"]
    assert documents == len(live(made.path))
    rows = pq.read_table(made.path / "dropped.parquet").to_pylist()
    assert len(rows) == facts["dropped_documents"] == sum(facts["dropped_by_reason"].values())
    assert {"fewer words than corpus.min_words", "superseded by a later version"} <= set(facts["dropped_by_reason"])
    assert all(row["detail"].endswith(" words") for row in rows if row["reason"].startswith("fewer words"))
    assert sum(facts["documents_by_year"].values()) <= documents and facts["documents_by_journal"]
    assert facts["deletions"] > 0 and facts["cut_off"] == f"2026-01-{UPDATES + 10}"


@pytest.mark.parametrize("executor", ["processes", "dask"])
def test_workers_of_any_number_and_kind_make_the_same_corpus(mirror, tmp_path, monkeypatch, executor, request):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    section = recipe(mirror, cutoff="2026-01-05", cleaning=("all",), language="en")
    one = make(section, tmp_path / "one")
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")
    if executor == "dask":
        monkeypatch.setenv("BERT_PIPELINE_EXECUTOR", request.getfixturevalue("dask_cluster").address)
    assert digests(make(section, tmp_path / "other").path) == digests(one.path)
