"""The peers: what they are given, what they make, and their installation."""

import pytest

from benchmarks.peers import environments, google, transformers_trainer
from benchmarks.peers.environments import PeerError


def test_the_google_peer_makes_rows_within_the_length(folder):
    rng = google.Draws(1)
    documents = [[[rng.randint(5, 799) for _ in range(9)] for _ in range(12)] for _ in range(20)]
    made = google.pairs_and_masks(documents, 128, 800, rng)
    assert {label for _, _, label, _ in made} == {0, 1}
    for row, length_a, _, masks in made:
        assert len(row) <= 128 and row[0] == google.CLS_ID and row[length_a + 1] == row[-1] == google.SEP_ID
        assert 1 <= len(masks) <= 20
        assert all(row[position] not in (google.CLS_ID, google.SEP_ID) for position, _ in masks)


@pytest.mark.parametrize("width", [None, 32])
def test_the_trainer_is_given_the_pairs_of_our_steps(tiny, width):
    from bert_pipeline.training.batches.dataset import PairDataset
    from bert_pipeline.training.batches.packing import pack

    paths = (tiny[kind].path for kind in ("nsp_dataset", "masked_dataset"))
    rows = PairDataset(*paths, 32, "train").samples(5, 16, seed=1)
    ours = pack(rows)
    given = transformers_trainer.collate(transformers_trainer.in_standard_view(rows), width)
    seen = given["attention_mask"].bool()
    assert given["input_ids"].shape == (16, width or rows.lengths.max())
    assert seen.sum(1).tolist() == rows.lengths.tolist()
    assert given["input_ids"][seen].tolist() == ours["input_ids"][0].tolist()
    assert given["token_type_ids"][seen].tolist() == ours["token_type_ids"][0].tolist()
    asked = given["labels"][seen] != -100
    assert asked.nonzero().flatten().tolist() == ours["output_positions"][ours["masked"]].tolist()
    assert given["labels"][seen][asked].tolist() == ours["masked_labels"].tolist()
    assert not (given["labels"][~seen] != -100).any() and not given["input_ids"][~seen].any()
    assert given["next_sentence_label"].tolist() == ours["next_sentence_label"].tolist()


def test_a_failed_installation_gives_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerError, match=r"pip cannot install transformers: ERROR: .*transformers==4"):
        environments.environment("transformers")
    assert not (tmp_path / "peers" / "transformers" / "finished.txt").exists()
