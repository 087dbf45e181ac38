"""Compare two models on one task, from the output directories of their evaluations (see evaluate.py)."""

import json
from pathlib import Path

import numpy as np

from bert_pipeline.evaluation.scoring.predictions import read_predictions
from bert_pipeline.evaluation.scoring.scores import statistics
from bert_pipeline.evaluation.scoring.significance import Comparison, compare
from bert_pipeline.evaluation.tasks.task import Task, TaskError, find_task

RESAMPLING_SEED = 12345


def compare_evaluations(ours: Path, theirs: Path) -> Comparison:
    """Compare the models in two output directories of `evaluate_task`, pairing the seeds that both ran.

    If they share no seed, all runs are used. Raises TaskError for different tasks, ValueError for other gold labels.
    """
    our_table, their_table = (json.loads((folder / "scores.json").read_text("utf-8")) for folder in (ours, theirs))
    if our_table["task"] != their_table["task"]:
        raise TaskError(
            f"{ours} is an evaluation on {our_table['task']}, {theirs} on {their_table['task']}; "
            "remedy: compare evaluations on the same task"
        )
    task = find_task(our_table["task"])
    shared = [seed for seed in our_table["seeds"] if seed in their_table["seeds"]]
    our_runs = read_runs(ours, task, shared or our_table["seeds"])
    their_runs = read_runs(theirs, task, shared or their_table["seeds"])
    return compare(task, our_runs, their_runs, RESAMPLING_SEED)


def read_runs(folder: Path, task: Task, seeds: list[int]) -> list[np.ndarray]:
    """The `statistics` of the run of each seed, from the output directory of an evaluation."""
    files = (folder / "predictions" / f"pretrained-seed{seed}-test.tsv" for seed in seeds)
    return [statistics(task, *read_predictions(file, task)) for file in files]
