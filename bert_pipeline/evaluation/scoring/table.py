"""Scores beside the published ones, as a table for people, and the BLURB score of what was run."""

from collections.abc import Mapping

from bert_pipeline.evaluation.scoring.blurb import blurb_score
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.report.score_table import blurb_line
from bert_pipeline.store.artifact import Facts

OURS = {"pretrained": "this model", "random_init": "the same, random weights"}


def show_scores(evaluated: Mapping[str, Facts], tasks: Mapping[str, Task]) -> str:
    """`evaluated`: the facts of each task by name; `tasks`: all that are known. Test scores in percent."""
    rows = {shown: _means(evaluated, encoder) for encoder, shown in OURS.items()}
    theirs = {name: facts["measured"] | facts["published"] for name, facts in evaluated.items()}
    others = dict.fromkeys(model for scores in theirs.values() for model in scores)
    rows |= {model: {name: scores.get(model) for name, scores in theirs.items()} for model in others}
    width = max(map(len, (*rows, *OURS.values())))
    columns = {name: max(8, len(name)) for name in evaluated}
    lines = [" " * width + "".join(f"  {name:>{columns[name]}}" for name in evaluated)]
    for model, scores in rows.items():
        cells = {name: "" if score is None else f"{100 * score:.2f}" for name, score in scores.items()}
        if any(cells.values()):
            lines.append(f"{model:<{width}}" + "".join(f"  {cells[name]:>{columns[name]}}" for name in evaluated))
    return "\n".join(
        [*lines, "", *(_told(name, facts) for name, facts in evaluated.items()), *_blurb(evaluated, tasks)]
    )


def _means(evaluated: Mapping[str, Facts], encoder: str) -> dict[str, float | None]:
    return {name: facts.get(encoder, {}).get("score_mean") for name, facts in evaluated.items()}


def _told(name: str, facts: Facts) -> str:
    """How sure the score is, and how it came about."""
    ours, seeds = facts["pretrained"], len(facts["seeds"])
    spread = f", sd {100 * ours['score_sd']:.2f} over {seeds} seeds" if seeds > 1 else ", one seed"
    setting = ", ".join(f"{key} {value:g}" for key, value in facts["setting"].items())
    interval = f"95 % interval {100 * ours['low']:.2f} to {100 * ours['high']:.2f}"
    return f"{name}: {facts['metric']}, {interval}{spread}; {setting}"


def _blurb(evaluated: Mapping[str, Facts], tasks: Mapping[str, Task]) -> list[str]:
    means = {name: facts["pretrained"]["score_mean"] for name, facts in evaluated.items()}
    return ["", *blurb_line(blurb_score(means, tasks))] if any(tasks[name].group for name in means) else []
