"""Several models on the same tasks: one table, paired tests between them, and a picture.

<out>/<model>/<task>/                  the evaluation of each model (evaluate.py)
<out>/comparison.md, comparison.png    the scores as tables and as a picture
<out>/comparison.json                  the paired tests
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from bert_pipeline.core.files import write_whole
from bert_pipeline.core.printable import plain
from bert_pipeline.core.tables import Table
from bert_pipeline.evaluation.scoring.compare import compare_evaluations
from bert_pipeline.evaluation.scoring.significance import Comparison
from bert_pipeline.report import pictures
from bert_pipeline.report.score_table import mean_and_sd
from bert_pipeline.store.artifact import Facts

Evaluated = Mapping[str, Mapping[str, Facts]]
"""Facts of each task by model and task."""
Compared = dict[tuple[str, str, str], Comparison]
"""The test of two models on a task, by (task, model, other model)."""


def compare_models(evaluated: Evaluated, out: Path) -> Compared:
    """Compare every two models on every task, from their predictions in `out`, and write the files named above."""
    tasks = next(iter(evaluated.values()))
    compared = {
        (task, one, other): compare_evaluations(out / one / task, out / other / task)
        for task in tasks
        for one, other in combinations(evaluated, 2)
    }
    tables = (score_table(evaluated), comparison_table(compared))
    safe = [Table(each.head, [[plain(cell) for cell in row] for row in each.rows]) for each in tables]
    write_whole(out / "comparison.md", f"{safe[0].markdown()}\n{safe[1].markdown()}\n{CAPTION}\n")
    write_whole(out / "comparison.json", json.dumps(as_json(compared), indent=2) + "\n")
    (out / "comparison.png").write_bytes(pictures.model_scores(evaluated))
    return compared


CAPTION = (
    "Differences in percentage points. p: two-sided, over examples, not corrected for the number of comparisons. "
    "Significant: p < 0.05, and the interval over examples and seeds excludes 0."
)


def score_table(evaluated: Evaluated) -> Table:
    """Test scores in percent, with the standard deviation over seeds: a row per model, a column per task."""
    head = ("model", *next(iter(evaluated.values())))
    rows = [
        (model, *(mean_and_sd(facts["pretrained"]) for facts in tasks.values())) for model, tasks in evaluated.items()
    ]
    return Table(head, rows)


def comparison_table(compared: Compared) -> Table:
    """A row for each task and two models."""
    head = ("task", "model", "compared with", "difference", "95 % interval", "p", "significant")
    rows = [
        (
            *(task, one, other, f"{100 * found.difference:+.2f}"),
            f"{100 * found.low:+.2f} to {100 * found.high:+.2f}",
            f"{found.p_value:.4f}",
            "yes" if found.significant else "no",
        )
        for (task, one, other), found in compared.items()
    ]
    return Table(head, rows)


def as_json(compared: Compared) -> list[dict[str, Any]]:
    return [
        {"task": task, "model": one, "compared_with": other, **asdict(found), "significant": found.significant}
        for (task, one, other), found in compared.items()
    ]
