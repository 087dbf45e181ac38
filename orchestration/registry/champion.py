"""Compare a challenger with the champion on their tasks, and decide by rule whether it replaces the champion."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pipeline.core.tables import markdown_table
from bert_pipeline.evaluation.scoring.compare import compare_evaluations
from bert_pipeline.evaluation.scoring.significance import SIGNIFICANCE, Comparison, holm
from bert_pipeline.evaluation.tasks.task import TaskError
from bert_pipeline.stages import EVALUATION
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError
from orchestration.registry.ledger import PromotionConflict, confirmed_promotions, find_champion, holding
from orchestration.registry.promotion import promote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CODE_VERSION = "1"

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


@dataclass(frozen=True)
class Verdict:
    """The rule's decision about a challenger."""

    better: bool
    """Whether it should become champion."""
    reason: str
    champion: str | None
    """The version that it was compared with; None if there was no champion."""
    compared: Mapping[str, Comparison]


def judge(client: "MlflowClient", store: Path, name: str, version: str) -> Verdict:
    """Decide whether this version should be champion, without promoting it.

    If there was no champion before, it should. Otherwise it replaces the champion if all of these hold:

    1. It was evaluated on every task of the champion, with the same data, settings and code, and at least one common
       seed. A missing task could hide a regression.
    2. It is significantly worse on no task (p < 0.05 over examples, and the 95 % interval over examples and seeds
       excludes 0: scoring/significance.py). These tests are not corrected for the number of tasks, so that many tasks
       cannot hide one regression.
    3. It is significantly better on at least one task after Holm's correction of the p-values (Holm 1979,
       Scandinavian Journal of Statistics 6, 65-70). Without the correction, every second comparison of two equal
       models on 13 tasks would find one task better by chance. Dror et al. (2017, TACL 5, 471-486) recommend counting
       data sets in this way for NLP rather than testing the mean score, because tasks have no common scale.

    A person decides, not the rule, if the version's promotion was undone, or if the champion was deleted or its alias
    removed by hand. Raises PromotionError if there is no such model.
    """
    held = holding(confirmed_promotions(client, name))
    champion = find_champion(client, name)
    by_hand = f"remedy: bert-pipeline promote models:/{name}/{version}"

    def stays(reason: str, compared: Mapping[str, Comparison] | None = None) -> Verdict:
        return Verdict(False, reason, champion, compared or {})

    if champion == version:
        return stays("is the champion")
    undone = {entry.undoes for entry in held} - {None}
    for entry in held:
        if entry.version == version and entry.number in undone:
            return stays(f"its promotion {entry.number} was undone; {by_hand}")
    if champion is None:
        if held and held[-1].version is not None:
            return stays(
                f"the champion, version {held[-1].version}, was deleted or its alias removed by hand; {by_hand}, or "
                f"bert-pipeline promote --undo models:/{name}"
            )
        return Verdict(True, "there was no champion", champion, {})
    champion_version = version_or_none(client, name, champion)
    if champion_version is None:
        return stays(f"the alias points to version {champion}, which is deleted; {by_hand}")
    compared, faults = compare_with(champion_version, client.get_model_version(name, version).tags, store)
    if faults:
        return stays(f"no comparison with version {champion}: {'; '.join(faults)}; {by_hand}", compared)
    better = _better(compared)
    worse = [task for task, one in compared.items() if one.significant and one.difference < 0]
    reason = (
        f"compared with version {champion} on {len(compared)} task(s): significantly better on "
        f"{_listed(better, compared)}, worse on {_listed(worse, compared)}"
    )
    return Verdict(bool(better) and not worse, reason, champion, compared)


def challenge(client: "MlflowClient", store: Path, name: str, version: str) -> Verdict:
    """Promote the version if the rule says so, and store the reason as a tag of the version.

    If another version becomes champion meanwhile, compare with that one.
    """
    while True:
        verdict = judge(client, store, name, version)
        client.set_model_version_tag(name, version, "challenge", verdict.reason)
        if not verdict.better:
            return verdict
        try:
            promote(
                client,
                name,
                version,
                verdict.reason,
                verdict.champion,
                how="rule",
                comparison=rounded(verdict.compared),
            )
        except PromotionConflict as overtaken:
            log.warning("%s", overtaken)
        else:
            return verdict


def version_or_none(client: "MlflowClient", name: str, version: str) -> "ModelVersion | None":
    """The version, or None if it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def current_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version with the alias `champion`, or None if there is none or it was deleted."""
    if not client.search_registered_models(f"name = '{name}'"):
        return None
    version = find_champion(client, name)
    return version_or_none(client, name, version) if version else None


def compare_with(
    champion: "ModelVersion", ours: Mapping[str, str], store: Path
) -> tuple[dict[str, Comparison], list[str]]:
    """Return the comparison for each task of the champion, and the reasons why any task could not be compared.

    `ours` maps the kinds of the challenger's artifacts to their fingerprints, like the tags of a version.
    """
    found, faults = {}, []
    for kind, fingerprint in champion.tags.items():
        if not kind.startswith(EVALUATION):
            continue
        task = kind.removeprefix(EVALUATION)
        if kind not in ours:
            faults.append(f"the champion was evaluated on {task}, the challenger was not")
            continue
        try:
            pair = [artifact.load(Path(store, kind, key), kind) for key in (ours[kind], fingerprint)]
            _require_same_conditions(task, *pair)
            found[task] = compare_evaluations(pair[0].path, pair[1].path)
        except (ArtifactError, TaskError, ValueError, OSError) as error:
            faults.append(f"{task}: {error}")
    if not found and not faults:
        faults.append("the champion was evaluated on no task")
    return found, faults


def _require_same_conditions(task: str, ours: Artifact, theirs: Artifact) -> None:
    """Raise ValueError unless both evaluations differ only in the checkpoint and in some of their seeds."""

    def conditions(made: Artifact) -> dict[str, Any]:
        origin = made.record["origin"]
        section = {name: value for name, value in origin["section"].items() if name != "seeds"}
        inputs = {name: key for name, key in origin["inputs"].items() if name != "pretrained_checkpoint"}
        return section | {f"input {name}": key for name, key in inputs.items()} | {"code": origin["code_version"]}

    one, other = conditions(ours), conditions(theirs)
    if differing := sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)):
        raise ValueError(f"evaluated under other conditions ({', '.join(differing)})")
    if not set(ours.facts["seeds"]) & set(theirs.facts["seeds"]):
        raise ValueError(f"no seed in common ({ours.facts['seeds']} and {theirs.facts['seeds']})")


def _better(compared: Mapping[str, Comparison]) -> list[str]:
    """Return the tasks on which the challenger is significantly better after Holm's correction."""
    corrected = holm({task: one.p_value for task, one in compared.items()})
    return [task for task, one in compared.items() if one.low > 0 and corrected[task] < SIGNIFICANCE]


def _listed(tasks: list[str], compared: Mapping[str, Comparison]) -> str:
    return ", ".join(f"{task} ({100 * compared[task].difference:+.2f})" for task in tasks) or "none"


def rounded(compared: Mapping[str, Comparison]) -> dict[str, dict[str, float]]:
    """The comparisons as rounded JSON values, for the ledger."""
    return {task: {name: round(value, 5) for name, value in asdict(one).items()} for task, one in compared.items()}


HEAD = ("task", "difference of the mean scores", "95 % interval", "p", "")
NOTE = "Interval over examples and seeds, p over examples (evaluation/scoring/significance.py)."


def table(compared: Mapping[str, Comparison]) -> str:
    """The comparisons as a Markdown table."""
    return f"{markdown_table(HEAD, _rows(compared))}\n{NOTE}"


def section(champion: "ModelVersion", compared: Mapping[str, Comparison]) -> str:
    """The comparison as a section of the model card: a list, like the rest of the card."""
    lines = [
        f"- **{task}**: {difference} points, 95 % interval {interval}, p = {p_value}: {verdict}\n"
        for task, difference, interval, p_value, verdict in _rows(compared)
    ]
    return f"## Beside the champion (version {champion.version})\n\n{''.join(lines)}\n{NOTE}\n"


def _rows(compared: Mapping[str, Comparison]) -> Iterator[tuple[str, str, str, str, str]]:
    for task, found in compared.items():
        verdict = ("better" if found.difference > 0 else "worse") if found.significant else "no clear difference"
        interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        yield task, f"{100 * found.difference:+.2f}", interval, f"{found.p_value:.4f}", verdict
