"""The YAML header of a model card, which the Hugging Face Hub reads from README.md."""

from collections.abc import Sequence
from typing import NamedTuple

LICENSE = "unknown"
"""The Hub's word. Whoever publishes the weights replaces it: the terms of the training text decide."""
TASKS = {"ner": "token-classification", "pico": "token-classification"}
"""The Hub's names of the kinds of tasks; text-classification for the others."""
METRICS = {"entity F1": "f1", "micro F1": "f1", "word F1, mean over the labels": "f1", "accuracy": "accuracy"}
"""The Hub's names of metrics; pearsonr for the remaining one, Pearson correlation."""


class Result(NamedTuple):
    """The score of a model on the test set of a task."""

    task: str
    kind: str
    metric: str
    score: float


def front_matter(
    name: str, pipeline_tag: str, tags: Sequence[str], language: str, results: Sequence[Result], license: str = LICENSE
) -> str:
    """Return the header with its marks. `language`: ISO 639-1, or empty."""
    from huggingface_hub import EvalResult, ModelCardData

    data = ModelCardData(
        language=language or None,
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=[*tags],
        model_name=name if results else None,
        eval_results=[
            EvalResult(
                task_type=hub_task(each.kind),
                dataset_type=each.task,
                dataset_name=each.task,
                dataset_split="test",
                metric_type=METRICS.get(each.metric, "pearsonr"),
                metric_name=each.metric,
                metric_value=round(each.score, 6),
            )
            for each in results
        ]
        or None,
    )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n"


def hub_task(kind: str) -> str:
    return TASKS.get(kind, "text-classification")
