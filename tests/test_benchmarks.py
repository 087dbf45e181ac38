"""The benchmark's own parts on a tiny text; the peers, which need a package index and minutes, are marked slow."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import ours, rows, text
from benchmarks.children import MeasurementError, measure
from benchmarks.peers import environments, google, tokenizers_batch
from benchmarks.peers.environments import PeerError

ROW_KEYS = {"name", "ours", "peer", "peer_name", "unit", "ratio"}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A prepared text of the tiny artifacts, as benchmarks.text.prepare leaves it."""
    folder = tmp_path_factory.mktemp("text")
    for kind, artifact in tiny.items():
        (folder / kind).symlink_to(artifact.path)
    settings = {"corpus": {"text_fields": ["text"], "documents_per_shard": 100}, "tokenizer": {"vocab_size": 800}}
    (folder / "settings.json").write_text(json.dumps(settings))
    text.write_sentences(folder / "raw_corpus", folder / "sentences.txt", megabytes=0.05)
    return folder


def compare(folder, ids, method="encode_batch", parts=3):
    return [tokenizers_batch.encode_batch(str(folder), str(ids), method, part, parts) for part in range(parts)]


def test_the_rounds_of_the_library_together_compare_every_line(folder, tmp_path):
    encoded = ours.encode(str(folder), str(tmp_path))
    answers = compare(folder, tmp_path)
    assert sum(answer["tokens"] for answer in answers) == encoded["tokens"] > 10_000
    assert [answer["difference"] for answer in answers] == [None] * 3
    assert all(answer["seconds"] > 0 for answer in [encoded, *answers])


def test_one_other_id_is_found_and_named(folder, tmp_path):
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


def test_a_line_too_few_is_an_error(folder, tmp_path):
    ours.encode(str(folder), str(tmp_path))
    path = min(tmp_path.iterdir())
    with np.load(path) as saved:
        ids, offsets = saved["ids"], saved["offsets"]
    np.savez(path, ids=ids, offsets=offsets[:-1])
    with pytest.raises(ValueError, match=r"shard 0: .* lines, but ours encoded"):
        compare(folder, tmp_path)


def test_passes_of_pairs_and_masks_and_batches_are_counted(folder, tiny, monkeypatch):
    monkeypatch.setattr(ours, "SECONDS", 1e-9)  # one pass, one batch
    tokens_of_two_passes = tiny["nsp_dataset"].facts["len_32"]["train_tokens"]
    answer = ours.pairs_and_masks(str(folder), 32)
    assert answer["tokens"] == pytest.approx(tokens_of_two_passes / 2, rel=0.05)
    assert answer["pairs_and_masks_seconds"] > 0
    answer = ours.loader(str(folder), 32, batch_size=16)
    assert 16 * 8 < answer["tokens"] <= 16 * 32 and answer["seconds"] > 0


def test_sentences_for_the_peers_are_those_of_the_first_documents(folder):
    written = (folder / "sentences.txt").read_text(encoding="utf-8")
    assert not written.endswith("\n\n"), "transformers' reader makes an empty document of a last blank line"
    blocks = [block.strip("\n").split("\n") for block in written.split("\n\n")]
    table = pa.concat_arrays(ours.sentences_by_shard(folder / "raw_corpus")).to_pylist()
    assert len(blocks) > 10
    assert [line for block in blocks for line in block] == table[: sum(map(len, blocks))]


def test_the_google_peer_makes_rows_within_the_length(folder):
    rng = google.Draws(1)
    documents = [[[rng.randint(5, 799) for _ in range(9)] for _ in range(12)] for _ in range(20)]
    made = google.pairs_and_masks(documents, 128, 800, rng)
    assert {label for _, _, label, _ in made} == {0, 1}
    for row, length_a, _, masks in made:
        assert len(row) <= 128 and row[0] == google.CLS_ID and row[length_a + 1] == row[-1] == google.SEP_ID
        assert 1 <= len(masks) <= 20
        assert all(row[position] not in (google.CLS_ID, google.SEP_ID) for position, _ in masks)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_text_is_taken_from_a_file_up_to_its_megabytes(tmp_path, suffix):
    source = tmp_path / f"texts{suffix}"
    records = [f"Document number {number} says little." for number in range(100)]
    if suffix == ".txt":
        source.write_text("\n\n".join(records))
    else:
        lines = [json.dumps({"id": number, "title": f"T{number}", "text": each}) for number, each in enumerate(records)]
        source.write_text("\n".join(lines))
    fields = text.choose_fields(str(source), None)
    assert fields == (("text",) if suffix == ".txt" else ("title", "text"))
    taken = text.take(str(source), fields, megabytes=0.001, folder=str(tmp_path / "taken"))
    copied = [json.loads(line) for line in (tmp_path / "taken" / "text.jsonl").read_text().splitlines()]
    assert taken["documents"] == len(copied) < 100 and 0.001 <= taken["megabytes"] < 0.0011
    assert [each["text"].strip() for each in copied] == records[: len(copied)]


def test_a_row_has_the_best_rates_and_their_ratio():
    def answers(*seconds):
        return [{"tokens": 6_000_000, "seconds": each, "process_seconds": each + 1} for each in seconds]

    row = rows.row("encode", answers(3.0, 2.0), answers(6.0, 12.0), "a library", max_seq_length=128)
    assert row.keys() >= ROW_KEYS
    assert (row["ours"], row["peer"], row["ratio"], row["unit"]) == (3.0, 1.0, 3.0, "M tokens/s")
    assert row["measured"]["peer"]["tokens"] == [6_000_000] * 2 and row["measured"]["ours"]["seconds"] == [3.0, 2.0]


def test_a_peer_that_fails_has_a_row_with_the_reason_and_ours_raises():
    def fails(number):
        raise PeerError("pip cannot install it")

    def works(number):
        return {"tokens": 1_000_000, "seconds": 1.0, "process_seconds": 1.5}

    answers = rows.take_turns({"ours": works}, {"theirs": fails}, rounds=2)
    row = rows.row("whole-way", answers["ours"], answers["theirs"], "theirs")
    assert (row["ours"], row["peer"], row["ratio"], row["reason"]) == (1.0, None, None, "pip cannot install it")
    assert json.loads(json.dumps(row)) == row
    with pytest.raises(PeerError):
        rows.take_turns({"ours": fails}, {"theirs": works}, rounds=2)


def test_a_package_that_cannot_be_installed_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerError, match=r"pip cannot install transformers: ERROR: .*transformers==4"):
        environments.environment("transformers")
    assert not (tmp_path / "peers" / "transformers" / "finished.txt").exists()


def test_a_measured_process_is_pinned_and_its_last_line_is_told(tmp_path):
    core = min(os.sched_getaffinity(0))
    arguments = {"text": None, "fields": ["text"], "megabytes": 0.01, "folder": tmp_path / "sample"}
    answer = measure("benchmarks.text", "take", cores={core}, **arguments)
    assert answer["documents"] > 1 and answer["process_seconds"] > 0
    with pytest.raises(MeasurementError, match=r"benchmarks.text take: FileExistsError: .*sample"):
        measure("benchmarks.text", "take", cores={core}, **arguments)


@pytest.mark.slow
def test_the_whole_benchmark_on_a_little_of_the_sample(run_python, tmp_path):
    """Needs a package index; a row without a peer is told by its reason."""
    code = (
        "import sys; from benchmarks import data; data.ROUNDS = data.SCALE_ROUNDS = 1; data.SCALE_MEGABYTES = 1.0; "
        "data.PEER_MEGABYTES = 0.2; sys.argv = ['data', '--megabytes', '0.5', '--json']; data.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)
    assert {row["name"] for row in result["rows"]} == {
        "encode",
        "pairs-and-masks",
        "whole-way",
        "whole-way-from-raw-text",
        "whole-way-two-workers",
        "loader",
    }
    for row in result["rows"]:
        assert row.keys() >= ROW_KEYS
        if len(os.sched_getaffinity(0)) > 1:
            assert row["ratio"], row["reason"]
    assert result["memory"].keys() >= {"peak_mib_quarter", "peak_mib_whole", "growth_fraction"}
    assert 2.0 < result["disk"]["128"]["nsp_dataset"] < 2.6 and 0.3 < result["disk"]["128"]["masked_dataset"] < 1.0
    assert not list(tmp_path.glob("benchmark-*")), "nothing is left behind but the peers"
