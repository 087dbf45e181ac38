"""Scores of fine-tuning as a table in Markdown: for Dagster, MLflow and the model card."""

from collections.abc import Mapping
from typing import Any

from bert_pipeline.core.printable import plain
from bert_pipeline.store.artifact import Facts


def scores_markdown(facts: Facts) -> str:
    """The facts of `evaluations`: a row for each task, beside a general model, PubMedBERT and the best. Percent."""
    head = (
        *("task", "metric", "this model", "95 % interval", "seeds", "random weights"),
        *("general domain", "PubMedBERT", "best published", "of the test in the corpus"),
    )
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, measured in facts["tasks"].items():
        ours, published = measured["pretrained"], measured["published"]
        best = max(published, key=published.__getitem__, default=None)
        cells = (
            *(plain(name), measured["metric"], mean_and_sd(ours)),
            f"{100 * ours['low']:.2f} to {100 * ours['high']:.2f}",
            *(str(len(measured["seeds"])), mean_and_sd(measured["random_init"])),
            "; ".join(f"{100 * score:.2f} ({plain(model)})" for model, score in measured["measured"].items()),
            f"{100 * published['PubMedBERT']:.2f}" if "PubMedBERT" in published else "",
            f"{100 * published[best]:.2f} ({plain(best)})" if best else "",
            f"{100 * facts['contamination']['tasks'][name]['test']['share_held']:.2f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *blurb_line(facts.get("blurb"))])


def mean_and_sd(score: Facts) -> str:
    """In percent; a single seed has no standard deviation."""
    spread = f" ± {100 * score['score_sd']:.2f}" if score["score_sd"] is not None else ""
    return f"{100 * score['score_mean']:.2f}{spread}"


def blurb_line(found: Mapping[str, Any] | None) -> list[str]:
    """What `blurb_score` found, in words; None: no task is of BLURB."""
    if found is None:
        return []
    if found["score"] is not None:
        return [f"BLURB score: {100 * found['score']:.2f}", ""]
    if found["partial_score"] is None:
        return [f"No BLURB score: no group is whole; missing: {', '.join(found['missing'])}", ""]
    whole = f"{100 * found['partial_score']:.2f} over {', '.join(found['groups'])}"
    return [f"Partial BLURB score: {whole}; missing: {', '.join(found['missing'])}", ""]
