"""The page of a study, for a reader who sees nothing else: the question, what was done, what follows, how sure it is.

study.html                             one file for a browser, pictures embedded
study.md, scores.png, losses.png       the same for Dagster, MLflow and Markdown
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_pipeline.core.tables import Table
from bert_pipeline.evaluation.scoring.multibootstrap import Standing
from bert_pipeline.report import pages, pictures
from bert_pipeline.report.pages import PageSection
from bert_pipeline.report.pictures import Interval
from bert_pipeline.studies.evidence import Evidence
from bert_pipeline.studies.results import Results
from bert_pipeline.studies.words import answer, limits, p_text
from bert_pipeline.study import Study

PAGE, TEXT = "study.html", "study.md"
SCORES, LOSSES = "Scores and differences with 95 % intervals", "Loss per word, a line for each seed"
PICTURES = {SCORES: "scores.png", LOSSES: "losses.png"}
"""The file of each picture by its caption."""

METHOD = (
    "Each pretraining seed gives one model of each arm, and each model is fine-tuned with every fine-tuning seed. A "
    "score is the mean over all of these runs on the test set. The intervals are multi-bootstrap intervals (Sellam et "
    "al. 2021, arXiv 2106.16163): 10,000 times, pretraining seeds and test examples are drawn with replacement, the "
    "same for all arms. The p-values are those of Student's t test with the variance over pretraining seeds and over "
    "examples, corrected for the number of arms (Holm 1979). A difference counts as shown if its interval excludes 0 "
    "and its corrected p-value is below 0.05. The predictions of every run are kept in the artifacts, so all numbers "
    "can be computed again."
)
RULES = {
    "steps": "the same number of optimizer steps",
    "tokens": "the same number of tokens (steps * batch * length)",
    "minutes": "the same number of minutes",
}


def write_page(out: Path, study: Study, results: Results, evidence: Evidence) -> None:
    drawn = {SCORES: _scores_picture(results), LOSSES: _losses_picture(results)}
    for caption, png in drawn.items():
        (out / PICTURES[caption]).write_bytes(png)
    sections = list(_sections(study, results, evidence, drawn))
    (out / PAGE).write_text(pages.html(f"Study {study.name}", _glance(study, results), sections), encoding="utf-8")
    text = pages.markdown(f"Study {study.name}", sections, files=PICTURES)
    (out / TEXT).write_text(text, encoding="utf-8")


def _glance(study: Study, results: Results) -> dict[str, str]:
    finetuning = {len(seeds) for seeds in results.finetuning_seeds.values()}
    return {
        "arms": str(len(study.compared_arms)),
        "pretraining seeds": str(len(study.pretraining_seeds)),
        "fine-tuning seeds": ", ".join(map(str, sorted(finetuning))),
        "tasks": str(len(results.tasks)),
    }


def _sections(study: Study, results: Results, evidence: Evidence, drawn: Mapping[str, bytes]) -> Iterator[PageSection]:
    yield PageSection("Question", study.question)
    yield PageSection("What follows", points=list(answer(study, results)))
    yield _done(study, results)
    for number, (name, standings) in enumerate(results.standings.items()):
        table = scores_table(standings)
        metric = f": {results.tasks[name].metric}" if name in results.tasks else ""
        yield PageSection(
            f"Scores, {name}",
            f"In percent{metric}. The standard deviations are over pretraining seeds (of the mean over fine-tuning "
            f"seeds) and over the fine-tuning seeds of one model. The differences are to {study.reference}.",
            head=tuple(table.head),
            rows=[tuple(row) for row in table.rows],
            pictures={} if number else {SCORES: drawn[SCORES]},
        )
    yield _finetuning(results)
    yield _losses(results, drawn[LOSSES])
    yield PageSection("What cannot be concluded", points=list(limits(study, results)))
    models = [
        (f"{arm}, seed {seed}", study.recipe_name(arm, seed), trained.checkpoint.fingerprint)
        for (arm, seed), trained in evidence.items()
    ]
    yield PageSection("How it was computed", METHOD, head=("model", "recipe", "pretrained_checkpoint"), rows=models)


def _done(study: Study, results: Results) -> PageSection:
    seeds = ", ".join(map(str, study.pretraining_seeds))
    tuned = "; ".join(f"{task} with {_counted(len(each), 'seed')}" for task, each in results.finetuning_seeds.items())
    total = ", counting the first model of an arm that continues one" if study.with_first_model else ""
    first_models = [arm for arm in study.arms if not arm.compared]
    text = (
        f"Every arm changes recipe {study.base} (or the recipe that it names){_changed(study)}. It was pretrained with "
        f"the seeds {seeds} and fine-tuned on {tuned}. The rule: {RULES[study.equal]} for every arm{total}. The "
        "columns show what was measured, as means over the seeds."
    )
    rows = []
    for arm in study.arms:
        spent = results.spent.get(arm.name)
        measured = (f"{spent.steps:,.0f}", f"{spent.tokens:,.0f}", f"{spent.minutes:.3g}") if spent else ("", "", "")
        rows.append((arm.name, arm.description, changes_text(study, arm.name), *measured))
    text += "".join(f" {arm.name} is not compared: it is the first model of other arms." for arm in first_models)
    head = ("arm", "description", "what differs", "steps", "tokens", "minutes")
    return PageSection("What was done", text, head=head, rows=rows)


def _changed(study: Study) -> str:
    listed = "; ".join(f"{key} = {value}" for key, value in _flat(study.changes))
    return f", all of them with {listed}" if listed else ""


def changes_text(study: Study, name: str) -> str:
    """What an arm changes, as keys and values."""
    arm = study.arm(name)
    parts = [f"recipe {arm.recipe}"] if arm.recipe else []
    parts += [f"continues {arm.continues}"] if arm.continues else []
    return "; ".join([*parts, *(f"{key} = {value}" for key, value in _flat(arm.changes))]) or "nothing"


def _flat(changes: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def scores_table(standings: Mapping[str, Standing]) -> Table:
    head = (
        *("arm", "score", "95 % interval", "sd, pretraining seeds", "sd, fine-tuning seeds"),
        *("difference", "95 % interval of it", "p", "corrected p", "shown"),
    )
    rows = []
    for arm, each in standings.items():
        found = each.to_reference
        compared: tuple[str, ...] = ("reference", "", "", "", "")
        if found:
            p_values = ["" if p is None else p_text(p) for p in (found.p_value, found.corrected_p_value)]
            interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
            compared = (f"{100 * found.difference:+.2f}", interval, *p_values, "yes" if found.shown else "no")
        deviations = ["" if sd is None else f"{100 * sd:.2f}" for sd in (each.pretraining_sd, each.finetuning_sd)]
        rows.append(
            (arm, f"{100 * each.mean:.2f}", f"{100 * each.low:.2f} to {100 * each.high:.2f}", *deviations, *compared)
        )
    return Table(head, rows)


def _finetuning(results: Results) -> PageSection:
    """What was tried and what was chosen; where the seeds of an arm chose alike, the value stands once."""
    rows = []
    for task, tried in results.tried.items():
        rows.append((task, "tried", *(", ".join(f"{value:g}" for value in values) for values in tried)))
        for arm, chosen in results.chosen[task].items():
            alike = ((values[:1] if len(set(values)) == 1 else values) for values in chosen)
            rows.append((task, arm, *(", ".join(f"{value:g}" for value in values) for values in alike)))
    text = (
        "Each model was fine-tuned in every setting tried, with the first fine-tuning seed. The setting with the best "
        "score on dev then ran with all seeds; the test set had no part in the choice. Several values in the row of an "
        "arm are those of its pretraining seeds, in their order."
    )
    head = ("task", "arm", "learning rate", "batch size", "epochs")
    return PageSection("Fine-tuning settings", text, head=head, rows=rows)


def _losses(results: Results, picture: bytes) -> PageSection:
    rows = []
    for arm, curves in results.curves.items():
        begin, end = ([curve.losses[at] for curve in curves] for at in (0, -1))
        rows.append(
            (arm, f"{sum(begin) / len(begin):.3f}", f"{sum(end) / len(end):.3f}", f"{min(end):.3f}", f"{max(end):.3f}")
        )
    text = (
        "The loss of masked language modeling on held-out text in nats per word: the loss of a masked piece times the "
        "pieces per word, because vocabularies may differ."
    )
    head = ("arm", "before training", "after, mean over seeds", "lowest", "highest")
    return PageSection("Held-out loss", text, head=head, rows=rows, pictures={LOSSES: picture})


def _scores_picture(results: Results) -> bytes:
    scores = {
        task: {arm: Interval(each.mean, each.low, each.high) for arm, each in standings.items()}
        for task, standings in results.standings.items()
    }
    differences = {
        task: {
            arm: Interval(each.to_reference.difference, each.to_reference.low, each.to_reference.high)
            for arm, each in standings.items()
            if each.to_reference
        }
        for task, standings in results.standings.items()
    }
    return pictures.arm_scores(scores, differences)


def _losses_picture(results: Results) -> bytes:
    return pictures.losses_by_arm(
        {arm: [(curve.steps, curve.losses) for curve in curves] for arm, curves in results.curves.items()}
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
