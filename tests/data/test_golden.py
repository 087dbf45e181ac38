"""The output of the data stages for the recipe `demo` equals the golden output of the same code versions.

Only the first 1,500 of its 6,000 documents are used, so that this takes seconds; everything else is the recipe's own.
UPDATE_GOLDEN=1 in the environment rewrites the golden output of stages whose code version was raised.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bert_pipeline.data.corpus.build import build_raw_corpus
from bert_pipeline.formats.corpus import iterate_documents
from bert_pipeline.formats.pairs import MaskShard, PairShard, pass_directory
from bert_pipeline.formats.tables import SPLITS, shard_paths
from bert_pipeline.lineage import make_stage
from bert_pipeline.recipe import CorpusRecipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.stages import STAGES

FILE = Path(__file__).with_name("golden.json")
KINDS = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")
LENGTH, ROWS = 64, 3
TEXTS = {
    "chinese.txt": "患者头痛三天。血压正常！他问：「好吗？」没有回答。\n\n\ufeff\n\n頭痛が続く。熱はない。\n",
    "korean.md": "환자는 두통을 호소하였다. 혈압은 정상이었다.\n",
    "english.txt": "Dr. Smith gave 5 mg. of it (i.v.) twice. \u201cDid it help?\u201d Yes.\n\u200b\nNo side effects.\n",
    "quotes.tsv": 'text\n"Aspirin" in dose 1. It helped.\n"never closed. The next row is its own.\nlast "\n',
    "semicolons.csv": 'id;text\n1;One is short. Here.\n2;"Two; in quotes. Here."\n',
    "lines.ndjson": '{"text": "A line. With \\u00e9."}\n',
}
"""Files of a corpus: what the readers and the splitter make of them belongs to the golden output, too."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def corpus_facts(directory: Path) -> dict[str, Any]:
    """Digests of the text, not of the file, because Parquet stores the version of the library that wrote it."""
    documents = {split: list(iterate_documents(directory, split)) for split in ("train", "heldout")}
    return {
        "first_shards": {split: shard_paths(directory / split, "parquet")[0].stem for split in documents},
        "first_sentences": {split: texts[0][:2] for split, texts in documents.items()},
        "sha256_of_sentences": {split: sha256(json.dumps(texts).encode()) for split, texts in documents.items()},
    }


def documents_of_texts(folder: Path) -> list[list[str]]:
    """The sentences of each document of TEXTS."""
    texts, corpus = folder / "texts", folder / "corpus_of_texts"
    for each in (texts, corpus):
        each.mkdir()
    for name, text in TEXTS.items():
        (texts / name).write_bytes(text.encode())
    build_raw_corpus(CorpusRecipe(path=str(texts), heldout_fraction=0.4), corpus)
    return sorted(document for split in SPLITS for document in iterate_documents(corpus, split))


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
    facts = {kind: {"code_version": STAGES[kind].code_version} | FACTS[kind](one.path) for kind, one in made.items()}
    facts["raw_corpus"]["documents_of_texts"] = documents_of_texts(root)
    return facts


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [line for name in names for line in differences(old.get(name), new.get(name), f"{where} / {name}")]
    return [] if old == new else [f"{where}\n  was {old}\n  is  {new}"]


def version_raised(old: dict[str, Any], new: dict[str, Any], kind: str) -> bool:
    """Whether the code version of this stage, or of an earlier stage whose output it reads, was raised."""
    before = KINDS[: KINDS.index(kind) + 1]
    return any(old.get(each, {}).get("code_version") != new[each]["code_version"] for each in before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_equals_the_golden_output_of_this_code_version(found, kind):
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    changed = "\n".join(differences(golden.get(kind), found[kind], kind))
    raised = version_raised(golden, found, kind)
    if changed and raised and os.environ.get("UPDATE_GOLDEN"):
        pytest.skip(f"{FILE.name} is being rewritten")
    remedy = (
        f"UPDATE_GOLDEN=1 python -m pytest {Path(__file__).name} rewrites it; read the difference before you commit"
        if raised
        else f'a new code_version of "{kind}" (or of the first stage that changed) in bert_pipeline/stages.py, because '
        "a store that holds artifacts of this version would mix old and new; then UPDATE_GOLDEN=1"
    )
    assert not changed, (
        f"{kind} differs from the golden output of version {found[kind]['code_version']}:\n{changed}\n{remedy}"
    )


def test_golden_output_is_rewritten_where_a_version_was_raised(found):
    """Runs after the tests above, which compare with the old file."""
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        kept = {kind: found[kind] if version_raised(golden, found, kind) else golden[kind] for kind in KINDS}
        lines = json.dumps(kept, indent=1, ensure_ascii=False)
        rows = re.sub(r"\[[\d\s,]+\]", lambda numbers: " ".join(numbers[0].split()), lines)
        FILE.write_text(rows + "\n", encoding="utf-8")
    assert set(json.loads(FILE.read_text(encoding="utf-8"))) == set(KINDS)


def test_differences_and_raised_versions_are_detected():
    old = {"raw_corpus": {"code_version": "1", "rows": [1, 2]}, "tokenizer": {"code_version": "1"}}
    new = {"raw_corpus": {"code_version": "1", "rows": [1, 3]}, "tokenizer": {"code_version": "2"}}
    assert differences(old, new) == [
        " / raw_corpus / rows\n  was [1, 2]\n  is  [1, 3]",
        " / tokenizer / code_version\n  was 1\n  is  2",
    ]
    assert not version_raised(old, new, "raw_corpus")
    assert version_raised(old, new, "tokenizer")
