"""Artifacts of a study's recipes at their fingerprints, with invented predictions, for tests of what follows."""

import json
import random
from pathlib import Path

from bert_pipeline.experiments import expand, find_study
from bert_pipeline.lineage import stage_origin
from bert_pipeline.recipe import Recipe
from bert_pipeline.stages import EVALUATION, find_stage, kinds_of, resolve_recipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, Facts

SENTENCES = 120


def build_all(study: str, store: Path, right: dict[str, float], luck: float = 0.01, held: float = 0.0) -> None:
    """Write the artifacts of every recipe. `right`: the share of words that an arm's models tag correctly; `luck`: the
    standard deviation of that share over pretraining seeds; `held`: share of the test in the corpus.
    """
    for (arm, seed), recipe in expand(find_study(study)).items():
        share = right[arm] + random.Random(f"{study} {arm} {seed}").gauss(0, luck)
        build(recipe, store, share, held)


def build(recipe: Recipe, store: Path, share: float, held: float = 0.0) -> dict[str, Artifact]:
    made: dict[str, Artifact] = {}
    recipe = resolve_recipe(recipe)
    for kind in kinds_of(recipe):
        if kind == "evaluations" or (kind == "contamination" and not recipe.evaluation.tasks):
            continue
        origin = stage_origin(kind, recipe, made)
        destination = store / kind / artifact.fingerprint(origin)
        made[kind] = artifact.make(destination, origin, lambda out, kind=kind: _write(kind, recipe, out, share, held))
    return made


def _write(kind: str, recipe: Recipe, out: Path, share: float, held: float) -> Facts:
    if kind == "tokenizer":
        return {"heldout_pieces_per_word": 1.5}
    if kind == "contamination":
        return {"tasks": {task.name: {"test": {"share_held": held}} for task in recipe.evaluation.tasks}}
    if kind == "pretrained_checkpoint":
        rows = [{"step": step, "heldout_mlm_loss": 6.0 - share * step / 100} for step in (0, 50, 100)]
        (out / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return {"num_steps": 100, "train_tokens_seen": 60_000, "tokens_per_second": 100.0}
    if kind.startswith(EVALUATION):
        return _evaluate(kind.removeprefix(EVALUATION), recipe, out, share)
    return {}


def _evaluate(task: str, recipe: Recipe, out: Path, share: float) -> Facts:
    [section] = [each for each in recipe.evaluation.tasks if each.name == task]
    (out / "predictions").mkdir()
    for seed in section.seeds:
        rng = random.Random(f"{task} {recipe.pretrain.seed} {seed}")
        gold = random.Random(task)
        sentences = []
        for _ in range(SENTENCES):
            tags = gold.choices("OB", (3, 1), k=5)
            wrong = [tag if rng.random() < share else "OB"[tag == "O"] for tag in tags]
            sentences.append("".join(f"word\t{one}\t{other}\n" for one, other in zip(tags, wrong, strict=True)) + "\n")
        (out / "predictions" / f"pretrained-seed{seed}-test.tsv").write_text("".join(sentences))
    (out / "scores.json").write_text(json.dumps({"task": task, "seeds": list(section.seeds)}))
    protocol = find_stage(EVALUATION + task).section(recipe)
    best = random.Random(f"{task} {recipe.name}").choice(protocol["learning_rates"])
    setting = {
        "learning_rate": best,
        "batch_size": protocol["batch_sizes"][0],
        "num_epochs": protocol["nums_epochs"][0],
    }
    return {"seeds": list(section.seeds), "setting": setting}
