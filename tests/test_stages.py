"""Which change rebuilds which stages, and which inputs belong together."""

import json
from contextlib import contextmanager

import pytest

from bert_pipeline.data.corpus.sources import describe_sources, source_files, write_sources
from bert_pipeline.evaluation.tasks.task import TaskError
from bert_pipeline.experiments import find_recipe
from bert_pipeline.formats.corpus import iterate_documents
from bert_pipeline.lineage import Tracker, make_stage, stage_origin
from bert_pipeline.recipe import (
    CorpusRecipe,
    EvaluationRecipe,
    RecipeError,
    RegistryRecipe,
    RetrainingRecipe,
    TaskRecipe,
)
from bert_pipeline.stages import find_stage, initial_directory, kinds_of
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError


def fingerprints(recipe):
    """The fingerprint of every stage, without building anything."""
    made = {}
    for kind in kinds_of(recipe):
        origin = stage_origin(kind, recipe, made)
        record = {"fingerprint": artifact.fingerprint(origin), "origin": origin, "facts": {}}
        made[kind] = Artifact(None, record)
    return {kind: one.fingerprint for kind, one in made.items()}


CHANGES = [
    ("corpus", {"heldout_fraction": 0.2}, "raw_corpus"),
    ("corpus", {"exclude_tasks": ("sample-chem",)}, "raw_corpus"),
    ("tokenizer", {"vocab_size": 700}, "tokenizer"),
    ("nsp", {"short_seq_prob": 0.2}, "nsp_dataset"),
    ("masking", {"masked_lm_prob": 0.2}, "masked_dataset"),
    ("model", {"hidden_size": 64}, "pretrained_checkpoint"),
    ("pretrain", {"weight_decay": 0.1}, "pretrained_checkpoint"),
]


@pytest.mark.parametrize(("section", "change", "first"), CHANGES)
def test_a_change_rebuilds_its_stage_and_later_ones_only(tiny_recipe, section, change, first):
    changed = tiny_recipe.model_copy(update={section: getattr(tiny_recipe, section).model_copy(update=change)})
    before, after = fingerprints(tiny_recipe), fingerprints(changed)
    kinds = kinds_of(tiny_recipe)
    for kind in kinds:
        assert (before[kind] != after[kind]) == (kinds.index(kind) >= kinds.index(first)), kind


def test_retraining_and_promotion_settings_change_no_fingerprint(tiny_recipe):
    retraining = RetrainingRecipe(hours_per_month=10.0, tokenizer="keep")
    update = {"retraining": retraining, "registry": RegistryRecipe(promote="if_better")}
    assert fingerprints(tiny_recipe.model_copy(update=update)) == fingerprints(tiny_recipe)


def test_new_text_does_not_change_a_pinned_initial_model(tmp_path, monkeypatch):
    for variable, folder in (("RECIPES", "recipes"), ("HOME", "home"), ("DATA", ".")):
        monkeypatch.setenv(f"BERT_PIPELINE_{variable}", str(tmp_path / folder))
    texts, recipes = tmp_path / "texts", tmp_path / "recipes"
    texts.mkdir(), recipes.mkdir()
    (texts / "first.txt").write_text("The first text.")
    corpus = CorpusRecipe(path="texts")
    write_sources(tmp_path / "pinned.jsonl", describe_sources(corpus, source_files(corpus)))
    (recipes / "base.toml").write_text('[corpus]\npath = "texts"\nsources_file = "pinned.jsonl"\n')
    (recipes / "further.toml").write_text('[corpus]\npath = "texts"\n[pretrain]\ninit_from = "base"\n')
    further = find_recipe("further")
    made = (
        tmp_path / "home/artifacts/pretrained_checkpoint" / fingerprints(find_recipe("base"))["pretrained_checkpoint"]
    )
    made.mkdir(parents=True)
    before = stage_origin("raw_corpus", further, {})
    (texts / "second.txt").write_text("The second text.")
    assert stage_origin("raw_corpus", further, {}) != before
    assert initial_directory(further) == made
    (recipes / "base.toml").write_text('[corpus]\npath = "texts"\n')
    with pytest.raises(RecipeError, match=r"starts from the model of recipe base, .* if its text grows, pin it"):
        initial_directory(further)


def test_a_new_sequence_length_rebuilds_the_pairs(tiny_recipe):
    phases = tiny_recipe.pretrain.phases
    shorter = phases[0].model_copy(update={"max_seq_length": 48})
    longer_training = phases[0].model_copy(update={"num_steps": 9})
    for phase, rebuilt in [(shorter, True), (longer_training, False)]:
        pretrain = tiny_recipe.pretrain.model_copy(update={"phases": (phase, phases[1])})
        changed = fingerprints(tiny_recipe.model_copy(update={"pretrain": pretrain}))
        assert (changed["nsp_dataset"] != fingerprints(tiny_recipe)["nsp_dataset"]) == rebuilt


def test_a_tokenizer_that_the_dataset_was_not_built_with_is_refused(tiny, tiny_recipe, tmp_path):
    smaller = tiny_recipe.model_copy(update={"tokenizer": tiny_recipe.tokenizer.model_copy(update={"vocab_size": 600})})
    other = make_stage("tokenizer", smaller, tiny, tmp_path / "tokenizer")
    with pytest.raises(ArtifactError, match=r"was built from tokenizer .* remedy: pass the tokenizer that it was"):
        make_stage("masked_dataset", tiny_recipe, tiny | {"tokenizer": other}, tmp_path / "masked")
    with pytest.raises(ArtifactError, match="nsp_dataset is built from raw_corpus, tokenizer, but tokenizer was not"):
        make_stage("nsp_dataset", tiny_recipe, {"raw_corpus": tiny["raw_corpus"]}, tmp_path / "nsp")


def test_the_same_recipe_gives_the_same_bytes(tiny, tiny_recipe, tmp_path, monkeypatch):
    """In another directory, with another number of workers, only record.json differs."""
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "1")
    made: dict = {}
    for kind, expected in tiny.items():
        made[kind] = make_stage(kind, tiny_recipe, made, tmp_path / kind)
        names = {str(path.relative_to(expected.path)) for path in expected.path.rglob("*") if path.is_file()}
        assert names == {
            str(path.relative_to(made[kind].path)) for path in made[kind].path.rglob("*") if path.is_file()
        }
        for name in names - {"record.json"}:
            assert (made[kind].path / name).read_bytes() == (expected.path / name).read_bytes(), f"{kind}/{name}"


def test_a_tracker_follows_a_new_build_and_no_other(tiny, tiny_recipe, tmp_path):
    seen = []

    @contextmanager
    def track():
        seen.append("begin")
        yield Tracker(on_facts=lambda facts, directory: seen.append((facts["vocab_size"], directory.name)))
        seen.append("end")

    for run in ("first", "second"):
        asked_by = {"dagster_run": run}
        made = make_stage("tokenizer", tiny_recipe, tiny, tmp_path / "new", track=track, asked_by=asked_by)
    assert seen == ["begin", (made.facts["vocab_size"], "new.partial"), "end"]
    assert made.record["made"]["dagster_run"] == "first"


@pytest.fixture
def own_task(tmp_path, monkeypatch, tiny):
    """A task whose dev and test sentences are in two documents of the sample."""
    documents = [" ".join(document) for document in iterate_documents(tiny["raw_corpus"].path, "train")]
    folder = tmp_path / "data" / "own"
    folder.mkdir(parents=True)
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BERT_PIPELINE_TASKS", str(tmp_path / "tasks"))
    for split, text in {"train": "of no document " * 9, "dev": documents[20], "test": documents[30]}.items():
        rows = [f"{word}\tO" for word in text.split()]
        (folder / f"{split}.tsv").write_text("\n".join([rows[0][:-1] + "B", *rows[1:]]) + "\n\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own.toml").write_text(
        'title = "Own"\nkind = "ner"\nversion = "1"\nterms = "own"\nfolder = "own"\n[splits]\n'
        + "".join(f'{split} = {{ file = "{split}.tsv", size = 1 }}\n' for split in ("train", "dev", "test"))
    )
    return folder


def excluding(recipe, tasks, evaluated=()):
    return recipe.model_copy(
        update={
            "corpus": recipe.corpus.model_copy(update={"exclude_tasks": tasks}),
            "evaluation": EvaluationRecipe(tasks=tuple(TaskRecipe(name=name) for name in evaluated)),
        }
    )


def test_documents_with_task_text_are_found_and_excluded(tiny, tiny_recipe, own_task, tmp_path):
    evaluated = excluding(tiny_recipe, (), ["own"])
    report = make_stage("contamination", evaluated, tiny, tmp_path / "report")
    assert {split: report.facts["tasks"]["own"][split]["examples_held"] for split in ("train", "dev", "test")} == {
        "train": 0,
        "dev": 1,
        "test": 1,
    }
    holding = {json.loads(row)["document"] for row in (report.path / "contamination.jsonl").read_text().splitlines()}
    for number, tasks in enumerate([("own",), "evaluation"]):
        recipe = excluding(tiny_recipe, tasks, ["own"])
        made = make_stage("raw_corpus", recipe, {}, tmp_path / f"corpus-{number}")
        rows = [json.loads(row) for row in (made.path / "excluded.jsonl").read_text().splitlines()]
        assert {row["document_id"] for row in rows} <= holding and len(rows) >= 2
        assert made.facts["excluded_documents"] == len(rows)
        after = make_stage("contamination", recipe, {"raw_corpus": made}, tmp_path / f"report-{number}")
        assert after.facts["documents"] == report.facts["documents"] - len(rows)
        assert after.facts["documents_that_hold_examples"] == 0


def test_the_corpus_depends_on_dev_and_test_text_of_excluded_tasks_only(tiny_recipe, own_task):
    plain, evaluated = fingerprints(tiny_recipe), fingerprints(excluding(tiny_recipe, (), ["own"]))
    assert plain["raw_corpus"] == evaluated["raw_corpus"] and plain["contamination"] != evaluated["contamination"]
    recipe = excluding(tiny_recipe, ("own",))
    before = fingerprints(recipe)
    assert before["raw_corpus"] != plain["raw_corpus"] and before["tokenizer"] != plain["tokenizer"]
    for split, rebuilt in [("train", False), ("dev", True), ("test", True)]:
        before = fingerprints(recipe)
        with (own_task / f"{split}.tsv").open("a") as file:
            file.write("One\tO\nmore\tB\n\n")
        after = fingerprints(recipe)
        assert (before["raw_corpus"] != after["raw_corpus"]) == rebuilt, split
        assert before["contamination"] != after["contamination"], split


def test_a_missing_task_is_named(tiny_recipe, own_task):
    (own_task / "test.tsv").unlink()
    with pytest.raises(TaskError, match=r"own: .* has no test\.tsv; remedy"):
        fingerprints(excluding(tiny_recipe, ("own",)))
    with pytest.raises(TaskError, match=r"no task is named 'owm'; did you mean own\?"):
        fingerprints(excluding(tiny_recipe, ("owm",)))


def test_training_refuses_masks_of_another_recipe(tiny_recipe, tiny):
    other = tiny_recipe.model_copy(update={"masking": tiny_recipe.masking.model_copy(update={"masked_lm_prob": 0.3})})
    with pytest.raises(ArtifactError, match=r"was built with \[masking\] .*0\.15.* has .*0\.3.*; remedy: build"):
        stage_origin("pretrained_checkpoint", other, tiny)


def test_the_baseline_is_part_of_an_evaluation_only_where_it_is_left_out(tiny_recipe):
    """So that evaluations built before the key existed keep their fingerprints; other artifacts are shared."""
    tasks = (TaskRecipe(name="sample-chem"),)
    usual, alone = (
        tiny_recipe.model_copy(update={"evaluation": EvaluationRecipe(tasks=tasks, baseline=baseline)})
        for baseline in (True, False)
    )
    sections = {kind: [find_stage(kind).section(each) for each in (usual, alone)] for kind in kinds_of(usual)}
    assert {kind for kind, (one, other) in sections.items() if one != other} == {"evaluation/sample-chem"}
    one, other = sections["evaluation/sample-chem"]
    assert "baseline" not in one and other == one | {"baseline": False}
