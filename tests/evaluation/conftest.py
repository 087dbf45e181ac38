"""A small task of each kind whose labels depend on a few words, and a small BERT with its tokenizer."""

import random
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from bert_pipeline.evaluation.tasks.readers import TaskData, read_task
from bert_pipeline.evaluation.tasks.task import Task, find_task

DRUG_BEGINNINGS = ("meto", "ate", "biso", "carve")
DRUG_ENDINGS = ("prolol", "nolol", "dilol")
DRUGS = [beginning + ending for beginning in DRUG_BEGINNINGS for ending in DRUG_ENDINGS]
SALTS = ("hydrochloride", "tartrate")
PLAIN = [
    *("patients", "with", "pain", "received", "a", "daily", "dose", "of", "no", "effect", "was", "seen", "after"),
    *("treatment", "for", "(", "weeks", ")", "."),
]
LABEL_WORDS = {"women": "PAR", "children": "PAR", "aspirin": "INT", "placebo": "INT", "death": "OUT", "nausea": "OUT"}
RELATIONS = {"blocks": "inhibitor", "lowers": "inhibitor", "raises": "activator", "and": "false", "or": "false"}
LIKENESS = {"same": 4.0, "near": 3.0, "far": 1.0, "unlike": 0.0}
HALLMARKS = {"growth": "proliferation", "spread": "invasion", "vessels": "angiogenesis"}
ANSWERS = {"helps": "yes", "fails": "no", "unclear": "maybe"}

TASKS = {
    "small-ner": ('kind = "ner"', {"train": 200, "dev": 20, "test": 40}),
    "small-pico": ('kind = "pico"\nlabels = ["PAR", "INT", "OUT"]', {"train": 120, "dev": 20, "test": 30}),
    "small-relation": (
        'kind = "relation"\nlabels = ["inhibitor", "activator", "false"]\nunscored_labels = ["false"]',
        {"train": 160, "dev": 30, "test": 40},
    ),
    "small-similarity": ('kind = "similarity"\nscore_range = [0.0, 4.0]', {"train": 160, "dev": 20, "test": 30}),
    "small-documents": (
        'kind = "documents"\nlabels = ["proliferation", "invasion", "angiogenesis"]',
        {"train": 200, "dev": 30, "test": 40},
    ),
    "small-qa": ('kind = "qa"\nlabels = ["yes", "no", "maybe"]', {"train": 160, "dev": 20, "test": 40}),
}
"""The rest of each task's TOML, and examples of each split."""


def plain(rng: random.Random, most: int = 6) -> list[str]:
    return rng.choices(PLAIN, k=rng.randint(1, most))


def ner(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(1, 4)):
        lines += [f"{word}\tO" for word in plain(rng)]
        lines.append(f"{rng.choice(DRUGS)}\tB")
        if rng.random() < 0.5:
            lines.append(f"{rng.choice(SALTS)}\tI")
    return "\n".join([*lines, ".\tO\n\n"])


def pico(rng: random.Random) -> str:
    words = [*plain(rng), *rng.choices([*LABEL_WORDS], k=2), *plain(rng)]
    rng.shuffle(words)
    return "".join(f"{word}\t{'I-' + LABEL_WORDS[word] if word in LABEL_WORDS else 'O'}\n" for word in words) + "\n"


def relation(rng: random.Random) -> str:
    verb = rng.choice([*RELATIONS])
    words = [*plain(rng), "@GENE$", verb, "@CHEMICAL$", *plain(rng)]
    return f"{' '.join(words)}\t{RELATIONS[verb]}\n"


def similarity(rng: random.Random) -> str:
    word = rng.choice([*LIKENESS])
    second = [*plain(rng), word, *plain(rng)]
    return f"{' '.join(plain(rng))}\t{' '.join(second)}\t{LIKENESS[word]}\n"


def documents(rng: random.Random) -> str:
    cues = [word for word in HALLMARKS if rng.random() < 0.4]
    words = [*plain(rng, 12), *cues]
    rng.shuffle(words)
    return f"{' '.join(words)}\t{','.join(HALLMARKS[cue] for cue in cues)}\n"


def qa(rng: random.Random) -> str:
    cue = rng.choice([*ANSWERS])
    return f"{' '.join(plain(rng))}\t{' '.join([*plain(rng), cue, *plain(rng)])}\t{ANSWERS[cue]}\n"


def write_task(name: str, folder: Path, seed: int = 0) -> None:
    rng = random.Random(seed)
    kind = name.removeprefix("small-")
    folder.mkdir(parents=True)
    for split, num_examples in TASKS[name][1].items():
        rows = [globals()[kind](rng) for _ in range(num_examples)]
        named = rows if kind in ("ner", "pico") else [f"{split}{n}\t{row}" for n, row in enumerate(rows)]
        (folder / f"{split}.tsv").write_text("".join(named))


@pytest.fixture(scope="module")
def small_tasks(tmp_path_factory):
    """Write the small tasks and their data, and point the environment variables to them."""
    root = tmp_path_factory.mktemp("tasks")
    (root / "tasks").mkdir()
    for name, (fields, _) in TASKS.items():
        head = f'title = ""\nversion = "1"\nterms = "none"\nfolder = "{name}"\n'
        (root / "tasks" / f"{name}.toml").write_text(head + fields)
        write_task(name, root / "data" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PIPELINE_TASKS", str(root / "tasks"))
        patch.setenv("BERT_PIPELINE_DATA", str(root / "data"))
        yield root / "data"


@pytest.fixture(scope="module")
def small_task(small_tasks):
    """A function that returns a small task and its data by name."""

    def load(name: str) -> tuple[Task, TaskData]:
        task = find_task(name)
        return task, read_task(task, small_tasks / name)

    return load


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def save_model(folder: Path) -> Path:
    # A fixed vocabulary: the trainer of `tokenizers` breaks ties differently in each process.
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz().,@$"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*DRUG_BEGINNINGS, *(f"##{ending}" for ending in DRUG_ENDINGS), "hydro", "##chloride", "tartrate"]
    cues = [*LABEL_WORDS, *RELATIONS, *LIKENESS, *HALLMARKS, *ANSWERS, "gene", "chemical"]
    pieces += [word for word in dict.fromkeys([*PLAIN, *cues]) if word not in pieces]
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
