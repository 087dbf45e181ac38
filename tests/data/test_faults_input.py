"""Extreme input: too little text, and very large documents."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from data.builds import IN_SHARDS, KINDS, ROOT, command, write_recipe

from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.formats.pairs import PairShard, pass_directory
from bert_pipeline.formats.tables import shard_paths
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.stages import make_stage
from bert_pipeline.store import artifact

# I8: too little text


def build_all(folder: Path, rows: list[dict], **nsp) -> dict[str, artifact.Artifact]:
    folder.mkdir()
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_recipe(folder / "recipe.toml", folder / "texts.jsonl", 25, vocab_size=100)
    recipe, made = load_recipe(text), {}
    recipe = recipe.model_copy(update={"nsp": recipe.nsp.model_copy(update=nsp)})
    for kind in KINDS:
        made[kind] = make_stage(kind, recipe, made, folder / kind)
    return made


def segments(dataset: Path) -> list[tuple[list[int], list[int], int]]:
    found = []
    for number in range(2):
        for path in shard_paths(pass_directory(dataset, 32, "train", number), "arrow"):
            pairs = PairShard.read(path)
            for n, length in enumerate(pairs.segment_a_length):
                row = pairs.input_ids[pairs.offsets[n] : pairs.offsets[n + 1]].tolist()
                found.append((row[1 : 1 + length], row[2 + length : -1], int(pairs.next_sentence_label[n])))
    return found


LETTERS = "The quick brown fox jumps over lazy dogs by 0123456789 mg."


def test_documents_of_one_sentence_give_random_pairs_only(tmp_path, in_this_process):
    rows = [{"id": f"d{n}", "text": f"{LETTERS[:-1]} {n}."} for n in range(200)]
    made = build_all(tmp_path / "nsp", rows)
    found = segments(made["nsp_dataset"].path)
    assert {label for _, _, label in found} == {1} and all(a and b for a, b, _ in found)
    assert made["nsp_dataset"].facts["len_32"]["forced_random_fraction"] == 1
    with pytest.raises(ValueError, match='with objective = "sop" a document needs two sentences; remedy: '):
        build_all(tmp_path / "sop", rows, objective="sop")


def test_nearly_identical_documents_give_no_pair_in_which_a_segment_follows_itself(tmp_path, in_this_process):
    text = f"{LETTERS} The dose was 5 mg. It was safe in mice. No harm was seen."
    made = build_all(tmp_path / "same", [{"id": f"d{n}", "text": f"{text} {n}"} for n in range(300)])
    found = segments(made["nsp_dataset"].path)
    assert len(found) > 500 and all(a and b for a, b, _ in found)
    assert not [pair for pair in found if pair[0] == pair[1] and pair[2] == 0]
    assert any(a == b for a, b, _ in found), "a random one may well be the same text"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"texts\.jsonl: empty, it holds no record; remedy: "),
        ([{"id": "a", "text": ""}], r"1 of 1 records are broken.*\n.*texts\.jsonl, line 1: document without text"),
        ([{"id": "a", "text": LETTERS}], r"1 documents, .* each split needs at least 2, .*; remedy: add documents"),
        (
            [{"id": f"d{n}", "text": LETTERS} for n in range(50)],
            r"1 documents \(dropped: 49 duplicate text\), .*needs",
        ),
        ([{"id": f"d{n}", "text": "!"} for n in range(50)], r"50 of 50 records are broken.*\n.*document without text"),
    ],
)
def test_too_little_text_is_an_error_with_a_remedy(tmp_path, rows, message, in_this_process):
    with pytest.raises(SourceError, match=message):
        build_all(tmp_path / "few", rows)


# I9: very large input

PEAK = """
import json, resource, subprocess, sys, time
begun = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)  # peak of the largest child process that was waited for
print(json.dumps({"seconds": time.monotonic() - begun, "peak_mib": usage.ru_maxrss / 1024}))
"""


def large_text(shape: str, characters: int) -> str:
    """One document of about `characters` characters."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghiklmnoprstu", k=rng.randint(1, 9))) for _ in range(5000)]
    sentences = [" ".join(["The", *rng.choices(words, k=rng.randint(6, 24))]) + "." for _ in range(2000)]
    if shape == "word":
        return "The " + "".join(rng.choices(words, k=characters // 5)) + " end."
    if shape == "sentences":
        sentences = [f"It is {word}." for word in words]
    parts, length = [], 0
    while length < characters:
        parts.append(rng.choice(sentences) + ("\n\n" if shape == "paragraphs" and rng.random() < 0.1 else " "))
        length += len(parts[-1])
    return "".join(parts)


def measure(whole: SimpleNamespace, folder: Path, shape: str, characters: int) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of each stage over a corpus with one large document among small ones."""
    shutil.copytree(whole.root / "texts", folder / "texts")
    with (folder / "texts" / "large.jsonl").open("w") as out:
        out.write(json.dumps({"id": "large", "text": large_text(shape, characters)}) + "\n")
    recipe = write_recipe(folder / "recipe.toml", folder / "texts", 25)
    shutil.copytree(whole.root / "tokenizer", folder / "tokenizer")
    found = {}
    for kind in IN_SHARDS:
        line = [sys.executable, "-c", PEAK, *command(kind, recipe, folder, folder / kind)]
        finished = subprocess.run(line, cwd=ROOT, env=os.environ | {"BERT_PIPELINE_WORKERS": "1"}, capture_output=True)
        assert finished.returncode == 0, finished.stderr.decode()
        found[kind] = json.loads(finished.stdout)
    return found


LARGE = {"one paragraph": 100_000_000, "paragraphs": 100_000_000, "word": 10_000_000, "sentences": 13_500_000}


@pytest.mark.parametrize("shape", ["paragraphs", "word"])
def test_one_large_document_is_built_in_bounded_memory(whole, tmp_path, shape):
    for kind, found in measure(whole, tmp_path, shape, LARGE[shape] // 20).items():
        assert found["peak_mib"] < 512, kind


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGE)
def test_one_very_large_document_is_built_in_one_gibibyte_and_linear_time(whole, tmp_path, shape, capsys):
    seconds = []
    for part in (10, 1):
        found = measure(whole, tmp_path / str(part), shape, LARGE[shape] // part)
        seconds.append(sum(stage["seconds"] for stage in found.values()))
        with capsys.disabled():
            measured = [f"{kind} {one['seconds']:.1f} s {one['peak_mib']:,.0f} MiB" for kind, one in found.items()]
            print(f"\n{shape}, {LARGE[shape] // part:,} characters: {'; '.join(measured)}")
    assert seconds[1] < 12 * seconds[0]
    assert max(stage["peak_mib"] for stage in found.values()) < 1024
