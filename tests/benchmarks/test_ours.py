"""Our side of the data benchmark: every line is compared, every token counted."""

import json

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import ours, text
from benchmarks.peers import tokenizers_batch


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A prepared text of the tiny artifacts, in the layout of benchmarks.text.prepare."""
    folder = tmp_path_factory.mktemp("text")
    for kind, artifact in tiny.items():
        (folder / kind).symlink_to(artifact.path)
    settings = {"corpus": {"text_fields": ["text"], "documents_per_shard": 100}, "tokenizer": {"vocab_size": 800}}
    (folder / "settings.json").write_text(json.dumps(settings))
    text.write_sentences(folder / "raw_corpus", folder / "sentences.txt", megabytes=0.05)
    return folder


def compare(folder, ids, method="encode_batch", parts=3):
    return [tokenizers_batch.encode_batch(str(folder), str(ids), method, part, parts) for part in range(parts)]


def test_all_rounds_together_compare_every_line(folder, tmp_path):
    encoded = ours.encode(str(folder), str(tmp_path))
    answers = compare(folder, tmp_path)
    assert sum(answer["tokens"] for answer in answers) == encoded["tokens"] > 10_000
    assert [answer["difference"] for answer in answers] == [None] * 3
    assert all(answer["seconds"] > 0 for answer in [encoded, *answers])


def test_one_different_id_is_reported(folder, tmp_path):
    ours.encode(str(folder), str(tmp_path))
    path = max(tmp_path.iterdir())
    with np.load(path) as saved:
        ids, offsets = saved["ids"], saved["offsets"]
    line = len(offsets) // 2
    ids[offsets[line]] += 1
    np.savez(path, ids=ids, offsets=offsets)
    [difference] = filter(None, (answer["difference"] for answer in compare(folder, tmp_path, "encode_batch_fast")))
    assert f"shard {int(path.stem[-5:])}, line {line}: " in difference
    sentence = ours.sentences_by_shard(folder / "raw_corpus")[-1][line].as_py()
    assert repr(sentence) in difference


def test_a_missing_line_is_an_error(folder, tmp_path):
    ours.encode(str(folder), str(tmp_path))
    path = min(tmp_path.iterdir())
    with np.load(path) as saved:
        ids, offsets = saved["ids"], saved["offsets"]
    np.savez(path, ids=ids, offsets=offsets[:-1])
    with pytest.raises(ValueError, match=r"shard 0: .* lines, but ours encoded"):
        compare(folder, tmp_path)


def test_tokens_of_pairs_and_of_batches_are_counted(folder, tiny, monkeypatch):
    monkeypatch.setattr(ours, "SECONDS", 1e-9)  # one pass, one batch
    tokens_of_two_passes = tiny["nsp_dataset"].facts["len_32"]["train_tokens"]
    answer = ours.pairs_and_masks(str(folder), 32)
    assert answer["tokens"] == pytest.approx(tokens_of_two_passes / 2, rel=0.05)
    assert answer["pairs_and_masks_seconds"] > 0
    answer = ours.loader(str(folder), 32, batch_size=16)
    assert 16 * 8 < answer["tokens"] <= 16 * 32 and answer["seconds"] > 0


def test_the_peers_read_the_sentences_of_the_first_documents(folder):
    written = (folder / "sentences.txt").read_text(encoding="utf-8")
    assert not written.endswith("\n\n"), "transformers' reader makes an empty document of a last blank line"
    blocks = [block.strip("\n").split("\n") for block in written.split("\n\n")]
    table = pa.concat_arrays(ours.sentences_by_shard(folder / "raw_corpus")).to_pylist()
    assert len(blocks) > 10
    assert [line for block in blocks for line in block] == table[: sum(map(len, blocks))]
