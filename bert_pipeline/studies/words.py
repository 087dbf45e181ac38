"""What follows from a study, and what does not, in sentences."""

from collections.abc import Iterator

from bert_pipeline.evaluation.scoring.multibootstrap import Difference
from bert_pipeline.studies.results import ALL_TASKS, Results
from bert_pipeline.study import Study

COVERAGE = {2: 50, 3: 75, 4: 80, 5: 84, 6: 86, 8: 89, 10: 90, 15: 92}
"""Percent of the 95 % multi-bootstrap intervals that contain the true difference, by number of pretraining seeds, where
the variance over seeds dominates. Simulated: normal differences, 20,000 studies for each number."""
HELD_FRACTION = 0.01
"""A corpus that holds a larger share of a test set is named."""
LONGER = 1.1
"""Arms whose measured times differ by more than this factor are named."""


def answer(study: Study, results: Results) -> Iterator[str]:
    """A sentence for each arm but the reference, on the headline score."""
    standings, reference = results.headline, study.reference
    name, of_reference = next(iter(results.standings)), results.headline[reference]
    what = f"{results.tasks[name].metric} on {name}" if name in results.tasks else f"the {name}"
    yield f"{reference}, the reference, scores {_percent(of_reference.mean)} % ({what})."
    for arm, standing in standings.items():
        if standing.to_reference:
            rule = f" It does not follow the rule of equal {study.equal}." if study.arm(arm).exempt else ""
            yield f"{arm} scores {_percent(standing.mean)} %: {_compared(standing.to_reference)}{rule}"


def _compared(found: Difference) -> str:
    interval = f"95 % interval {_points(found.low)} to {_points(found.high)}"
    p_value = "" if found.corrected_p_value is None else f", corrected p = {p_text(found.corrected_p_value)}"
    verdict = (
        f"This arm is {'better' if found.difference > 0 else 'worse'} than the reference."
        if found.shown
        else "No difference is shown."
    )
    return f"{_points(found.difference)} points from the reference ({interval}{p_value}). {verdict}"


def limits(study: Study, results: Results) -> Iterator[str]:
    """What cannot be concluded, one sentence or two for each reason."""
    yield from _of_seeds(study)
    if any(standing.to_reference and not standing.to_reference.shown for standing in results.headline.values()):
        yield (
            "Where no difference is shown, the arms are not shown to be equal: every difference inside the interval is "
            "compatible with the runs."
        )
    if len(results.tasks) > 1:
        yield (
            f"The p-values are corrected for the number of arms, not for the number of tasks. The question is answered "
            f"by the {ALL_TASKS}; among single tasks, some differences look clear by chance."
        )
    else:
        yield f"There is one task, {next(iter(results.tasks))}. Other tasks may order the arms differently."
    if generated := [name for name, task in results.tasks.items() if task.generated]:
        yield f"The text of {', '.join(generated)} is generated. Nothing follows for real text."
    yield from _of_fairness(study, results)
    if len(set(results.corpora.values())) > 1:
        yield (
            "The arms have different corpora, so their held-out texts differ, too: their losses per word cannot be "
            "compared with each other."
        )
    for task in results.tasks:
        shares = {arm: by_task.get(task, 0.0) for arm, by_task in results.held.items()}
        if any(share > HELD_FRACTION for share in shares.values()):
            listed = ", ".join(f"{share:.1%} ({arm})" for arm, share in shares.items())
            yield (
                f"The corpora hold test examples of {task}: {listed}. Part of these scores may be memory; "
                "corpus.exclude_tasks removes such documents."
            )


def _of_seeds(study: Study) -> Iterator[str]:
    seeds = len(study.pretraining_seeds)
    if seeds == 1:
        yield (
            "Each arm was pretrained with one seed. The intervals cover other fine-tuning seeds and other examples, "
            "not other pretraining seeds, which may order the arms differently. There are no p-values, and no "
            "difference counts as shown."
        )
        return
    known = max(number for number in COVERAGE if number <= seeds)
    if seeds <= max(COVERAGE):
        yield (
            f"Each arm was pretrained with {seeds} seeds. The intervals are too narrow for so few: where the variance "
            f"over seeds dominates, only about {COVERAGE[known]} % of such 95 % intervals contain the true difference. "
            "The p-values allow for the number of seeds."
        )


def _of_fairness(study: Study, results: Results) -> Iterator[str]:
    for arm in study.compared_arms:
        if arm.exempt:
            yield f"{arm.name} does not follow the rule of equal {study.equal}: {arm.exempt}"
    minutes = [results.spent[arm.name].minutes for arm in study.compared_arms if not arm.exempt]
    if study.equal != "minutes" and max(minutes) > LONGER * min(minutes):
        yield (
            f"The arms had equal {study.equal}, not equal time: their pretraining took between {min(minutes):.3g} and "
            f"{max(minutes):.3g} minutes."
        )
    yield (
        "The arms were compared at the end of one schedule, with the pretraining settings of their recipes. A longer "
        "or shorter schedule, another size of model or pretraining settings tuned for each arm may order them "
        "differently."
    )
    yield (
        "No model was fine-tuned from random weights: the study compares its arms with each other, and does not show "
        "what pretraining itself contributes."
    )


def p_text(p_value: float) -> str:
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}" if p_value < 0.1 else f"{p_value:.2f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"
