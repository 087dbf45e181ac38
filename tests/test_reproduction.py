"""The recorded recipe, and the comparisons of `rebuild`."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.data.corpus.sources import describe_sources, source_files, write_sources
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.recipe import EvaluationRecipe, TaskRecipe
from bert_pipeline.recipe_files import load_recipe, recipe_files, to_toml
from bert_pipeline.reproduction import ReproductionError, rebuild, recorded_recipe
from bert_pipeline.stages import STAGES, find_stage, kinds_of
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact

WORDS = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | WORDS
KEYS = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS)),
    lambda inner: st.dictionaries(KEYS, SCALARS | inner | st.lists(inner, min_size=1), max_size=4),
    max_leaves=20,
)


@settings(max_examples=50)
@given(TABLES)
def test_a_written_recipe_reads_back(table):
    assert tomllib.loads(to_toml(table)) == table


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_reads_back(name, tmp_path):
    recipe = load_recipe(recipe_files()[name])
    values = recipe.model_dump(mode="json", exclude={"name"})
    if recipe.pretrain.init_from:
        del values["tokenizer"]
    (tmp_path / f"{name}.toml").write_text(to_toml(values))
    assert load_recipe(tmp_path / f"{name}.toml") == recipe


@pytest.fixture
def folder(tmp_path):
    """A reproduction whose corpus is built from two files in `texts`."""
    texts, folder = tmp_path / "texts", tmp_path / "reproduction"
    texts.mkdir()
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (texts / name).write_text(f"The text of {name}.")
    (folder / "mine.toml").write_text(
        f'corpus = {{ path = "{texts}" }}\n'
        "[[pretrain.phases]]\nmax_seq_length = 32\nnum_steps = 2\nlearning_rate = 1e-3\nwarmup_steps = 1\n"
    )
    corpus = load_recipe(folder / "mine.toml").corpus
    write_sources(folder / "sources.jsonl", describe_sources(corpus, source_files(corpus)))
    origin = {"kind": "raw_corpus", "section": {}, "inputs": {}, "code_version": "0"}
    expected = {"raw_corpus": {"fingerprint": "0", "origin": origin, "file": None, "sha256": None}}
    (folder / "reproduction.json").write_text(json.dumps({"recipe": "mine", "artifacts": expected}))
    return folder


def test_changed_source_files_are_reported_before_anything_is_built(folder, tmp_path):
    texts, store = tmp_path / "texts", tmp_path / "store"
    (texts / "c.txt").write_text("More.")
    with pytest.raises(ReproductionError, match=r"1 file\(s\) are not in .*sources\.jsonl, such as .*c\.txt;"):
        rebuild(folder, store)
    (texts / "c.txt").unlink()
    with pytest.raises(ReproductionError, match=r'code_version was "0" and is '):
        rebuild(folder, store)
    (texts / "b.txt").write_text("Changed.")
    with pytest.raises(SourceError, match=r"b\.txt: its sha256 is"):
        rebuild(folder, store)
    (texts / "b.txt").unlink()
    with pytest.raises(SourceError, match=r"lists b\.txt, which is missing; remedy: restore it"):
        rebuild(folder, store)
    assert not store.exists()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"recipe": "mine"}'])
def test_a_folder_without_a_reproduction_is_refused(folder, tmp_path, content):
    expected = folder / "reproduction.json"
    expected.unlink() if content is None else expected.write_text(content)
    with pytest.raises(ReproductionError, match="remedy"):
        rebuild(folder, tmp_path / "store")


def test_a_recipe_with_an_initial_model_is_read_from_its_records(tiny_recipe, tmp_path):
    """It may have no tokenizer section, because the vocabulary is the model's."""
    pretrain = tiny_recipe.pretrain.model_copy(update={"init_from": "elsewhere"})
    recipe = tiny_recipe.model_copy(update={"pretrain": pretrain})
    origins = {kind: artifact.origin(kind, stage.section(recipe), {}, "1") for kind, stage in STAGES.items()}
    made = {kind: Artifact(tmp_path, json.loads(json.dumps({"origin": origin}))) for kind, origin in origins.items()}
    (tmp_path / "tiny.toml").write_text(to_toml(recorded_recipe("tiny", made)))
    read = load_recipe(tmp_path / "tiny.toml")
    assert "tokenizer" not in read.model_fields_set
    assert read.model_copy(update={"tokenizer": recipe.tokenizer}) == recipe
    del made["masked_dataset"]
    with pytest.raises(ReproductionError, match="masked_dataset missing"):
        recorded_recipe("tiny", made)


def test_a_recipe_without_a_baseline_is_read_from_its_records(tiny_recipe, tmp_path):
    evaluation = EvaluationRecipe(baseline=False, tasks=(TaskRecipe(name="sample-chem"),))
    recipe = tiny_recipe.model_copy(update={"evaluation": evaluation})
    (tmp_path / "scores.json").write_text(json.dumps({"settings": evaluation.tasks[0].model_dump(mode="json")}))
    made = {}
    for kind in kinds_of(recipe):
        origin = artifact.origin(kind, find_stage(kind).section(recipe), {}, "1")
        made[kind] = Artifact(tmp_path, json.loads(json.dumps({"origin": origin})))
    (tmp_path / "tiny.toml").write_text(to_toml(recorded_recipe("tiny", made)))
    assert load_recipe(tmp_path / "tiny.toml") == recipe


def test_records_of_other_code_are_refused_and_their_commit_is_named(tiny_recipe, tmp_path):
    sections = {kind: stage.section(tiny_recipe) for kind, stage in STAGES.items()}
    sections["masked_dataset"] = {"a_rule_of_then": True}
    records = {kind: {"origin": {"section": each}, "made": {"commit": "abc123"}} for kind, each in sections.items()}
    made = {kind: Artifact(tmp_path, json.loads(json.dumps(record))) for kind, record in records.items()}
    with pytest.raises(ReproductionError, match=r"(?s)a_rule_of_then.*remedy: check out the commit .*abc123"):
        recorded_recipe("tiny", made)
