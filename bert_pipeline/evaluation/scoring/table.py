"""Scores of evaluated tasks as text: beside published models, and the BLURB score."""

from collections.abc import Mapping

from bert_pipeline.core.tables import Table
from bert_pipeline.evaluation.scoring.blurb import blurb_score
from bert_pipeline.evaluation.tasks.task import Task
from bert_pipeline.report.score_table import blurb_line
from bert_pipeline.store.artifact import Facts

OURS = {"pretrained": "this model", "random_init": "same architecture, random weights"}


def show_scores(evaluated: Mapping[str, Facts], tasks: Mapping[str, Task]) -> str:
    """Format `evaluated`, the facts of each task by name, as text. `tasks`: all known tasks, for the BLURB score."""
    return "\n".join((model_scores(evaluated).text(), how_measured(evaluated).text(), *_blurb(evaluated, tasks)))


def model_scores(evaluated: Mapping[str, Facts]) -> Table:
    """Test scores in percent: a row per model, a column per task. Models without a score are left out."""
    rows = {shown: _means(evaluated, encoder) for encoder, shown in OURS.items()}
    theirs = {name: facts["measured"] | facts["published"] for name, facts in evaluated.items()}
    others = dict.fromkeys(model for scores in theirs.values() for model in scores)
    rows |= {model: {name: scores.get(model) for name, scores in theirs.items()} for model in others}
    cells = {
        model: ["" if score is None else f"{100 * score:.2f}" for score in scores.values()]
        for model, scores in rows.items()
    }
    return Table(("model", *evaluated), [(model, *row) for model, row in cells.items() if any(row)])


def how_measured(evaluated: Mapping[str, Facts]) -> Table:
    """Metric, interval, standard deviation and setting behind each score of this model. Percent."""
    head = ("task", "metric", "95 % interval", "seeds", "standard deviation", "setting")
    rows = []
    for name, facts in evaluated.items():
        ours = facts["pretrained"]
        interval = f"{100 * ours['low']:.2f} to {100 * ours['high']:.2f}"
        deviation = "" if ours["score_sd"] is None else f"{100 * ours['score_sd']:.2f}"
        setting = ", ".join(f"{key} {value:g}" for key, value in facts["setting"].items())
        rows.append((name, facts["metric"], interval, str(len(facts["seeds"])), deviation, setting))
    return Table(head, rows)


def _means(evaluated: Mapping[str, Facts], encoder: str) -> dict[str, float | None]:
    return {name: facts.get(encoder, {}).get("score_mean") for name, facts in evaluated.items()}


def _blurb(evaluated: Mapping[str, Facts], tasks: Mapping[str, Task]) -> list[str]:
    means = {name: facts["pretrained"]["score_mean"] for name, facts in evaluated.items()}
    return blurb_line(blurb_score(means, tasks)) if any(tasks[name].group for name in means) else []
