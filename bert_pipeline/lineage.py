"""Artifacts that belong together: what one is built from, how it is built, and how it is found again.

The command line (explicit directories) and Dagster (the store) both build through `make_stage`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.recipe import Recipe
from bert_pipeline.stages import (
    EVALUATION,
    STAGES,
    NotBuilt,
    OnRow,
    check_artifact_files,
    find_stage,
    fingerprints_of,
    inputs_of,
    kinds_of,
    resolve_recipe,
)
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, Facts


def ignore_row(row: dict[str, Any]) -> None:
    """An OnRow that does nothing."""


@dataclass(frozen=True)
class Tracker:
    """Callbacks that follow one build."""

    on_row: OnRow = ignore_row
    on_facts: Callable[[Facts, Path], None] = lambda facts, directory: None
    """Called once, after the build, with its facts and the directory that it wrote."""


def make_stage(
    kind: str,
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    destination: Path,
    on_row: OnRow = ignore_row,
    *,
    origin: Mapping[str, Any] | None = None,
    track: Callable[[], AbstractContextManager[Tracker]] | None = None,
    asked_by: Mapping[str, str] | None = None,
) -> Artifact:
    """Return the artifact at `destination`: the existing one, a copy from the remote (store/remote.py), or a new build.

    `origin` is the `stage_origin` of a resolved recipe, if the caller has it: computing it reads every source file.
    Only a new build calls `on_row`, or enters `track()`, whose tracker then gets the rows and the facts instead.
    `asked_by` is stored in the record of a new build, such as the id of the run that started it.
    Raises ArtifactError if a file of the artifact or of an input is missing or truncated.
    """
    from bert_pipeline.store import remote

    if origin is None:
        recipe = resolve_recipe(recipe)
        origin = stage_origin(kind, recipe, inputs)
    stage = find_stage(kind)
    paths = {name: inputs[name].path for name in inputs_of(kind, recipe)}

    def build(out: Path) -> Facts:
        with track() if track else nullcontext(Tracker(on_row)) as tracker:
            facts = stage.build(recipe, paths, out, tracker.on_row)
            tracker.on_facts(facts, out)
        return facts

    made = artifact.make(
        destination,
        origin,
        build,
        resumable=stage.resumable,
        asked_by=asked_by,
        tier=remote.from_environment(),
    )
    check_artifact_files(kind, made.path)
    return made


def stage_origin(kind: str, recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Everything that determines the artifact's content.

    Raises ArtifactError if an input is missing, of the wrong kind, or not built from the other inputs.
    """
    stage, needed = find_stage(kind), inputs_of(kind, recipe)
    for name in needed:
        if name not in inputs:
            raise artifact.ArtifactError(f"{kind} is built from {', '.join(needed)}, but {name} was not given")
        if inputs[name].kind != name:
            raise artifact.ArtifactError(f"{kind}: {inputs[name].path} is a {inputs[name].kind}, not a {name}")
    _require_matching_inputs(kind, {name: inputs[name] for name in needed})
    if kind == "pretrained_checkpoint":
        _refuse_other_masks(recipe, inputs["masked_dataset"])
    fingerprints = {name: inputs[name].fingerprint for name in needed} | stage.outside(recipe)
    return artifact.origin(kind, stage.section(recipe), fingerprints, stage.code_version)


def _require_matching_inputs(kind: str, inputs: Mapping[str, Artifact]) -> None:
    """Inputs must be built from each other: a dataset built with another tokenizer holds other ids."""
    for one in inputs.values():
        for name, fingerprint in sources_in_store(one).items():
            if name in inputs and inputs[name].fingerprint != fingerprint:
                raise artifact.ArtifactError(
                    f"{kind}: {one.path} was built from {name} {fingerprint}, but {inputs[name].path} is "
                    f"{inputs[name].fingerprint}; remedy: pass the {name} that it was built from"
                )


def _refuse_other_masks(recipe: Recipe, masked_dataset: Artifact) -> None:
    """Training draws the masks of later epochs by the recipe, so those on disk must follow the same recipe section."""
    built_with, masking = masked_dataset.record["origin"]["section"], recipe.masking.for_origin()
    if artifact.fingerprint(built_with) != artifact.fingerprint(masking):
        raise artifact.ArtifactError(
            f"{masked_dataset.path} was built with [masking] {built_with}, but recipe {recipe.name} has {masking}; "
            "remedy: build the masked_dataset with this recipe"
        )


def sources_in_store(made: Artifact) -> dict[str, str]:
    """The fingerprints, by kind, of the artifacts that this one was built from and that a lineage must agree on.

    The corpus of a tokenizer is left out: a vocabulary may be kept for a corpus that has grown since.
    """
    return {
        kind: fingerprint
        for kind, fingerprint in made.record["origin"]["inputs"].items()
        if (kind in STAGES or kind.startswith(EVALUATION)) and (made.kind, kind) != ("tokenizer", "raw_corpus")
    }


def find_artifacts(kinds: Sequence[str], recipe: Recipe, store: Path) -> dict[str, Artifact] | None:
    """The recipe's artifacts of these kinds in the store or the remote, for today's text; None if one is missing."""
    from bert_pipeline.store import remote

    try:
        fingerprints = fingerprints_of(kinds, resolve_recipe(recipe))
    except NotBuilt:
        return None
    found = {}
    for kind in kinds:
        try:
            found[kind] = remote.load(store, kind, fingerprints[kind])
        except artifact.ArtifactError:
            if (store / kind / fingerprints[kind]).exists():
                raise
            return None
    return found


def collect_lineage(recipe: Recipe, artifacts: Iterable[Artifact], store: Path) -> dict[str, Artifact]:
    """Return the artifacts and everything they were built from, by kind in build order, opened from `store`.

    Raises ArtifactError if they were not built from each other, or if the recipe has changed since.
    """
    from bert_pipeline.store import remote

    found: dict[str, Artifact] = {}
    waiting = list(artifacts)
    while waiting:
        made = waiting.pop()
        known = found.setdefault(made.kind, made)
        if known.fingerprint != made.fingerprint:
            raise artifact.ArtifactError(
                f"{known.path} and {made.path} belong to different lineages; remedy: materialize both"
            )
        section = find_stage(made.kind).section(recipe)
        if artifact.fingerprint(made.record["origin"]["section"]) != artifact.fingerprint(section):
            raise artifact.ArtifactError(
                f"{made.path} was built before recipe {recipe.name} was changed; "
                f"remedy: materialize {made.kind} and everything after it"
            )
        needed = inputs_of(made.kind, recipe)
        sources = {kind: key for kind, key in sources_in_store(made).items() if kind in needed}
        waiting += [remote.load(store, kind, key) for kind, key in sources.items()]
    return {kind: found[kind] for kind in kinds_of(recipe) if kind in found}
