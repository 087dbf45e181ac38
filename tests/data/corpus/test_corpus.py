"""The raw corpus: cleaning, the split, shards of at least two documents, broken records, bad input."""

import gzip
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_pipeline.data.corpus import build as corpus
from bert_pipeline.data.corpus import shard as corpus_shard
from bert_pipeline.data.corpus.build import build_raw_corpus, group_files
from bert_pipeline.data.corpus.shard import Pile, clean, split_of
from bert_pipeline.data.corpus.sources import read_source_files as read
from bert_pipeline.data.corpus.sources import source_files
from bert_pipeline.data.sources.records import Document, SourceError
from bert_pipeline.formats.corpus import CORPUS_SCHEMA, corpus_shards, iterate_documents
from bert_pipeline.formats.tables import SPLITS, shard_name, shard_paths
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.store import artifact


@pytest.fixture(autouse=True)
def one_worker(monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")


def write_jsonl(path: Path, numbers) -> Path:
    rows = ({"id": f"d{n}", "title": f"Title {n}", "text": f"Drug {n} works. It was safe."} for n in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(path: Path, **fields: Any) -> CorpusRecipe:
    defaults: dict[str, Any] = {"id_field": "id", "heldout_fraction": 0.2, "documents_per_shard": 16}
    return CorpusRecipe(path=str(path), **(defaults | fields))


def build(section: CorpusRecipe, out: Path):
    out.mkdir()
    return build_raw_corpus(section, out)


def ids(corpus: Path, split: str) -> list[str]:
    return [i for shard in corpus_shards(corpus, split) for i in shard.read("document_id")["document_id"].to_pylist()]


def test_documents_are_split_into_sentences_field_by_field(tmp_path):
    facts = build(
        recipe(write_jsonl(tmp_path / "a.jsonl", range(100)), text_fields=("title", "text")), tmp_path / "out"
    )
    train, heldout = ids(tmp_path / "out", "train"), ids(tmp_path / "out", "heldout")
    assert Counter(train + heldout) == Counter(f"d{n}" for n in range(100))
    for path in shard_paths(tmp_path / "out" / "train", "parquet"):
        inside = [int(i[1:]) for i in pq.read_table(path)["document_id"].to_pylist()]
        assert inside == sorted(inside), "documents keep the order of the source"
        assert path.stem == shard_name(f"a.jsonl:{inside[0] + 1}"), "by the place of its first record"
    sentences = list(iterate_documents(tmp_path / "out", "train"))
    assert sentences == [[f"Title {i[1:]}", f"Drug {i[1:]} works.", "It was safe."] for i in train]
    table = pq.read_table(shard_paths(tmp_path / "out" / "train", "parquet")[0])
    assert table.schema.equals(CORPUS_SCHEMA)
    assert set(table["source"].to_pylist()) == {"a.jsonl"}
    assert facts["train_documents"] == len(train) and facts["heldout_documents"] == len(heldout)
    assert facts["train_sentences"] == 3 * len(train) and facts["heldout_words"] == 8 * len(heldout)
    assert facts["example"] == "\n".join(sentences[0])
    assert facts["sentences_per_document_histogram"] == {"edges": [3, 4], "counts": [100]}
    assert facts["words_per_document_histogram"] == {"edges": [8, 11], "counts": [100]}
    assert facts["rejected_documents"] == 0 and facts["rejected_by_reason"] == {}
    assert (tmp_path / "out" / "rejected.jsonl").read_text() == ""
    json.dumps(facts)


def test_the_number_of_workers_changes_no_byte(tmp_path, monkeypatch):
    section = recipe(write_jsonl(tmp_path / "a.jsonl", range(150)))
    shards, facts = [], []
    for workers in ("1", "2"):
        monkeypatch.setenv("BERT_PIPELINE_WORKERS", workers)
        out = tmp_path / workers
        facts.append(build(section, out))
        shards.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.*")})
    assert shards[0] == shards[1] and len(shards[0]) > 8
    assert facts[0] == facts[1]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=80), documents_per_shard=st.integers(2, 12))
def test_all_shards_but_the_last_are_full_and_the_last_is_not_small(sizes, documents_per_shard):
    characters = 60
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_shard, "CHARACTERS_PER_SHARD", characters)
        pile = Pile(documents_per_shard)
        documents = [Document(str(n), ("x" * size,), "a") for n, size in enumerate(sizes)]
        shards = [leaving for document in documents if (leaving := pile.add(document))]
    assert [each for shard in [*shards, pile.documents] for each in shard] == documents
    for shard in shards:
        lengths = [len(document.texts[0]) for document in shard]
        assert len(shard) == documents_per_shard or (sum(lengths) >= characters > sum(lengths[:-1]))
    rest = sum(len(document.texts[0]) for document in pile.documents)
    if shards:
        assert len(pile.documents) >= documents_per_shard / 2 or rest >= characters / 2
    assert len(pile.documents) <= 1.5 * documents_per_shard and rest < 1.5 * characters + 30


@given(
    st.lists(st.integers(0, 3 * corpus.GROUP_BYTES // 2), min_size=1, max_size=40), st.integers(0, 40), st.booleans()
)
def test_a_new_file_changes_its_own_group_only(tmp_path_factory, sizes, place, large):
    folder = tmp_path_factory.mktemp("groups")
    files = {}
    for n, size in enumerate(sizes):
        files[f"f{n:03d}"] = folder / f"f{n:03d}"
        with files[f"f{n:03d}"].open("wb") as stream:
            stream.truncate(size)
    new = f"f{place:03d}+"
    (folder / new).write_bytes(b"")
    os.truncate(folder / new, corpus.GROUP_BYTES if large else 100)
    before = [tuple(group) for group in group_files(files)]
    after = [tuple(group) for group in group_files(dict(sorted((files | {new: folder / new}).items())))]
    assert [name for group in before for name in group] == list(files)
    changed = set(before) - set(after)
    assert len(changed) <= 1
    for group in after:
        sized = [(folder / name).stat().st_size >= corpus.GROUP_BYTES for name in group]
        assert not any(sized) or len(group) == 1, "a large file is a group by itself"


def test_a_new_file_builds_its_own_shards_and_changes_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "GROUP_BYTES", 1)
    texts = tmp_path / "texts"
    texts.mkdir()
    for part in range(3):
        write_jsonl(texts / f"{2 * part}.jsonl", range(100 * part, 100 * part + 60))
    first = artifact.make(
        tmp_path / "store/first", {"kind": "c", "code_version": "1"}, lambda o: build_raw_corpus(recipe(texts), o)
    )
    write_jsonl(texts / "1.jsonl", range(1000, 1060))
    split = []
    monkeypatch.setattr(
        corpus,
        "read_source_files",
        lambda section, files, *rest: split.append(list(files)) or read(section, files, *rest),
    )
    grown = artifact.make(
        tmp_path / "store/grown",
        {"kind": "c", "code_version": "1", "n": 2},
        lambda o: build_raw_corpus(recipe(texts), o),
    )
    assert split == [["1.jsonl"]], "only the new file is read"
    alone = artifact.make(
        tmp_path / "alone/grown",
        {"kind": "c", "code_version": "1", "n": 2},
        lambda o: build_raw_corpus(recipe(texts), o),
    )
    assert contents(grown.path) == contents(alone.path) and grown.facts == alone.facts
    assert set(contents(first.path)) < set(contents(grown.path))


def test_an_id_that_a_new_earlier_file_takes_is_dropped_from_the_later_one(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "GROUP_BYTES", 1)
    texts = tmp_path / "texts"
    texts.mkdir()
    write_jsonl(texts / "b.jsonl", range(60))
    section = recipe(texts, max_rejected_fraction=0.5)
    for number, files in enumerate([["b"], ["a", "b"], ["b"]]):
        (texts / "a.jsonl").unlink(missing_ok=True)
        if "a" in files:
            write_jsonl(texts / "a.jsonl", range(50, 120))
        made = artifact.make(
            tmp_path / f"store/{number}", {"kind": "c", "n": number}, lambda o: build_raw_corpus(section, o)
        )
        every = Counter(ids(made.path, "train") + ids(made.path, "heldout"))
        assert set(every.values()) == {1} and len(every) == (120 if "a" in files else 60)
        assert made.facts["dropped_by_reason"] == ({"duplicate document id": 10} if "a" in files else {})
        alone = artifact.make(
            tmp_path / f"alone-{number}/0", {"kind": "c", "n": number}, lambda o: build_raw_corpus(section, o)
        )
        assert contents(made.path) == contents(alone.path)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*.parquet")}


def test_other_documents_do_not_move_a_document_to_the_other_split(tmp_path):
    few, many = tmp_path / "few.jsonl", tmp_path / "many.jsonl"
    build(recipe(write_jsonl(few, range(0, 100, 2))), tmp_path / "out-few")
    build(recipe(write_jsonl(many, range(99, -1, -1))), tmp_path / "out-many")
    for split in SPLITS:
        assert set(ids(tmp_path / "out-few", split)) <= set(ids(tmp_path / "out-many", split))


def test_the_split_is_stable_and_has_the_requested_share():
    assert [n for n in range(40) if split_of(f"pmid-{n}", 0.1) == "heldout"] == [15, 30]
    names = [f"pmid-{n}" for n in range(20_000)]
    heldout = {share: {name for name in names if split_of(name, share) == "heldout"} for share in (0, 0.01, 0.1, 1)}
    assert len(heldout[0]) == 0 and len(heldout[1]) == len(names)
    assert heldout[0.01] < heldout[0.1], "a larger share only adds"
    assert abs(len(heldout[0.1]) - 2_000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_text_is_normalised_and_control_characters_are_removed(tmp_path):
    text = "Cafe\u0301 β\u00adblockers\u200b and\x00 ﬁbrin\x07\ufeff\tstay\u2028here. Ångström (Å) too."
    assert clean("e\u0301ﬁ\x00\u00ad\t\x85", "NFC") == "éﬁ\t\x85"
    assert clean("e\u0301ﬁ", "NFKC") == "éfi"
    assert clean("e\u0301ﬁ", "none") == "e\u0301ﬁ"
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": f"{text} {n}."}) + "\n" for n in range(40)))
    build(recipe(path), tmp_path / "out")
    for document in iterate_documents(tmp_path / "out", "train"):
        assert document[:2] == ["Café βblockers and ﬁbrin stay here.", "Ångström (Å) too."]


def test_text_that_is_split_already_keeps_its_sentences(tmp_path):
    document = "Mr. Smith gave 5 mg\nof it.  Then\t no more.\u2028Still the second line\n \n"
    rows = ({"id": f"d{n}", "text": f"{document}{n}"} for n in range(40))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build(recipe(tmp_path / "a.jsonl", sentence_splitter="lines"), tmp_path / "out")
    for sentences in iterate_documents(tmp_path / "out", "train"):
        assert sentences[:2] == ["Mr. Smith gave 5 mg", "of it. Then no more. Still the second line"]


def test_broken_records_are_kept_aside_with_their_reasons(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", range(60))
    with path.open("ab") as file:
        file.write(b'{"id": "bad-1", "text": "cut\n{"id": "d3", "text": "again"}\n{"id": "bad-2", "text": "caf\xe9"}\n')
    facts = build(recipe(path, max_rejected_fraction=0.05), tmp_path / "out")
    aside = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["record"]) for row in aside] == [("a.jsonl", f"line {n}") for n in (61, 63)]
    assert [row["excerpt"] for row in aside][1:] == ["caf\\xe9"]
    assert facts["rejected_documents"] == 2 and facts["dropped_by_reason"] == {"duplicate document id": 1}
    assert facts["rejected_by_reason"] == Counter(row["reason"] for row in aside)
    assert facts["train_documents"] + facts["heldout_documents"] == 60


def test_more_broken_records_than_the_recipe_allows_stop_the_stage(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", range(60))
    with path.open("a") as file:
        file.write('{"id": "x", "text": "cut\n{"id": "y", "body": "wrong key"}\n')
    with pytest.raises(SourceError) as raised:
        build(recipe(path), tmp_path / "out")
    first, *shown = str(raised.value).splitlines()
    assert "2 of 62 records are broken, more than corpus.max_rejected_fraction = 0.001" in first and "remedy" in first
    assert "a.jsonl, line 61: line is not JSON" in shown[0] and "cut" in shown[0]
    assert "a.jsonl, line 62: text field text is missing" in shown[1] and "wrong key" in shown[1]


@pytest.mark.parametrize(
    ("numbers", "share", "message"),
    [
        (range(1), 0.2, "a.jsonl: 1 documents, . for training and . held out .*; remedy: add documents"),
        (range(3), 0.5, "3 documents, .*each split needs at least 2, .*; remedy: add documents"),
        (range(50), 0.0, r"50 for training and 0 held out \(corpus.heldout_fraction = 0\).*remedy: raise .* to 0\.2"),
        (range(50), 1.0, "0 for training and 50 held out .*remedy: lower corpus.heldout_fraction"),
    ],
)
def test_each_split_needs_two_documents(tmp_path, numbers, share, message):
    with pytest.raises(SourceError, match=message):
        build(recipe(write_jsonl(tmp_path / "a.jsonl", numbers), heldout_fraction=share), tmp_path / "out")


def test_a_text_file_without_blank_lines_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("One long text.\nIt has no blank line.\n")
    with pytest.raises(SourceError, match=r"a\.txt: 1 documents.*a blank line separates documents"):
        build(recipe(tmp_path / "a.txt"), tmp_path / "out")


def test_a_file_cut_short_after_shards_were_written_publishes_nothing(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(write_jsonl(tmp_path / "a.jsonl", range(5_000)).read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    destination, section = tmp_path / "store" / "corpus", recipe(path)
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: cut short or corrupt after line \d+: .*; remedy: copy"):
        artifact.make(destination, {"kind": "raw_corpus"}, lambda out: build_raw_corpus(section, out))
    assert not destination.exists()


def test_source_files_name_what_the_corpus_is_made_of(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", range(3))
    assert source_files(recipe(tmp_path)) == {"a.jsonl": path}
    assert source_files(CorpusRecipe(source="sample")) == {}


def test_the_sample_is_a_corpus(tmp_path):
    facts = build(CorpusRecipe(source="sample", sample_documents=200, heldout_fraction=0.1), tmp_path / "out")
    assert facts["train_documents"] + facts["heldout_documents"] == 200
    assert facts["train_sentences"] > 2 * facts["train_documents"]


@pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")
@pytest.mark.slow
def test_real_abstracts(tmp_path):
    section = CorpusRecipe(path="corpus/pubmed-abstracts.jsonl.gz", text_fields=("title", "text"), id_field="id")
    facts = build(section, tmp_path / "out")
    assert facts["rejected_by_reason"] == {"duplicate document id": 6}
    assert facts["train_documents"] + facts["heldout_documents"] == 42_343 - 6


CITATIONS = """<?xml version="1.0" ?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" "x.dtd">
<PubmedArticleSet>{}</PubmedArticleSet>
"""


def citation(pmid: int, title: str = "Of mice.", abstract: str = "They live. They are well.") -> str:
    texts = f"<ArticleTitle>{title}</ArticleTitle><Abstract><AbstractText>{abstract}</AbstractText></Abstract>"
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article>{texts}</Article></MedlineCitation>'
        "<PubmedData></PubmedData></PubmedArticle>"
    )


@pytest.mark.parametrize("name", ["efetch.xml", "efetch.xml.gz"])
def test_a_set_of_citations_from_efetch_is_read_with_source_files(tmp_path, name):
    path = tmp_path / "texts" / name
    path.parent.mkdir()
    texts = [citation(number, abstract=f"Mouse {number} lives. It is well.") for number in range(1, 41)]
    broken = "<PubmedArticle><MedlineCitation></PubmedArticle>"
    data = CITATIONS.format("".join([*texts, broken, citation(99, "", "")])).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    section = recipe(path.parent, text_fields=("title", "abstract"), max_rejected_fraction=0.1)
    facts = build(section, tmp_path / "out")
    assert facts["records"] == 42 and facts["rejected_documents"] == 2
    assert sorted(map(int, ids(tmp_path / "out", "train") + ids(tmp_path / "out", "heldout"))) == list(range(1, 41))
    documents = [
        sentences for split in ("train", "heldout") for sentences in iterate_documents(tmp_path / "out", split)
    ]
    assert ["Of mice.", "Mouse 7 lives.", "It is well."] in documents
    build(section.model_copy(update={"text_fields": ("abstract",)}), tmp_path / "abstracts")
    assert ["Mouse 7 lives.", "It is well."] in [
        sentences for split in ("train", "heldout") for sentences in iterate_documents(tmp_path / "abstracts", split)
    ]
    with pytest.raises(SourceError, match=r"no field text; the fields are title, abstract, body"):
        build(section.model_copy(update={"text_fields": ("text",)}), tmp_path / "none")
    deletes = '<DeleteCitation><PMID Version="1">3</PMID></DeleteCitation>'
    data = CITATIONS.format(citation(1) + deletes).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(SourceError, match=r'deletes citation 3, .*remedy: read these files with source = "pubmed"'):
        build(section, tmp_path / "deleted")


def test_a_corpus_of_a_file_whose_name_is_not_utf8(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    write_jsonl(texts / os.fsdecode(b"\xb0\xa1.jsonl"), range(40))
    facts = build(recipe(texts, id_field=""), tmp_path / "out")
    assert facts["train_documents"] + facts["heldout_documents"] == 40
    assert all(each.startswith("\\xb0\\xa1.jsonl:") for each in ids(tmp_path / "out", "train"))
    [source] = map(json.loads, (tmp_path / "out" / "sources.jsonl").read_text().splitlines())
    assert source["name"] == "\\xb0\\xa1.jsonl"
    pinned = recipe(texts, id_field="", sources_file=str(tmp_path / "out" / "sources.jsonl"))
    assert list(source_files(pinned)) == ["\\xb0\\xa1.jsonl"]


def test_a_zip_among_the_files_is_a_source(tmp_path):
    texts = tmp_path / "texts"
    write_jsonl(tmp_path / "a.jsonl", range(40))
    texts.mkdir()
    with zipfile.ZipFile(texts / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.jsonl", "one.jsonl")
        archive.writestr("two.txt", "\n\n".join(f"Text {number} lives. It is well." for number in range(20)))
    facts = build(recipe(texts, id_field=""), tmp_path / "out")
    assert facts["records"] == 60 == facts["train_documents"] + facts["heldout_documents"]
    found = ids(tmp_path / "out", "train") + ids(tmp_path / "out", "heldout")
    assert {"a.zip/one.jsonl:1", "a.zip/two.txt:39"} <= set(found)


def test_the_delimiter_of_csv_files_changes_fingerprints_only_when_it_is_set():
    section = CorpusRecipe(path="texts")
    assert "csv_delimiter" not in section.for_origin()
    assert CorpusRecipe(path="texts", csv_delimiter=";").for_origin()["csv_delimiter"] == ";"
