"""Manifests that are damaged or forged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store.remotes import BLOB, KEY, ORIGIN, forged, make

from bert_pipeline.store import artifact, manifest
from bert_pipeline.store.artifact import ArtifactError
from bert_pipeline.store.object_store import RemoteError


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"[]",
        b'{"origin": {}',
        forged({}, ORIGIN | {"code_version": "2"}),
        forged({"../evil": BLOB}),
        forged({"/evil": BLOB}),
        forged({"a/../../evil": BLOB}),
        forged({"": BLOB}),
        forged({"evil": BLOB | {"sha256": "../evil"}}),
        forged({"evil": BLOB | {"bytes": -1}}),
        forged({"evil": BLOB | {"mode": 1}}),
        forged({"evil": BLOB}).replace(b'"bytes": 4', b'"bytes": 5'),
    ],
    ids=range(12),
)
def test_a_damaged_or_forged_manifest_is_refused(tier, shared, tmp_path, caplog, written):
    (shared / "blobs").mkdir()
    (shared / "blobs" / BLOB["sha256"]).write_bytes(b"evil")
    (shared / KEY).parent.mkdir()
    (shared / KEY).write_bytes(written)
    with pytest.raises(RemoteError, match=rf"{KEY} is damaged \(.*\); remedy: remove it there"):
        tier.pull("tokenizer", artifact.fingerprint(ORIGIN), tmp_path / "store" / "there")
    assert make(tmp_path / "here", tier).facts == {"files": 4}, "it is built"
    assert not [path for path in tmp_path.rglob("evil*") if path.parent.name != "blobs"]


def test_a_manifest_of_files_that_are_no_artifact_is_refused(tier, shared, tmp_path):
    (shared / "blobs").mkdir()
    (shared / "blobs" / BLOB["sha256"]).write_bytes(b"evil")
    (shared / KEY).parent.mkdir()
    (shared / KEY).write_bytes(forged({"evil": BLOB}))
    with pytest.raises(ArtifactError, match="no artifact"):
        tier.pull("tokenizer", artifact.fingerprint(ORIGIN), tmp_path / "there")
    assert not (tmp_path / "there").exists() and make(tmp_path / "there", tier).facts == {"files": 4}


WHOLE = manifest.Manifest(ORIGIN, {"a": manifest.Blob(3, "0" * 64), "b/c": manifest.Blob(0, "1" * 64)})


@given(st.integers(0, len(WHOLE.dump()) - 1), st.binary(max_size=3), st.integers(0, 9))
def test_any_change_of_a_manifest_is_detected(position, inserted, removed):
    written = WHOLE.dump()
    damaged = written[:position] + inserted + written[position + removed :]
    try:
        assert manifest.parse(damaged) == WHOLE
    except (ValueError, KeyError, TypeError, AttributeError):
        assert damaged != written
