"""The BLURB score (Gu et al. 2021, arXiv 2007.15779): the mean over six groups of tasks of each group's mean score, so
that five NER data sets weigh as much as a single similarity data set.
"""

from collections.abc import Mapping
from typing import TypedDict

from bert_pipeline.evaluation.tasks.task import Group, Task

GROUP_SIZES: dict[Group, int] = {
    "named entity recognition": 5,
    "PICO": 1,
    "relation extraction": 3,
    "sentence similarity": 1,
    "document classification": 1,
    "question answering": 2,
}
"""Table 3 of the paper."""


class BlurbScore(TypedDict):
    score: float | None
    """None if a task is missing."""
    partial_score: float | None
    """Mean over `groups`; None if there is no complete group."""
    groups: dict[str, float]
    """Mean score of each complete group."""
    missing: list[str]
    """Tasks of BLURB without a score."""


def blurb_score(means: Mapping[str, float], tasks: Mapping[str, Task]) -> BlurbScore:
    """Compute the score from each task's mean test score, ignoring tasks outside BLURB.

    Raises ValueError if the groups of `tasks` are not BLURB's: a mean over other tasks is not the BLURB score.
    """
    members = {group: [name for name, task in tasks.items() if task.group == group] for group in GROUP_SIZES}
    for group, names in members.items():
        if len(names) != GROUP_SIZES[group]:
            raise ValueError(
                f"BLURB's group {group} has {GROUP_SIZES[group]} task(s), not {len(names)} ({', '.join(names)}); "
                "remedy: remove `group` from tasks that are not in BLURB"
            )
    missing = [name for names in members.values() for name in names if name not in means]
    groups: dict[str, float] = {
        group: sum(means[name] for name in names) / len(names)
        for group, names in members.items()
        if not set(names) & set(missing)
    }
    partial_score = sum(groups.values()) / len(groups) if groups else None
    return {
        "score": None if missing else partial_score,
        "partial_score": partial_score,
        "groups": groups,
        "missing": missing,
    }
