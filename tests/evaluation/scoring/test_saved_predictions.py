"""Independent code computes the reported scores from the saved predictions, for each kind of task, end to end."""

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score

from bert_pipeline.cli import main

KINDS = ("ner", "pico", "relation", "similarity", "documents", "qa")
SEEDS = (1, 2)


@pytest.fixture(scope="module", params=KINDS)
def evaluated(request, model_dir, small_tasks, tmp_path_factory, evaluation_in_this_process) -> tuple[str, Path]:
    """The kind and its results: two seeds, brief training, truncated inputs, so that predictions are partly wrong."""
    out = tmp_path_factory.mktemp("evaluated")
    length = "14" if request.param in ("ner", "pico") else "24"
    epochs = {"relation": "8", "qa": "2"}.get(request.param, "5")
    settings = ["--learning-rate", "3e-3", "--batch-size", "16", "--num-epochs", epochs, "--max-seq-length", length]
    task = ["--task", f"small-{request.param}", "--seeds", "2"]
    assert main(["evaluate", "--model", str(model_dir), "--out", str(out), *task, *settings]) == 0
    return request.param, out / f"small-{request.param}"


def columns(path: Path) -> list[list[list[str]]]:
    """The columns of a tab-separated file: one block per sentence, or a single block."""
    blocks: list[list[list[str]]] = [[]]
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            blocks[-1].append(row) if row else blocks.append([])
    return [[list(column) for column in zip(*block, strict=True)] for block in blocks if block]


def typed(tags: list[str]) -> list[str]:
    return [tag if tag == "O" else f"{tag}-X" for tag in tags]  # seqeval wants a type in each tag


def of_sentences(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    sentences = columns(path)
    return [gold for _, gold, _ in sentences], [predicted for _, _, predicted in sentences]


def of_rows(path: Path) -> tuple[list[str], list[str]]:
    [(ids, gold, predicted)] = columns(path)
    assert (ids[0], gold[0], predicted[0]) == ("id", "gold", "predicted")
    return gold[1:], predicted[1:]


def ner(path: Path) -> float:
    gold, predicted = of_sentences(path)
    return entity_f1([typed(tags) for tags in gold], [typed(tags) for tags in predicted])


def pico(path: Path) -> float:
    gold, predicted = (np.concatenate([*map(np.array, side)]) for side in of_sentences(path))
    return f1_score(gold, predicted, labels=["I-PAR", "I-INT", "I-OUT"], average="macro", zero_division=0)


def relation(path: Path) -> float:
    return f1_score(*of_rows(path), labels=["inhibitor", "activator"], average="micro", zero_division=0)


def similarity(path: Path) -> float:
    return pearsonr(*(np.array(side, dtype=float) for side in of_rows(path))).statistic


def documents(path: Path) -> float:
    classes = ("proliferation", "invasion", "angiogenesis")
    gold, predicted = ([[name in cell.split(",") for name in classes] for cell in side] for side in of_rows(path))
    return f1_score(gold, predicted, average="micro", zero_division=0)


def qa(path: Path) -> float:
    return accuracy_score(*of_rows(path))


SCORES = {"ner": ner, "pico": pico, "relation": relation, "similarity": similarity, "documents": documents, "qa": qa}


def test_other_code_gets_the_reported_scores_from_the_files(evaluated):
    kind, folder = evaluated
    reported = json.loads((folder / "scores.json").read_text())
    assert [run["seed"] for run in reported["runs"]] == [*SEEDS]
    found = {}
    for run in reported["runs"]:
        for split in ("dev", "test"):
            score = SCORES[kind](folder / "predictions" / f"pretrained-seed{run['seed']}-{split}.tsv")
            assert run[split]["score"] == pytest.approx(score, abs=1e-12)
            found[split, run["seed"]] = score
    assert len(set(found.values())) > 1 and max(found.values()) > 0 and min(found.values()) < 1, (
        "otherwise this proves nothing"
    )
    of_test = [found["test", seed] for seed in SEEDS]
    assert reported["pretrained"]["score_mean"] == pytest.approx(statistics.mean(of_test), abs=1e-12)
    assert reported["pretrained"]["score_sd"] == pytest.approx(statistics.stdev(of_test), abs=1e-12)


def test_prediction_files_hold_all_gold_labels_in_the_order_of_the_data(evaluated, small_tasks):
    """Including the words that were cut off from the input, which are predicted as O."""
    kind, folder = evaluated
    path = folder / "predictions" / "pretrained-seed1-test.tsv"
    [*data] = columns(small_tasks / f"small-{kind}" / "test.tsv")
    if kind in ("ner", "pico"):
        assert [[tokens, gold] for tokens, gold, _ in columns(path)] == data
        lost = json.loads((folder / "scores.json").read_text())["words_out_of_input"]["test"]
        assert lost > 0, "no word was cut off, so this proves nothing"
    else:
        [(ids, gold, _)], [rows] = columns(path), data
        assert ids[1:] == rows[0]
        if kind == "similarity":
            assert [float(score) for score in gold[1:]] == [float(score) for score in rows[-1]]
        elif kind == "documents":
            assert [set(cell.split(",")) for cell in gold[1:]] == [set(cell.split(",")) for cell in rows[-1]]
        else:
            assert gold[1:] == rows[-1]
