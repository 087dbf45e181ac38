import json

import dagster as dg
import pytest

from bert_pipeline.store import artifact
from orchestration.pointers import ArtifactIOManager


@pytest.fixture
def manager(tmp_path):
    return ArtifactIOManager(store=str(tmp_path / "store"), pointers=str(tmp_path / "pointers"))


def an_artifact(tmp_path, text: str) -> artifact.Artifact:
    origin = artifact.origin("raw_corpus", {"text": text}, {}, "1")

    def build(out):
        (out / "text").write_text(text)
        return {}

    return artifact.make(tmp_path / "store" / "raw_corpus" / artifact.fingerprint(origin), origin, build)


def test_an_artifact_is_passed_by_fingerprint_and_the_latest_counts(manager, tmp_path):
    first, second = an_artifact(tmp_path, "a"), an_artifact(tmp_path, "b")
    key = dg.AssetKey("raw_corpus")
    for made in (first, second, first):
        manager.handle_output(dg.build_output_context(asset_key=key, partition_key="tiny"), made)
        assert manager.load_input(dg.build_input_context(asset_key=key, partition_key="tiny")).path == made.path
    files = [path for path in (tmp_path / "pointers").rglob("*") if path.is_file()]
    assert [path.read_text() for path in files] == [first.fingerprint], "one small file, no draft left"


def test_partitions_are_separate(manager, tmp_path):
    made = an_artifact(tmp_path, "a")
    key = dg.AssetKey("raw_corpus")
    manager.handle_output(dg.build_output_context(asset_key=key, partition_key="tiny"), made)
    with pytest.raises(artifact.ArtifactError, match=r"recipe notes has no raw_corpus yet.*remedy: dg launch"):
        manager.load_input(dg.build_input_context(asset_key=key, partition_key="notes"))


def test_a_pointer_to_another_kind_is_an_error(manager, tmp_path):
    made = an_artifact(tmp_path, "a")
    key = dg.AssetKey("raw_corpus")
    manager.handle_output(dg.build_output_context(asset_key=key, partition_key="tiny"), made)
    origin = artifact.origin("tokenizer", {}, {}, "1")
    record = {"origin": origin, "fingerprint": artifact.fingerprint(origin), "facts": {}}
    (made.path / "record.json").write_text(json.dumps(record))
    with pytest.raises(artifact.ArtifactError, match="holds a tokenizer"):
        manager.load_input(dg.build_input_context(asset_key=key, partition_key="tiny"))
