"""Trace what a registered model was built from: version, evaluations, checkpoint, datasets, tokenizer, text.

The chain comes from records: the version's tags name artifacts by kind and fingerprint, and the record of each artifact
names its inputs. Every artifact is opened and verified on the way. A broken link (an artifact removed by hand, a run
deleted in MLflow, an artifact on another machine) is reported as a fault, and the rest of the chain is still described.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_pipeline.core.files import cached_digest
from bert_pipeline.lineage import sources_in_store
from bert_pipeline.report.score_table import mean_and_sd
from bert_pipeline.reproduction import PROOF, SOURCES, ReproductionError, recorded_recipe, write_reproduction
from bert_pipeline.stages import EVALUATION, STAGES, check_artifact_files
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, ArtifactError
from orchestration.registry.task_models import KIND as TASK_MODEL
from orchestration.registry.task_models import PRETRAINED, TASK, task_model_directory
from orchestration.registry.versions import RECIPE_DESCRIPTION, faults_of_files, faults_of_run
from orchestration.tracking.mlflow_runs import Mlflow
from orchestration.workshop import UNTRACKED, Workshop

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")

FACTS = {
    "raw_corpus": (
        *("train_documents", "heldout_documents", "files", "source_bytes", "cut_off", "sources_fingerprint"),
    ),
    "tokenizer": ("vocab_size",),
    "pretrained_checkpoint": ("num_steps", "train_tokens_seen", "num_parameters", "heldout_after"),
    "evaluations": ("heldout", "blurb"),
}
"""The facts to show for each kind."""


class LineageError(ValueError):
    """The lineage of a model cannot be traced at all."""


@dataclass
class Chain:
    """A version, the artifacts and runs it was built from as far as they exist, and the faults found."""

    version: "ModelVersion"
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    runs: dict[str, "Run"] = field(default_factory=dict)
    """MLflow's runs by kind of artifact."""
    faults: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> str:
        return self.version.tags.get("recipe", "")


def trace(uri: str, workshop: Workshop) -> Chain:
    """Trace a version. Raises LineageError if the registry cannot be reached, or has no such version."""
    from mlflow.exceptions import MlflowException

    mlflow = workshop.mlflow
    try:
        client = mlflow.client()
        chain = Chain(find_version(client, uri))
        _follow(chain, Path(workshop.store))
        _find_runs(chain, mlflow)
        chain.faults += [*faults_of_run(client, chain.version), *faults_of_files(client, chain.version)]
    except MlflowException as error:
        raise _not_found(uri, mlflow, error) from error
    return chain


def find_version(client: "MlflowClient", uri: str) -> "ModelVersion":
    """Raises LineageError if `uri` does not name a version, MlflowException if that version does not exist."""
    if not (parts := URI.fullmatch(uri)):
        raise LineageError(f"{uri!r} names no version; remedy: models:/NAME@champion or models:/NAME/3")
    if parts["alias"]:
        return client.get_model_version_by_alias(parts["name"], parts["alias"])
    return client.get_model_version(parts["name"], parts["version"])


def directory_of(uri: str, kind: str, workshop: Workshop) -> Path:
    """Return the directory of a version: its artifact of this kind, or a download if the kind is task_model.

    Raises LineageError if the registry has no such version, ArtifactError if the artifact is not in the store, and
    PromotionError if the version is no task model or was changed.
    """
    from mlflow.exceptions import MlflowException

    try:
        chain = Chain(find_version(workshop.mlflow.client(), uri))
        if kind == TASK_MODEL:
            return task_model_directory(workshop.mlflow, chain.version)
    except MlflowException as error:
        raise _not_found(uri, workshop.mlflow, error) from error
    if kind not in chain.version.tags:
        raise LineageError(f"{uri}: the version's tags name no {kind}; remedy: {_register_again(chain)}")
    path = Path(workshop.store, kind, chain.version.tags[kind])
    if not path.exists():
        raise ArtifactError(_missing(chain, kind, path))
    return _open(path, kind).path


def _not_found(uri: str, mlflow: Mlflow, error: Exception) -> LineageError:
    reason = str(error).partition("\n")[0]
    return LineageError(
        f"{uri}: MLflow at {mlflow.tracking_uri} answers: {reason}; remedy: use a model, version or alias that its "
        "UI shows, or set BERT_PIPELINE_HOME or MLFLOW_TRACKING_URI to the registry that has it"
    )


def _follow(chain: Chain, store: Path) -> None:
    """Open the artifacts that the tags name, and their inputs."""
    tags = "the version's tags"
    named = {kind: (key, tags) for kind, key in sorted(chain.version.tags.items()) if _is_kind(kind)}
    for kind in ("pretrained_checkpoint", "evaluations"):
        if kind not in named:
            chain.faults.append(f"{tags} name no {kind}; remedy: {_register_again(chain)}")
    waiting = list(named)
    while waiting:
        kind = waiting.pop()
        key, _ = named[kind]
        path = store / kind / key
        if not path.exists():
            chain.faults.append(_missing(chain, kind, path))
            continue
        try:
            made = chain.artifacts[kind] = _open(path, kind)
        except ArtifactError as error:
            chain.faults.append(str(error))
            continue
        for name, needed in sources_in_store(made).items():
            if name not in named:
                named[name] = needed, f"{kind} {key}"
                waiting.append(name)
            elif named[name][0] != needed:
                other, by = named[name]
                chain.faults.append(
                    f"{kind} {key} was built from {name} {needed}, but {by} name(s) {name} {other}; "
                    f"remedy: {_register_again(chain)}"
                )


def _is_kind(name: str) -> bool:
    return name in STAGES or name.startswith(EVALUATION)


def _missing(chain: Chain, kind: str, path: Path) -> str:
    hosts = sorted({made.record["made"]["host"] for made in chain.artifacts.values()})
    others = f" (others of the chain were built on {', '.join(hosts)})" if hosts else ""
    return (
        f"{path} is missing: removed by hand, or built on another machine{others}; remedy: set BERT_PIPELINE_HOME to "
        f"the store that has it; or bert-pipeline pull {kind} {path.name}, if a remote has it; or rebuild it: "
        f"dg launch --assets 'key:\"{kind}\"' --partition {chain.recipe}"
    )


def _open(path: Path, kind: str) -> Artifact:
    """Open and verify an artifact. Raises ArtifactError if its fingerprint is not its name, or a file is missing."""
    made = artifact.load(path, kind)
    if made.fingerprint != path.name:
        raise ArtifactError(f"{path} contains another {kind}, {made.fingerprint}; remedy: remove it and run again")
    check_artifact_files(kind, path)
    if (proof := PROOF.get(kind)) and not (path / proof).is_file():
        raise ArtifactError(f"{path / proof} is missing; remedy: remove {path} and run again")
    if kind == "raw_corpus" and (expected := made.facts.get("sources_fingerprint")):
        found = artifact.fingerprint({each["name"]: each["sha256"] for each in sources_of(made)})
        if found != expected:
            raise ArtifactError(
                f"{path / SOURCES} lists other files (fingerprint {found}) than those of the corpus ({expected}); "
                f"remedy: remove {path} and run again"
            )
    return made


def sources_of(corpus: Artifact) -> list[dict[str, Any]]:
    """The rows of sources.jsonl: name, bytes, sha256, released. Raises ArtifactError if they cannot be read."""
    try:
        lines = (corpus.path / SOURCES).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError) as error:
        raise ArtifactError(
            f"{corpus.path / SOURCES} is missing or damaged ({error}); remedy: remove {corpus.path} and run again"
        ) from None


def _register_again(chain: Chain) -> str:
    return f"dg launch --assets key:registered_model --partition {chain.recipe or 'RECIPE'}"


def _find_runs(chain: Chain, mlflow: Mlflow) -> None:
    """Find the MLflow run of every trained or evaluated artifact."""
    for kind, made in chain.artifacts.items():
        if kind in UNTRACKED:
            continue
        if runs := mlflow.runs(made.fingerprint, "FINISHED"):
            chain.runs[kind] = runs[0]
        else:
            chain.faults.append(
                f"{kind} {made.fingerprint}: MLflow has no finished run of it, or it was deleted; remedy: `mlflow runs "
                f"restore --run-id ID`, or materialize {kind} of {chain.recipe} again, which sends the record to MLflow"
            )


def describe(uri: str, workshop: Workshop) -> dict[str, Any]:
    """The chain as JSON values, newest artifact first. Raises LineageError."""
    chain = trace(uri, workshop)
    version, tags = chain.version, chain.version.tags
    try:
        values = recorded_recipe(chain.recipe, chain.artifacts)
        recipe_fingerprint = artifact.fingerprint(_without_description(values))
    except ReproductionError as error:
        recipe_fingerprint = None
        chain.faults.append(f"recipe {chain.recipe}: {error}")
    tasks = sorted(kind for kind in chain.artifacts if kind.startswith(EVALUATION))
    order = ["evaluations", *tasks, *(kind for kind in reversed(STAGES) if kind != "evaluations")]
    corpus, checkpoint = chain.artifacts.get("raw_corpus"), chain.artifacts.get("pretrained_checkpoint")
    return {
        "model": version.name,
        "version": int(version.version),
        "aliases": list(version.aliases),
        "created": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        "page": workshop.mlflow.model_url(version.name, version.version),
        "dagster_run": tags.get("dagster.url"),
        "recipe": {"name": chain.recipe, "fingerprint": recipe_fingerprint},
        "commit": checkpoint.record["made"]["commit"] if checkpoint else None,
        "task_model": _describe_task_model(tags) if TASK in tags else None,
        "artifacts": [_describe(chain, kind, workshop) for kind in order if kind in chain.artifacts],
        "sources": sources_of(corpus) if corpus and corpus.facts.get("sources_fingerprint") else [],
        "faults": chain.faults,
    }


def _describe_task_model(tags: Mapping[str, str]) -> dict[str, Any]:
    """What was fine-tuned, on which task, and the scores."""
    return {
        "task": tags[TASK],
        "fingerprint": tags[TASK_MODEL],
        "pretrained": tags.get(PRETRAINED),
        "scores": json.loads(tags["scores"]),
    }


def _without_description(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "description"}


def _describe(chain: Chain, kind: str, workshop: Workshop) -> dict[str, Any]:
    made, run = chain.artifacts[kind], chain.runs.get(kind)
    circumstances = made.record["made"]
    # The Dagster run that built the artifact, or, for older records, the one that reported it to MLflow.
    dagster_run = circumstances.get("dagster_run") or (run.data.tags.get("dagster.run_id") if run else None)
    return {
        "kind": kind,
        "fingerprint": made.fingerprint,
        "path": str(made.path),
        "made_from": made.record["origin"]["inputs"],
        "made": {name: circumstances[name] for name in ("at", "seconds", "by", "host", "commit")},
        "dagster_run": workshop.run_page(dagster_run) if dagster_run else None,
        "mlflow_run": workshop.mlflow.run_url(run) if run else None,
        "facts": _facts(made),
    }


def _facts(made: Artifact) -> dict[str, Any]:
    if made.kind.startswith(EVALUATION):
        encoders: tuple[str, ...] = ("pretrained", "random_init")
        scores = {name: mean_and_sd(made.facts[name]) for name in encoders if name in made.facts}
        return {"metric": made.facts["metric"], **scores, "seeds": made.facts["seeds"]}
    facts = {name: made.facts[name] for name in FACTS.get(made.kind, ()) if made.facts.get(name) not in (None, "")}
    if made.kind == "tokenizer":
        facts["tokenizer.json sha256"] = cached_digest(made.path / PROOF["tokenizer"])
    return facts


def reproduce(uri: str, workshop: Workshop, out: Path) -> None:
    """Write into `out` what is needed to rebuild the version (see reproduction.py).

    Raises LineageError, also for a task model, or ReproductionError if an artifact is missing.
    """
    chain = trace(uri, workshop)
    if (task := chain.version.tags.get(TASK)) is not None:
        below = chain.version.tags.get(PRETRAINED, "the model below it")
        raise LineageError(
            f"{uri} is a task model; remedy: reproduce {below}, then bert-pipeline finetune --task {task} with the "
            "settings of the version's run"
        )
    description = workshop.mlflow.client().get_registered_model(chain.version.name).tags.get(RECIPE_DESCRIPTION, "")
    values = recorded_recipe(chain.recipe, chain.artifacts, description)
    model = f"models:/{chain.version.name}/{chain.version.version}"
    write_reproduction(model, chain.recipe, values, chain.artifacts, out)
