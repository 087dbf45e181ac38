"""What the data stages make of the recipe `demo`, number by number, as it was when the code got its version.

The first 1,500 of its 6,000 documents are taken, so that this is a matter of seconds; all else is the recipe's own.
With UPDATE_GOLDEN=1 in the environment the numbers are written anew, where a version says that they may change.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.formats.corpus import iterate_documents
from bert_pipeline.formats.pairs import MaskShard, PairShard, pass_directory
from bert_pipeline.formats.tables import shard_paths
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.stages import STAGES, make_stage

FILE = Path(__file__).with_name("golden.json")
KINDS = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")
LENGTH, ROWS = 64, 3


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def corpus_facts(directory: Path) -> dict[str, Any]:
    """The text, not the file: Parquet names the version of the library that wrote it."""
    documents = {split: list(iterate_documents(directory, split)) for split in ("train", "heldout")}
    return {
        "first_shards": {split: shard_paths(directory / split, "parquet")[0].stem for split in documents},
        "first_sentences": {split: texts[0][:2] for split, texts in documents.items()},
        "sha256_of_sentences": {split: sha256(json.dumps(texts).encode()) for split, texts in documents.items()},
    }


def tokenizer_facts(directory: Path) -> dict[str, Any]:
    pieces = (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return {
        "pieces": {str(n): pieces[n] for n in (0, 1, 2, 3, 4, 5, 50, 100, 200, 500, 1000, 1500, len(pieces) - 1)},
        "sha256_of_vocab.txt": sha256((directory / "vocab.txt").read_bytes()),
    }


def first_shards(dataset: Path) -> dict[str, Path]:
    passes = [("train", 0), ("train", 1), ("heldout", 0)]
    return {
        f"{split}/pass-{n}": shard_paths(pass_directory(dataset, LENGTH, split, n), "arrow")[0] for split, n in passes
    }


def pair_facts(directory: Path) -> dict[str, Any]:
    facts = {}
    for name, path in first_shards(directory).items():
        pairs = PairShard.read(path)
        rows = [
            {
                "segment_a_length": int(pairs.segment_a_length[n]),
                "next_sentence_label": int(pairs.next_sentence_label[n]),
                "input_ids": pairs.input_ids[pairs.offsets[n] : pairs.offsets[n + 1]].tolist(),
            }
            for n in range(ROWS)
        ]
        facts[name] = {"first_rows": rows, "rows": len(pairs), "sha256_of_file": sha256(path.read_bytes())}
    return facts


def mask_facts(directory: Path) -> dict[str, Any]:
    facts = {}
    for name, path in first_shards(directory).items():
        masks = MaskShard.read(path)
        spans = [slice(masks.offsets[n], masks.offsets[n + 1]) for n in range(ROWS)]
        rows = [
            {"masked_positions": masks.positions[span].tolist(), "masked_input_ids": masks.input_ids[span].tolist()}
            for span in spans
        ]
        facts[name] = {"first_rows": rows, "sha256_of_file": sha256(path.read_bytes())}
    return facts


FACTS = dict(zip(KINDS, (corpus_facts, tokenizer_facts, pair_facts, mask_facts), strict=True))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    recipe = load_recipe(recipe_files()["demo"])
    fewer = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"sample_documents": 1500})})
    root, made = tmp_path_factory.mktemp("demo"), {}
    for kind in KINDS:
        made[kind] = make_stage(kind, fewer, made, root / kind)
    return {kind: {"code_version": STAGES[kind].code_version} | FACTS[kind](one.path) for kind, one in made.items()}


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [line for name in names for line in differences(old.get(name), new.get(name), f"{where} / {name}")]
    return [] if old == new else [f"{where}\n  was {old}\n  is  {new}"]


def version_raised(old: dict[str, Any], new: dict[str, Any], kind: str) -> bool:
    """The stage's own, or that of a stage before it: what they make goes into what it makes."""
    before = KINDS[: KINDS.index(kind) + 1]
    return any(old.get(each, {}).get("code_version") != new[each]["code_version"] for each in before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_makes_what_it_made_when_its_code_got_its_version(found, kind):
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    changed = "\n".join(differences(golden.get(kind), found[kind], kind))
    raised = version_raised(golden, found, kind)
    if changed and raised and os.environ.get("UPDATE_GOLDEN"):
        pytest.skip(f"{FILE.name} is written anew")
    remedy = (
        f"UPDATE_GOLDEN=1 python -m pytest {Path(__file__).name} writes it anew; read the difference before you commit"
        if raised
        else f'a new code_version of "{kind}" (or of the first stage that changed) in bert_pipeline/stages.py, because '
        "a store that holds artifacts of this version would mix old and new; then UPDATE_GOLDEN=1"
    )
    assert not changed, f"{kind} is no longer what version {found[kind]['code_version']} made:\n{changed}\n{remedy}"


def test_golden_numbers_are_written_anew_where_a_version_was_raised(found):
    """The last of this file, so that the tests above have compared before."""
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        kept = {kind: found[kind] if version_raised(golden, found, kind) else golden[kind] for kind in KINDS}
        lines = json.dumps(kept, indent=1, ensure_ascii=False)
        rows = re.sub(r"\[[\d\s,]+\]", lambda numbers: " ".join(numbers[0].split()), lines)
        FILE.write_text(rows + "\n", encoding="utf-8")
    assert set(json.loads(FILE.read_text(encoding="utf-8"))) == set(KINDS)


def test_a_difference_without_a_new_version_says_so():
    old = {"raw_corpus": {"code_version": "1", "rows": [1, 2]}, "tokenizer": {"code_version": "1"}}
    new = {"raw_corpus": {"code_version": "1", "rows": [1, 3]}, "tokenizer": {"code_version": "2"}}
    assert differences(old, new) == [
        " / raw_corpus / rows\n  was [1, 2]\n  is  [1, 3]",
        " / tokenizer / code_version\n  was 1\n  is  2",
    ]
    assert not version_raised(old, new, "raw_corpus")
    assert version_raised(old, new, "tokenizer")
