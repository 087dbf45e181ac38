"""Combine all evaluations of a checkpoint: held-out losses, task scores beside published ones, the BLURB score, and the
share of the tasks' text in the corpus.

    <out>/results.md, results.png      the scores as a table and as a picture
"""

from collections.abc import Mapping
from pathlib import Path

from bert_pipeline.evaluation.scoring.blurb import blurb_score
from bert_pipeline.evaluation.tasks.task import find_task, task_files
from bert_pipeline.report import pictures
from bert_pipeline.report.score_table import scores_markdown
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Facts

HELDOUT_PAIRS = 10_000


def build_evaluations(
    contamination: Path,
    nsp_dataset: Path,
    masked_dataset: Path,
    pretrained_checkpoint: Path,
    of_tasks: Mapping[str, Path],
    out: Path,
) -> Facts:
    """Build the artifact `evaluations`. `of_tasks` maps the name of each task to its evaluation artifact."""
    from bert_pipeline.training.heldout import score_heldout

    tasks = {name: artifact.load(path).facts for name, path in of_tasks.items()}
    known = {name: find_task(name) for name in task_files()}
    means = {name: facts["pretrained"]["score_mean"] for name, facts in tasks.items()}
    facts: Facts = {
        "heldout": score_heldout(pretrained_checkpoint, nsp_dataset, masked_dataset, HELDOUT_PAIRS),
        "tasks": tasks,
        "contamination": artifact.load(contamination).facts,
    }
    if any(known[name].group for name in means):
        facts["blurb"] = blurb_score(means, known)
    if tasks:
        (out / "results.md").write_text(scores_markdown(facts), encoding="utf-8")
        (out / "results.png").write_bytes(pictures.task_scores(tasks))
    return facts
