"""Builds for the fault tests: a corpus of made-up words, and the data stages as separate processes."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
KINDS = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")
IN_SHARDS = ("raw_corpus", "nsp_dataset", "masked_dataset")


def write_texts(folder: Path, documents: int, files: int = 3) -> Path:
    """Abstracts of made-up words, Greek among them, of 1 to 6 sentences."""
    folder.mkdir(parents=True)
    rng = random.Random(5)
    words = [
        "".join(rng.choice(["ka", "lo", "mi", "β", "ster", "ine", "é"]) for _ in range(rng.randint(1, 4)))
        for _ in range(400)
    ]
    for file in range(files):
        with (folder / f"{file}.jsonl").open("w", encoding="utf-8") as out:
            for number in range(documents // files):
                sentences = [
                    " ".join(["The", *rng.choices(words, k=rng.randint(3, 20))]) + "." for _ in range(rng.randint(1, 6))
                ]
                out.write(json.dumps({"id": f"{file}-{number}", "text": " ".join(sentences)}) + "\n")
    return folder


def write_recipe(path: Path, texts: Path, documents_per_shard: int, vocab_size: int = 200) -> Path:
    path.write_text(f"""
        corpus.path = {json.dumps(str(texts))}
        corpus.id_field = "id"
        corpus.heldout_fraction = 0.1
        corpus.documents_per_shard = {documents_per_shard}
        tokenizer.vocab_size = {vocab_size}
        nsp.dupe_factor = 2
        masking.do_whole_word_mask = true
        pretrain.phases = [{{max_seq_length = 32, num_steps = 1, learning_rate = 1e-3, warmup_steps = 0}}]
    """)
    return path


def command(kind: str, recipe: Path, built: Path, out: Path) -> list[str]:
    inputs = {"nsp_dataset": ("raw_corpus", "tokenizer"), "masked_dataset": ("tokenizer", "nsp_dataset")}
    inputs["tokenizer"] = ("raw_corpus",)
    flags = [f for name in inputs.get(kind, ()) for f in (f"--{name.replace('_', '-')}", str(built / name))]
    line = [sys.executable, "-m", "bert_pipeline.cli", kind.replace("_", "-"), "--recipe", str(recipe), *flags]
    return [*line, "--out", str(out)]


def start(line: list[str], **environment: str) -> subprocess.Popen:
    environment = os.environ | {"BERT_PIPELINE_WORKERS": "2"} | environment
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def run(line: list[str], **environment: str) -> None:
    process = start(line, **environment)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file except record.json, which holds time and place."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "record.json"
    }


def build_by_command(root: Path, documents: int, documents_per_shard: int) -> SimpleNamespace:
    texts = write_texts(root / "texts", documents)
    recipe = write_recipe(root / "recipe.toml", texts, documents_per_shard)
    for kind in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset"):
        run(command(kind, recipe, root, root / kind), BERT_PIPELINE_WORKERS="1")
    return SimpleNamespace(root=root, recipe=recipe)
