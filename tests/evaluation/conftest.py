"""A small NER task and a small BERT with its tokenizer, made here."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForPreTraining, BertTokenizer

DRUG_BEGINNINGS = ("meto", "ate", "biso", "carve")
DRUG_ENDINGS = ("prolol", "nolol", "dilol")
DRUGS = [beginning + ending for beginning in DRUG_BEGINNINGS for ending in DRUG_ENDINGS]
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
def model_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    # Listed, not trained: the trainer of `tokenizers` breaks ties differently from process to process.
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz().,"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*DRUG_BEGINNINGS, *(f"##{ending}" for ending in DRUG_ENDINGS), "hydro", "##chloride", "tartrate"]
    pieces += [word for word in dict.fromkeys(PLAIN) if word not in pieces]
    vocab = {piece: n for n, piece in enumerate(pieces)}
    BertTokenizer(tokenizer_object=BertWordPieceTokenizer(vocab)._tokenizer).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocab),
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
