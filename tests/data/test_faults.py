"""Faults of a data stage: SIGKILL, damaged files, other machines, an error in a shard, extreme input."""

import gzip
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from data.builds import IN_SHARDS, KINDS, ROOT, build_by_command, command, digests, run, start, write_recipe

from bert_pipeline.data.corpus import shard as corpus_shard
from bert_pipeline.data.sources.records import SourceError
from bert_pipeline.formats.pairs import PairShard, pass_directory
from bert_pipeline.formats.tables import shard_paths
from bert_pipeline.lineage import make_stage
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.stages import STAGES
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import ArtifactError
from bert_pipeline.store.executors import ShardError
from bert_pipeline.store.shards import INDEX, LOG

REAL = Path(os.environ.get("BERT_PIPELINE_DATA", "")) / "corpus" / "pubmed-abstracts.jsonl.gz"
real_abstracts = pytest.mark.skipif("BERT_PIPELINE_DATA" not in os.environ, reason="BERT_PIPELINE_DATA is not set")


# D2: SIGKILL


def kill_again_and_again(whole: SimpleNamespace, kind: str, folder: Path, kills: int, seed: int) -> int:
    """Kill the stage's processes `kills` times at random moments; check the result of every build that finishes
    before. Returns the number of finished builds.
    """
    rng = random.Random(seed)
    expected = digests(whole.root / kind)
    destination, partial = folder / "store" / "made", folder / "store" / "made.partial"
    line = command(kind, whole.recipe, whole.root, destination)
    span = artifact.load(whole.root / kind).record["made"]["seconds"]
    killed = finished = 0

    def check() -> None:
        assert digests(destination) == expected
        assert {path.name for path in destination.parent.iterdir()} == {"made", "made.lock"}
        leftovers = {path for path in destination.rglob("*") if path.is_dir() and not any(path.iterdir())}
        assert not leftovers
        for path in sorted(destination.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        destination.rmdir()

    while killed < kills:
        assert finished < 20 * kills, "the stage finishes before it is killed"
        process = start(line)
        while not partial.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, span))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        killed += process.returncode != 0
        if destination.exists():
            finished += 1
            check()
    run(line)
    check()
    return finished + 1


@pytest.mark.parametrize("kind", IN_SHARDS)
def test_a_stage_killed_by_sigkill_resumes_and_ends_with_the_same_bytes(whole, tmp_path, kind):
    kill_again_and_again(whole, kind, tmp_path, kills=2, seed=IN_SHARDS.index(kind))


@pytest.mark.slow
def test_a_hundred_kills_of_each_stage(tmp_path, capsys):
    moderate = build_by_command(tmp_path / "whole", documents=6000, documents_per_shard=150)
    for kind in IN_SHARDS:
        finished = kill_again_and_again(moderate, kind, tmp_path / kind, kills=100, seed=7)
        with capsys.disabled():
            print(f"\n{kind}: 100 kills, {finished} finished builds, all equal")


# D3: damage in the store


DAMAGES = ("truncate", "flip", "empty", "delete")


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Damage this file; hard links to the same content stay intact."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "delete":
        return
    if how == "truncate":
        content = content[: rng.randrange(len(content))]
    elif how == "flip":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content if how != "empty" else b"")


def damage_and_build(whole: SimpleNamespace, folder: Path, mutations: int, seed: int) -> None:
    """Damage a file of a finished artifact or of one in progress. A build that reuses its intact shards must equal a
    build without damage.
    """
    rng = random.Random(seed)
    recipe = load_recipe(whole.recipe)
    made = {path.name: artifact.load(path) for path in whole.root.iterdir() if (path / "record.json").exists()}
    expected = {kind: digests(made[kind].path) for kind in IN_SHARDS}
    for number in range(mutations):
        kind, how, in_progress = rng.choice(IN_SHARDS), rng.choice(DAMAGES), rng.random() < 0.3
        store = folder / str(number)
        standing = store / ("second.partial" if in_progress else "first")
        shutil.copytree(made[kind].path, standing)
        if in_progress:
            (standing / "record.json").rename(standing / artifact.ORIGIN)  # it holds the origin, and more
            (standing / INDEX).rename(standing / LOG)
        files = sorted(path for path in standing.rglob("*") if path.is_file() and path.stat().st_size)
        damaged = rng.choice(files)
        damage(damaged, how, rng)
        again = make_stage(kind, recipe, made, store / "second")
        case = f"mutation {number}: {how} {damaged.relative_to(standing)} of {kind}, in progress: {in_progress}"
        assert digests(again.path) == expected[kind], case
        assert again.facts == made[kind].facts, case
        shutil.rmtree(store)


def test_damaged_shards_in_the_store_are_rebuilt(whole, tmp_path, in_this_process):
    damage_and_build(whole, tmp_path, mutations=12, seed=1)


@pytest.mark.slow
def test_two_hundred_damaged_files_in_the_store(whole, tmp_path, in_this_process):
    damage_and_build(whole, tmp_path, mutations=200, seed=2)


@pytest.mark.parametrize("how", ["truncate", "empty", "delete"])
@pytest.mark.parametrize("kind", IN_SHARDS)
def test_the_error_for_a_damaged_output_or_input_names_the_file(whole, tmp_path, kind, how, in_this_process):
    recipe = load_recipe(whole.recipe)
    for name in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset"):
        shutil.copytree(whole.root / name, tmp_path / name)
    made = {name: artifact.load(tmp_path / name) for name in (*IN_SHARDS, "tokenizer")}
    shards = sorted(path for path in (tmp_path / kind).rglob("shard-*") if path.is_file())
    damage(shards[3], how, random.Random(1))
    named = f"{re.escape(str(shards[3]))}: (no|[\\d,]+) bytes instead of .*remedy: remove {tmp_path / kind}"
    with pytest.raises(ArtifactError, match=named):
        make_stage(kind, recipe, made, tmp_path / kind)
    following = {"raw_corpus": ["tokenizer", "nsp_dataset"], "nsp_dataset": ["masked_dataset"]}.get(kind, [])
    for name in following:
        with pytest.raises(ArtifactError, match=named):
            make_stage(name, recipe, made, tmp_path / "new" / name)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [INDEX, "record.json"])
def test_the_error_for_a_damaged_index_or_record_names_it(whole, tmp_path, name, how, in_this_process):
    shutil.copytree(whole.root / "raw_corpus", tmp_path / "raw_corpus")
    damage(tmp_path / "raw_corpus" / name, how, random.Random(3))
    with pytest.raises(ArtifactError, match=rf"{name}.*remedy: "):
        make_stage("raw_corpus", load_recipe(whole.recipe), {}, tmp_path / "raw_corpus")


def test_facts_changed_in_the_index_of_another_artifact_are_not_reused(whole, tmp_path, in_this_process):
    recipe = load_recipe(whole.recipe)
    first = make_stage("raw_corpus", recipe, {}, tmp_path / "first")
    index = first.path / INDEX
    index.write_text(index.read_text().replace('"stored": 2', '"stored": 3', 1))
    second = make_stage("raw_corpus", recipe, {}, tmp_path / "second")
    assert second.facts == first.facts and digests(second.path) == digests(whole.root / "raw_corpus")
    assert {path.stat().st_nlink for path in second.path.rglob("shard-*.parquet")} == {1, 2}


def test_shards_of_older_code_are_not_reused(whole, tmp_path, monkeypatch, in_this_process):
    recipe = load_recipe(whole.recipe)
    first = make_stage("raw_corpus", recipe, {}, tmp_path / "first")
    assert all(path.stat().st_nlink == 1 for path in first.path.rglob("shard-*"))
    second = make_stage("raw_corpus", recipe, {}, tmp_path / "second")
    assert all(path.stat().st_nlink == 2 for path in second.path.rglob("shard-*.parquet"))
    monkeypatch.setitem(STAGES, "raw_corpus", replace(STAGES["raw_corpus"], code_version="new"))
    third = make_stage("raw_corpus", recipe, {}, tmp_path / "third")
    assert all(path.stat().st_nlink == 1 for path in third.path.rglob("shard-*"))
    assert digests(third.path).keys() == digests(first.path).keys()


def test_two_processes_that_build_the_same_dataset_build_it_once(whole, tmp_path):
    line = command("nsp_dataset", whole.recipe, whole.root, tmp_path / "out")
    processes = [start(line, BERT_PIPELINE_WORKERS="1") for _ in range(2)]
    logs = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    assert sum("exists, nothing to build" in each for each in logs) == 1
    assert digests(tmp_path / "out") == digests(whole.root / "nsp_dataset")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.lock"}


# D1: other machines

CHAIN = """
import os, random, sys
from pathlib import Path
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.lineage import make_stage

def in_another_order(self, pattern, listed=Path.glob):
    found = list(listed(self, pattern))
    random.Random(os.environ["LISTING"]).shuffle(found)
    return iter(found)

Path.glob = in_another_order
os.umask(int(os.environ["UMASK"], 8))
recipe, root, made = load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), {}
for kind in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset"):
    made[kind] = make_stage(kind, recipe, made, root / kind)
"""

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SETTINGS = [
    {"BERT_PIPELINE_WORKERS": "1", "PYTHONHASHSEED": "1", "TZ": "Asia/Kolkata", "UMASK": "077", **ASCII},
    {"BERT_PIPELINE_WORKERS": "2", "PYTHONHASHSEED": "2", "LISTING": "2"},
    {"BERT_PIPELINE_WORKERS": "1"},
    {"PYTHONHASHSEED": "3"},
    {"LISTING": "4"},
    {"TZ": "America/Lima"},
    ASCII,
    {"UMASK": "000"},
]


def build_elsewhere(recipe: Path, out: Path, setting: dict[str, str]) -> dict[str, str]:
    """The digests of all data stages, built in another process with these environment variables."""
    run([sys.executable, "-c", CHAIN, str(recipe), str(out)], **({"UMASK": "022", "LISTING": "1"} | setting))
    return {f"{kind}/{name}": each for kind in KINDS for name, each in digests(out / kind).items()}


@pytest.mark.parametrize(
    "setting", [*SETTINGS[:2], *(pytest.param(each, marks=pytest.mark.slow) for each in SETTINGS[2:])]
)
def test_another_environment_gives_the_same_bytes(whole, tmp_path, setting):
    expected = {f"{kind}/{name}": each for kind in KINDS for name, each in digests(whole.root / kind).items()}
    assert build_elsewhere(whole.recipe, tmp_path, setting) == expected


@real_abstracts
@pytest.mark.slow
def test_another_environment_gives_the_same_bytes_for_real_abstracts(tmp_path):
    (tmp_path / "texts").mkdir()
    with gzip.open(REAL, "rt") as lines:
        for number in range(4):
            (tmp_path / "texts" / f"{number}.jsonl").write_text("".join(itertools.islice(lines, 2500)))
    recipe = write_recipe(tmp_path / "recipe.toml", tmp_path / "texts", 1000, vocab_size=4000)
    first, second = (build_elsewhere(recipe, tmp_path / str(n), setting) for n, setting in enumerate(SETTINGS[:2]))
    assert first == second and len(first) > 40
    facts = artifact.load(tmp_path / "0" / "nsp_dataset").facts["len_32"]
    assert facts["train_pairs"] * (1 - facts["forced_random_fraction"]) > 10_000
    assert abs(facts["free_random_fraction"] - 0.5) < 0.01


# An error in a shard


def test_an_error_names_document_and_file_and_keeps_finished_shards(whole, tmp_path, monkeypatch, in_this_process):
    recipe = load_recipe(whole.recipe)

    def refuse(text: str, split=corpus_shard.split_sentences) -> list[str]:
        if text == poisoned:
            raise RecursionError("too deep")
        return split(text)

    line = (whole.root / "texts" / "1.jsonl").read_text().splitlines()[60]
    poisoned = json.loads(line)["text"]
    monkeypatch.setattr(corpus_shard, "split_sentences", refuse)
    with pytest.raises(ShardError, match=r"raw_corpus: shard .*: RecursionError: too deep; document 1-60 of 1\.jsonl"):
        make_stage("raw_corpus", recipe, {}, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "made.partial").rglob("shard-*.parquet")}
    assert kept
    monkeypatch.undo()
    made = make_stage("raw_corpus", recipe, {}, tmp_path / "made")
    assert digests(made.path) == digests(whole.root / "raw_corpus")
    now = {path.name: path.stat().st_ino for path in made.path.rglob("shard-*.parquet")}
    assert kept.items() <= now.items(), "not written again"


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
