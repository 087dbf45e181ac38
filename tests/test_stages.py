"""What rebuilds what, and which inputs belong together."""

import pytest

from bert_pipeline import artifact
from bert_pipeline.artifact import Artifact, ArtifactError
from bert_pipeline.stages import kinds_of, make_stage, stage_origin


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
    ("tokenizer", {"vocab_size": 700}, "tokenizer"),
    ("nsp", {"short_seq_prob": 0.2}, "nsp_dataset"),
    ("masking", {"masked_lm_prob": 0.2}, "masked_dataset"),
    ("model", {"hidden_size": 64}, "pretrained_checkpoint"),
    ("pretrain", {"weight_decay": 0.1}, "pretrained_checkpoint"),
]


@pytest.mark.parametrize(("section", "change", "first"), CHANGES)
def test_a_change_rebuilds_its_stage_and_what_follows_and_nothing_before(tiny_recipe, section, change, first):
    changed = tiny_recipe.model_copy(update={section: getattr(tiny_recipe, section).model_copy(update=change)})
    before, after = fingerprints(tiny_recipe), fingerprints(changed)
    kinds = kinds_of(tiny_recipe)
    for kind in kinds:
        assert (before[kind] != after[kind]) == (kinds.index(kind) >= kinds.index(first)), kind


def test_a_new_sequence_length_rebuilds_the_pairs(tiny_recipe):
    phases = tiny_recipe.pretrain.phases
    shorter = phases[0].model_copy(update={"max_seq_length": 48})
    longer_training = phases[0].model_copy(update={"num_steps": 9})
    for phase, rebuilt in [(shorter, True), (longer_training, False)]:
        pretrain = tiny_recipe.pretrain.model_copy(update={"phases": (phase, phases[1])})
        changed = fingerprints(tiny_recipe.model_copy(update={"pretrain": pretrain}))
        assert (changed["nsp_dataset"] != fingerprints(tiny_recipe)["nsp_dataset"]) == rebuilt


def test_a_tokenizer_that_does_not_belong_to_the_dataset_is_refused(tiny, tiny_recipe, tmp_path):
    smaller = tiny_recipe.model_copy(update={"tokenizer": tiny_recipe.tokenizer.model_copy(update={"vocab_size": 600})})
    other = make_stage("tokenizer", smaller, tiny, tmp_path / "tokenizer")
    with pytest.raises(ArtifactError, match=r"was made from tokenizer .* remedy: give the tokenizer that it was made"):
        make_stage("masked_dataset", tiny_recipe, tiny | {"tokenizer": other}, tmp_path / "masked")
    with pytest.raises(ArtifactError, match="nsp_dataset is made from raw_corpus, tokenizer, and tokenizer was not"):
        make_stage("nsp_dataset", tiny_recipe, {"raw_corpus": tiny["raw_corpus"]}, tmp_path / "nsp")


def test_the_same_recipe_gives_the_same_bytes(tiny, tiny_recipe, tmp_path, monkeypatch):
    """Another place, another number of workers: no byte but those of the record's clock differs."""
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
