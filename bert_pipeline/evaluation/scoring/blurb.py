"""The BLURB score (Gu et al. 2021, arXiv 2007.15779): the mean over six groups of tasks of the mean over
the tasks of a group, so that five NER sets weigh no more than one of similarity.
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
    """Only where nothing is missing."""
    partial_score: float | None
    """The mean over `groups`; None where there is none."""
    groups: dict[str, float]
    """Those whose tasks are all there."""
    missing: list[str]
    """Tasks of BLURB without a mean."""


def blurb_score(means: Mapping[str, float], tasks: Mapping[str, Task]) -> BlurbScore:
    """From the mean test score of each task by name; those that are no part of BLURB are passed over.

    Raises ValueError where `tasks` are not the 13 of BLURB: a total over other tasks would bear its name in vain.
    """
    members = {group: [name for name, task in tasks.items() if task.group == group] for group in GROUP_SIZES}
    for group, names in members.items():
        if len(names) != GROUP_SIZES[group]:
            raise ValueError(
                f"BLURB's group {group} has {GROUP_SIZES[group]} task(s), not {len(names)} ({', '.join(names)}); "
                "remedy: leave out `group` in tasks that are no part of BLURB"
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
