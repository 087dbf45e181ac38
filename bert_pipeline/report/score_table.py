"""Fine-tuning scores as Markdown: a table for Dagster and files, a list for the model card."""

from collections.abc import Iterator, Mapping
from typing import Any

from bert_pipeline.core.printable import plain
from bert_pipeline.core.tables import markdown_table
from bert_pipeline.store.artifact import Facts

HEAD = (
    *("task", "metric", "this model", "95 % interval", "seeds", "random weights"),
    *("general domain", "PubMedBERT", "best published", "of the test in the corpus"),
)


def scores_markdown(facts: Facts) -> str:
    """A row for each task in the facts of `evaluations`, with published scores for comparison. Values in percent."""
    return "\n".join([markdown_table(HEAD, _rows(facts)), *blurb_line(facts.get("blurb"))])


def scores_list(facts: Facts) -> str:
    """The same as a list, without empty cells: MLflow shows tables without space between their columns."""
    lines = []
    for task, metric, ours, *others in _rows(facts):
        lines.append(f"- **{task}**, {metric}: **{ours}**")
        lines += [f"    - {heading}: {cell}" for heading, cell in zip(HEAD[3:], others, strict=True) if cell]
    return "\n".join([*lines, "", *blurb_line(facts.get("blurb"))])


def _rows(facts: Facts) -> Iterator[tuple[str, ...]]:
    """The cells of each task; a score that was not measured or published is empty."""
    for name, measured in facts["tasks"].items():
        ours, published = measured["pretrained"], measured["published"]
        best = max(published, key=published.__getitem__, default=None)
        yield (
            *(plain(name), measured["metric"], mean_and_sd(ours)),
            f"{100 * ours['low']:.2f} to {100 * ours['high']:.2f}",
            str(len(measured["seeds"])),
            mean_and_sd(measured["random_init"]) if "random_init" in measured else "",
            "; ".join(f"{100 * score:.2f} ({plain(model)})" for model, score in measured["measured"].items()),
            f"{100 * published['PubMedBERT']:.2f}" if "PubMedBERT" in published else "",
            f"{100 * published[best]:.2f} ({plain(best)})" if best else "",
            f"{100 * facts['contamination']['tasks'][name]['test']['share_held']:.2f} %",
        )


def mean_and_sd(score: Facts) -> str:
    """Mean and standard deviation over seeds, in percent; a single seed has no standard deviation."""
    spread = f" ± {100 * score['score_sd']:.2f}" if score["score_sd"] is not None else ""
    return f"{100 * score['score_mean']:.2f}{spread}"


def blurb_line(found: Mapping[str, Any] | None) -> list[str]:
    """Markdown lines for the result of `blurb_score`; none if `found` is None, because no task belongs to BLURB."""
    if found is None:
        return []
    if found["score"] is not None:
        return [f"BLURB score: {100 * found['score']:.2f}", ""]
    if found["partial_score"] is None:
        return [f"No BLURB score: no group is whole; missing: {', '.join(found['missing'])}", ""]
    whole = f"{100 * found['partial_score']:.2f} over {', '.join(found['groups'])}"
    return [f"Partial BLURB score: {whole}; missing: {', '.join(found['missing'])}", ""]
