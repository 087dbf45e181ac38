"""The challenger beside the champion, on the tasks of both: what differs, and whether that makes it champion."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pipeline.evaluation.scoring.compare import compare_evaluations
from bert_pipeline.evaluation.scoring.significance import Comparison
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
SIGNIFICANCE = 0.05

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a challenger."""

    better: bool
    """It should be champion."""
    reason: str
    champion: str | None
    """The version that it was compared with."""
    compared: Mapping[str, Comparison]


def judge(client: "MlflowClient", store: Path, name: str, version: str) -> Verdict:
    """Should this version be champion?

    It should where there was no champion before it. Where there is one, all of these must hold:

    1. Every task of the champion was run with the challenger: the same data, settings and code, a seed in common.
       Of a task that is missing nobody knows whether it became worse.
    2. On no task is it significantly worse (p < 0.05 over examples, and the 95 % interval over examples and seeds
       leaves out 0: significance.py). Here each task counts by itself, without correction: a loss shall not hide
       behind the number of tasks.
    3. On at least one task it is significantly better, after Holm's correction of the p-values (Holm 1979,
       Scandinavian Journal of Statistics 6, 65-70): of 13 tasks one is better by chance in every other comparison
       of equals. Dror et al. (2017, TACL 5, 471-486) recommend counting data sets in this way for NLP, where scores of
       different tasks have no common scale, over a test of their mean.

    What was champion once and taken back is not promoted by rule again, nor anything where the champion was deleted or
    its alias taken away by hand: both are left to a person. Raises PromotionError without such a model.
    """
    held = holding(confirmed_promotions(client, name))
    champion = find_champion(client, name)
    by_hand = f"remedy: bert-pipeline promote models:/{name}/{version}"

    def stays(reason: str, compared: Mapping[str, Comparison] | None = None) -> Verdict:
        return Verdict(False, reason, champion, compared or {})

    if champion == version:
        return stays("is the champion")
    taken_back = {entry.undoes for entry in held} - {None}
    for entry in held:
        if entry.version == version and entry.number in taken_back:
            return stays(f"its promotion {entry.number} was taken back; {by_hand}")
    if champion is None:
        if held and held[-1].version is not None:
            return stays(
                f"the champion, version {held[-1].version}, was deleted or its alias taken away by hand; {by_hand}, or "
                f"bert-pipeline promote --undo models:/{name}"
            )
        return Verdict(True, "there was no champion", champion, {})
    theirs = version_or_none(client, name, champion)
    if theirs is None:
        return stays(f"the alias points to version {champion}, which is deleted; {by_hand}")
    compared, faults = compare_with(theirs, client.get_model_version(name, version).tags, store)
    if faults:
        return stays(f"no comparison with version {champion}: {'; '.join(faults)}; {by_hand}", compared)
    better, worse = (
        _better(compared),
        [task for task, one in compared.items() if one.significant and one.difference < 0],
    )
    told = (
        f"beside version {champion}, of {len(compared)} tasks significantly better on {_listed(better, compared)}, "
        f"worse on {_listed(worse, compared)}"
    )
    return Verdict(bool(better) and not worse, told, champion, compared)


def challenge(client: "MlflowClient", store: Path, name: str, version: str) -> Verdict:
    """Let the rule decide, and promote where it says so. The verdict is written on the version, too.

    Where another version becomes champion in the meantime, the challenger is compared with that one.
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
    """None where it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def standing_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that bears the alias, if there is one that was not deleted."""
    if not client.search_registered_models(f"name = '{name}'"):
        return None
    version = find_champion(client, name)
    return version_or_none(client, name, version) if version else None


def compare_with(
    champion: "ModelVersion", ours: Mapping[str, str], store: Path
) -> tuple[dict[str, Comparison], list[str]]:
    """The champion's tasks, each with the difference; and why the others could not be compared.

    `ours` maps the kinds of the challenger's artifacts to their fingerprints, as the tags of a version do.
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
    """Apart from the checkpoint and the number of seeds, both evaluations must be the same."""

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
    """The tasks on which the challenger is significantly better after Holm's correction."""
    corrected, at_least = {}, 0.0
    for rank, task in enumerate(sorted(compared, key=lambda task: compared[task].p_value)):
        at_least = max(at_least, (len(compared) - rank) * compared[task].p_value)
        corrected[task] = at_least
    return [task for task, one in compared.items() if one.low > 0 and corrected[task] < SIGNIFICANCE]


def _listed(tasks: list[str], compared: Mapping[str, Comparison]) -> str:
    return ", ".join(f"{task} ({100 * compared[task].difference:+.2f})" for task in tasks) or "none"


def rounded(compared: Mapping[str, Comparison]) -> dict[str, dict[str, float]]:
    """For records that people read."""
    return {task: {name: round(value, 5) for name, value in asdict(one).items()} for task, one in compared.items()}


def table(compared: Mapping[str, Comparison]) -> str:
    """Markdown."""
    lines = [
        "| task | difference of the mean scores | 95 % interval | p | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, found in compared.items():
        verdict = ("better" if found.difference > 0 else "worse") if found.significant else "no clear difference"
        interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        lines.append(f"| {task} | {100 * found.difference:+.2f} | {interval} | {found.p_value:.4f} | {verdict} |")
    return "\n".join(
        [
            *lines,
            "",
            "Interval over examples and seeds, p over examples (evaluation/scoring/significance.py).",
        ]
    )


def section(champion: "ModelVersion", compared: Mapping[str, Comparison]) -> str:
    """For the model card."""
    return f"## Beside the champion (version {champion.version})\n\n{table(compared)}\n"
