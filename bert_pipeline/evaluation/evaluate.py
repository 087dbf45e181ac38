"""What a checkpoint is worth: its losses on held-out text, and its scores on tasks beside random weights.

    <out>/<task>/scores.json                              every run's scores, the gold, the settings, what is published
    <out>/<task>/predictions-<encoder>-seed<seed>.tsv     token, gold tag, predicted tag, by tabs
    <out>/<task>/data/                                    the data, where it is generated

A task is run for every seed with the checkpoint (`pretrained`) and with the same architecture from fresh weights
(`random_init`): only the gap between the two is what pretraining gave.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bert_pipeline.artifact import Facts
from bert_pipeline.evaluation.tasks import Sentence, find_task, num_entities, read_task, task_data, task_files
from bert_pipeline.progress import Progress
from bert_pipeline.recipe import EvaluationRecipe, TaskRecipe

HELDOUT_PAIRS = 10_000

OnRow = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


def build_evaluations(
    section: EvaluationRecipe,
    pretrained_checkpoint: Path,
    nsp_dataset: Path,
    masked_dataset: Path,
    out: Path,
    on_row: OnRow,
) -> Facts:
    from bert_pipeline.training.heldout import evaluate_checkpoint

    heldout = evaluate_checkpoint(pretrained_checkpoint, nsp_dataset, masked_dataset, HELDOUT_PAIRS)
    tasks = {}
    for settings in section.tasks:
        tasks[settings.name] = evaluate_model(pretrained_checkpoint, settings, None, out, on_row, baseline=True)
    return {"heldout": heldout, "tasks": tasks}


def evaluate_model(
    model_dir: Path, settings: TaskRecipe, data: Path | None, out: Path, on_row: OnRow, baseline: bool
) -> Facts:
    """Run one task with the model in a Hugging Face directory; `baseline` adds the runs from random weights."""
    from bert_pipeline.evaluation import finetune  # here, because it brings torch, which the graph does without
    from bert_pipeline.evaluation.scores import entity_scores

    task = find_task(settings.name)
    out = out / task.name
    out.mkdir(parents=True, exist_ok=True)
    folder = task_data(task, data, out / "data")
    sentences = read_task(task, folder)
    examples = finetune.encode_task(model_dir, sentences, settings.max_seq_length)
    encoders: tuple[finetune.Encoder, ...] = ("pretrained", "random_init") if baseline else ("pretrained",)
    num_steps = len(encoders) * len(settings.seeds) * examples.num_steps(settings)
    progress = Progress(f"{task.name}: fine-tuning", num_steps, "steps")

    runs: list[dict[str, Any]] = []
    for seed in settings.seeds:
        for encoder in encoders:
            run = finetune.finetune_ner(model_dir, encoder, examples, settings, seed, progress)
            dev = entity_scores([sentence.tags for sentence in sentences["dev"]], run.dev_tags)
            test = entity_scores([sentence.tags for sentence in sentences["test"]], run.test_tags)
            _write_predictions(out / f"predictions-{encoder}-seed{seed}.tsv", sentences["test"], run.test_tags)
            which = {"encoder": encoder, "seed": seed}
            runs.append(which | {"test": test, "dev": dev, "last_epoch_loss": run.last_epoch_loss})
            on_row({"step": len(runs), "task": task.name, **which, **test, "dev_f1": dev["f1"]})
            log.info("%s: %s, seed %d: test F1 %.4f", task.name, encoder, seed, test["f1"])

    facts: Facts = {
        "metric": task.metric,
        "gold_entities": num_entities(sentences["test"]),
        "seeds": list(settings.seeds),
        **{encoder: _summary([run["test"] for run in runs if run["encoder"] == encoder]) for encoder in encoders},
    }
    files = {
        split: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "sentences": len(sentences[split]),
            "gold_entities": num_entities(sentences[split]),
            "words_out_of_input": sum(len(row.tags) - len(row.words) for row in examples.splits[split]),
        }
        for split, path in task_files(folder).items()
    }
    table = facts | {
        "task": task.name,
        "settings": settings.model_dump(mode="json"),
        "runs": runs,
        "files": files,
        "reference_sha256": {split: reference.sha256 for split, reference in task.splits.items()},
        "published_f1": dict(task.published),
    }
    (out / "scores.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return facts


def _summary(tests: list[dict[str, float]]) -> dict[str, float | None]:
    """Mean and sample standard deviation over the seeds; of a single seed there is no deviation."""
    summary: dict[str, float | None] = {}
    for score in ("f1", "strict_f1"):
        values = [test[score] for test in tests]
        summary |= {f"{score}_mean": mean(values), f"{score}_sd": stdev(values) if len(values) > 1 else None}
    return summary


def _write_predictions(path: Path, sentences: list[Sentence], predicted: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for sentence, tags in zip(sentences, predicted, strict=True):
            rows = zip(sentence.tokens, sentence.tags, tags, strict=True)
            file.writelines(f"{token}\t{gold}\t{guess}\n" for token, gold, guess in rows)
            file.write("\n")
