"""A small NER task and a small BERT with its tokenizer, made here."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForPreTraining, BertTokenizer

DRUGS = [a + b for a in ("meto", "ate", "biso", "carve") for b in ("prolol", "nolol", "dilol")]
SALTS = ("hydrochloride", "tartrate")
PLAIN = [
    "patients",
    "with",
    "pain",
    "received",
    "a",
    "daily",
    "dose",
    "of",
    "no",
    "effect",
    "was",
    "seen",
    "after",
    "treatment",
    "for",
    "(",
    "weeks",
    ")",
    ".",
]


def write_task(folder: Path, seed: int) -> Path:
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for split, num_sentences in {"train": 200, "dev": 20, "test": 40}.items():
        with (folder / f"{split}.tsv").open("w") as file:
            for _ in range(num_sentences):
                for _ in range(rng.randint(1, 4)):
                    file.writelines(f"{word}\tO\n" for word in rng.choices(PLAIN, k=rng.randint(1, 6)))
                    file.write(f"{rng.choice(DRUGS)}\tB\n")
                    if rng.random() < 0.5:
                        file.write(f"{rng.choice(SALTS)}\tI\n")
                file.write(".\tO\n\n")
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "chem", seed=0)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, task_folder) -> Path:
    folder = tmp_path_factory.mktemp("model")
    words = [line.split("\t")[0] for line in (task_folder / "train.tsv").read_text().split("\n")]
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(words, vocab_size=120, min_frequency=1, show_progress=False)
    BertTokenizer(tokenizer_object=trained._tokenizer).save_pretrained(folder)
    config = BertConfig(
        vocab_size=trained.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    torch.manual_seed(7)
    BertForPreTraining(config).save_pretrained(folder)
    return folder
