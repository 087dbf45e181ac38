"""Scores beside the published ones, as a table for people, and the BLURB score of what was run."""

from collections.abc import Mapping

from bert_pipeline.artifact import Facts
from bert_pipeline.evaluation.blurb import BlurbScore, blurb_score
from bert_pipeline.evaluation.tasks import Task

OURS = {"pretrained": "this model", "random_init": "the same, random weights"}


def show_scores(evaluated: Mapping[str, Facts], tasks: Mapping[str, Task]) -> str:
    """`evaluated`: the facts of each task by name; `tasks`: all that are known. Test scores in percent."""
    rows = {shown: _means(evaluated, encoder) for encoder, shown in OURS.items()}
    others = dict.fromkeys(model for facts in evaluated.values() for model in facts["published"])
    rows |= {
        model: {name: facts["published"].get(model) for name, facts in evaluated.items()} for model in others
    }
    width = max(map(len, (*rows, *OURS.values())))
    columns = {name: max(8, len(name)) for name in evaluated}
    lines = [" " * width + "".join(f"  {name:>{columns[name]}}" for name in evaluated)]
    for model, scores in rows.items():
        cells = {name: "" if score is None else f"{100 * score:.2f}" for name, score in scores.items()}
        if any(cells.values()):
            lines.append(f"{model:<{width}}" + "".join(f"  {cells[name]:>{columns[name]}}" for name in evaluated))
    return "\n".join([*lines, "", *(_told(name, facts) for name, facts in evaluated.items()), *_blurb(evaluated, tasks)])


def _means(evaluated: Mapping[str, Facts], encoder: str) -> dict[str, float | None]:
    return {name: facts.get(encoder, {}).get("score_mean") for name, facts in evaluated.items()}


def _told(name: str, facts: Facts) -> str:
    """How sure the score is, and how it came about."""
    ours, seeds = facts["pretrained"], len(facts["seeds"])
    spread = f", sd {100 * ours['score_sd']:.2f} over {seeds} seeds" if seeds > 1 else ", one seed"
    setting = ", ".join(f"{key} {value:g}" for key, value in facts["setting"].items())
    return (
        f"{name}: {facts['metric']}, 95 % interval {100 * ours['low']:.2f} to {100 * ours['high']:.2f}{spread}; {setting}"
    )


def _blurb(evaluated: Mapping[str, Facts], tasks: Mapping[str, Task]) -> list[str]:
    means = {name: facts["pretrained"]["score_mean"] for name, facts in evaluated.items()}
    return ["", *_blurb_line(blurb_score(means, tasks))] if any(tasks[name].group for name in means) else []


def scores_markdown(facts: Facts) -> str:
    """The facts of `evaluations`: a row for each task; beside PubMedBERT and the best that is published. Percent."""
    head = ("task", "metric", "this model", "95 % interval", "seeds", "random weights", "PubMedBERT", "best published")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, measured in facts["tasks"].items():
        ours, published = measured["pretrained"], measured["published"]
        best = max(published, key=published.__getitem__, default=None)
        cells = (
            *(name, measured["metric"], mean_and_sd(ours), f"{100 * ours['low']:.2f} to {100 * ours['high']:.2f}"),
            *(str(len(measured["seeds"])), mean_and_sd(measured["random_init"])),
            f"{100 * published['PubMedBERT']:.2f}" if "PubMedBERT" in published else "",
            f"{100 * published[best]:.2f} ({best})" if best else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_blurb_line(facts.get("blurb"))])


def mean_and_sd(score: Facts) -> str:
    """In percent; a single seed has no standard deviation."""
    spread = f" ± {100 * score['score_sd']:.2f}" if score["score_sd"] is not None else ""
    return f"{100 * score['score_mean']:.2f}{spread}"


def _blurb_line(found: BlurbScore | None) -> list[str]:
    if found is None:
        return []
    if found["score"] is not None:
        return [f"BLURB score: {100 * found['score']:.2f}", ""]
    if found["partial_score"] is None:
        return [f"No BLURB score: no group is whole; missing: {', '.join(found['missing'])}", ""]
    whole = f"{100 * found['partial_score']:.2f} over {', '.join(found['groups'])}"
    return [f"Partial BLURB score: {whole}; missing: {', '.join(found['missing'])}", ""]
