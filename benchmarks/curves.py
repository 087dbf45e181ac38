"""Held-out loss over time: the measured tasks of the quality benchmark on our side.

<folder>/recipe.json       the recipe
<folder>/raw_corpus ...    its artifacts, up to masked_dataset

The clock counts the training steps: not imports, not held-out measurements, and not compilation, which the first steps
of a run would include (COMPILING).
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Answer, answer, measure
from benchmarks.rows import tell
from benchmarks.text import corpus_and_tokenizer
from bert_pipeline.fitting.fields import choose_fields
from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.store import artifact

COMPILING = 20
"""The first steps of a run count as if each took the mean time of the later ones."""

Curve = list[dict[str, float]]
"""Points with step, seconds, mlm_loss and mlm_accuracy, in order."""


def with_seconds(step_seconds: Sequence[float], points: Sequence[Mapping[str, float]]) -> Curve:
    """Add to each point the seconds that training had taken at its step."""
    steady = float(np.mean(step_seconds[COMPILING:]))
    clock = list(accumulate([steady] * COMPILING + list(step_seconds[COMPILING:])))
    return [{**point, "seconds": clock[int(point["step"]) - 1]} for point in points]


def seconds_to(loss: float, curves: Sequence[Curve]) -> float | None:
    """When the first of the curves reaches the loss, linear between two points; None if none does."""
    found = []
    for curve in curves:
        for before, after in pairwise(curve):
            if before["mlm_loss"] > loss >= after["mlm_loss"]:
                share = (before["mlm_loss"] - loss) / (before["mlm_loss"] - after["mlm_loss"])
                found.append(before["seconds"] + share * (after["seconds"] - before["seconds"]))
                break
    return min(found, default=None)


def prepare(folder: str, recipe: dict[str, Any]) -> Answer:
    """Build the artifacts that all sides train on."""
    from bert_pipeline.lineage import make_stage

    here, started = Path(folder), time.perf_counter()
    chosen = Recipe.model_validate_json(json.dumps(recipe))
    (here / "recipe.json").write_text(chosen.model_dump_json(), encoding="utf-8")
    made = corpus_and_tokenizer(chosen, here)
    for kind in ("nsp_dataset", "masked_dataset"):
        made[kind] = make_stage(kind, chosen, made, here / kind)
    facts = made["raw_corpus"].facts
    return {
        "seconds": time.perf_counter() - started,
        "vocab_size": made["tokenizer"].facts["vocab_size"],
        "documents": facts["train_documents"],
        "words": facts["train_words"],
    }


def recipe_on(parser: argparse.ArgumentParser, name: str, text: str | None) -> Recipe:
    """The recipe of this name, on another text if one is given; its path is absolute."""
    recipes = recipe_files()
    if name not in recipes:
        parser.error(f"unknown recipe {name}; remedy: one of {', '.join(recipes)}")
    chosen = load_recipe(recipes[name]).model_dump(mode="json")
    if text:
        fields = choose_fields(text)[0]
        chosen["corpus"] |= {"source": "files", "path": text, "text_fields": fields, "id_field": ""}
    folder = "." if text else os.environ.get("BERT_PIPELINE_DATA") or "."
    if chosen["corpus"]["source"] == "files":
        chosen["corpus"]["path"] = str(Path(folder, chosen["corpus"]["path"]).absolute())
    recipe = Recipe.model_validate_json(json.dumps(chosen))
    if recipe.pretrain.budget_minutes:
        parser.error(f"{name} has a budget of minutes; remedy: a recipe whose phases have num_steps")
    return recipe


def prepare_datasets(recipe: Recipe, folder: str, cores: Sequence[int]) -> Answer:
    """`prepare` in a process of its own."""
    tell("preparing the datasets")
    as_json = recipe.model_dump(mode="json")
    return measure("benchmarks.curves", "prepare", cores=set(cores), folder=folder, recipe=as_json)


def read_recipe(folder: Path) -> Recipe:
    return Recipe.model_validate_json((folder / "recipe.json").read_bytes())


def shortened(recipe: Recipe, num_steps: int) -> Recipe:
    """The recipe with all of its phases and warm-ups scaled to `num_steps` steps in total."""
    chosen = recipe.model_dump(mode="json")
    scale = num_steps / recipe.pretrain.num_steps
    for phase in chosen["pretrain"]["phases"]:
        phase["num_steps"] = max(1, round(phase["num_steps"] * scale))
        if phase["warmup_steps"] is not None:
            phase["warmup_steps"] = round(phase["warmup_steps"] * scale)
    return Recipe.model_validate_json(json.dumps(chosen))


def learn(folder: str, recipe: dict[str, Any], num_steps: int, eval_every: int, heldout_pairs: int) -> Answer:
    """Train with the regular stage for `num_steps` steps and delete the result."""
    from bert_pipeline.lineage import make_stage

    here, out = Path(folder), Path(folder, "pretrained_checkpoint")
    chosen = shortened(Recipe.model_validate_json(json.dumps(recipe)), num_steps)
    rarely = {"checkpoint_every": num_steps, "checkpoints_kept": 1}
    measured = {"log_every": 10, "eval_every": eval_every, "heldout_pairs": heldout_pairs}
    section = chosen.pretrain.model_copy(update=rarely | measured)
    inputs = {kind: artifact.load(here / kind) for kind in ("tokenizer", "nsp_dataset", "masked_dataset")}
    rows: list[dict[str, Any]] = []
    make_stage("pretrained_checkpoint", chosen.model_copy(update={"pretrain": section}), inputs, out, rows.append)
    shutil.rmtree(out)
    step_seconds: list[float] = []
    for row in rows:
        if "tokens" in row:
            steps = row["step"] - len(step_seconds)
            step_seconds += [row["tokens"] / row["tokens_per_second"] / steps] * steps
    names = ("mlm_loss", "mlm_accuracy")
    points = [
        {"step": row["step"]} | {name: row[f"heldout_{name}"] for name in names}
        for row in rows
        if "heldout_mlm_loss" in row and row["step"]
    ]
    tokens = sum(row.get("tokens", 0) for row in rows)
    return {"curve": with_seconds(step_seconds, points), "tokens": tokens}


if __name__ == "__main__":
    answer(prepare, learn)
