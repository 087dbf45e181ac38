"""The challenger beside the champion: the version of the model that bears this alias, on the tasks that both ran."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bert_pipeline.artifact import Artifact
from bert_pipeline.evaluation.compare import compare_evaluations
from bert_pipeline.evaluation.significance import Comparison
from bert_pipeline.stages import EVALUATION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


def find_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:  # no such model yet, or none of its versions bears the alias
        return None


def compare_with(champion: "ModelVersion", artifacts: Mapping[str, Artifact]) -> dict[str, Comparison]:
    """By task; without those that the champion did not run, or whose predictions no longer stand in the store."""
    found = {}
    for kind, ours in artifacts.items():
        fingerprint = champion.tags.get(kind)
        if not kind.startswith(EVALUATION) or fingerprint is None:
            continue
        theirs = ours.path.with_name(fingerprint)
        if (theirs / "scores.json").is_file():
            found[kind.removeprefix(EVALUATION)] = compare_evaluations(ours.path, theirs)
        else:
            log.warning("%s of the champion (version %s) is not at %s any more", kind, champion.version, theirs)
    return found


def section(champion: "ModelVersion", compared: Mapping[str, Comparison]) -> str:
    """For the model card."""
    lines = [
        f"## Beside the champion (version {champion.version})",
        "",
        "| task | difference of the mean scores | 95 % interval | p | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, found in compared.items():
        verdict = ("better" if found.difference > 0 else "worse") if found.significant else "no clear difference"
        interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        lines.append(f"| {task} | {100 * found.difference:+.2f} | {interval} | {found.p_value:.4f} | {verdict} |")
    note = "Interval over examples and seeds, p over examples (bert_pipeline/evaluation/significance.py)."
    return "\n".join([*lines, "", note, ""])
