"""The chain of stages as a table: which section and which inputs make what.

    raw_corpus -> tokenizer -> nsp_dataset -> masked_dataset -> pretrained_checkpoint -> evaluation/TASK -> evaluations
               -> contamination -> evaluations

Both front doors read this table: the command line (explicit directories) and Dagster (the store).
The builders are imported when they are called, so that reading the table costs nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from bert_pipeline import settings
from bert_pipeline.formats import initial_model
from bert_pipeline.recipe import Recipe, RecipeError, TaskRecipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Artifact, Facts

OnRow = Callable[[dict[str, Any]], None]
"""Is given each row of metrics as it comes."""

EVALUATION = "evaluation/"
"""Before the name of a task: the kind of what was found on it."""

Build = Callable[[Recipe, Mapping[str, Path], Path, OnRow], Facts]


@dataclass(frozen=True)
class Stage:
    """How one kind of artifact comes about."""

    inputs: tuple[str, ...]
    """Kinds of the artifacts it is made from."""
    code_version: str
    """Raised with every change that changes what the stage makes."""
    section: Callable[[Recipe], dict[str, Any]]
    """The part of the recipe that decides its content."""
    build: Build
    resumable: bool = False
    in_shards: bool = False
    """Its files stand in an index, so damage is found before they are used."""
    outside: Callable[[Recipe], dict[str, str]] = lambda recipe: {}
    """Fingerprints of inputs that do not come from the store: source files, evaluation sets."""


def check_artifact_files(kind: str, path: Path) -> None:
    """Raise ArtifactError where a file of an artifact in shards is missing or cut short."""
    from bert_pipeline.store import shards

    if find_stage(kind).in_shards:
        shards.check_files(path)


def _from_whole_inputs(build: Build) -> Build:
    """A builder that looks at the files of its inputs before it begins."""

    @wraps(build)
    def checked(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
        for kind, path in inputs.items():
            check_artifact_files(kind, path)
        return build(recipe, inputs, out, on_row)

    return checked


def _raw_corpus(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.corpus.build import build_raw_corpus
    from bert_pipeline.evaluation.tasks.texts import evaluation_texts

    return build_raw_corpus(recipe.corpus, out, list(evaluation_texts(_excluded_tasks(recipe), EXCLUDED_SPLITS)))


def _corpus_sources(recipe: Recipe) -> dict[str, str]:
    from bert_pipeline.data.corpus.sources import source_files
    from bert_pipeline.evaluation.tasks.texts import text_inputs

    files = source_files(recipe.corpus)
    sources = {"files": artifact.files_fingerprint(files)} if files else {}
    return sources | text_inputs(_excluded_tasks(recipe), EXCLUDED_SPLITS)


def _excluded_tasks(recipe: Recipe) -> tuple[str, ...]:
    """The tasks whose dev and test text the corpus shall not hold."""
    chosen = recipe.corpus.exclude_tasks
    return _evaluated_tasks(recipe) if chosen == "evaluation" else chosen


def _evaluated_tasks(recipe: Recipe) -> tuple[str, ...]:
    return tuple(settings.name for settings in recipe.evaluation.tasks)


def _searched_tasks(recipe: Recipe) -> tuple[str, ...]:
    """The tasks whose text is looked for: those that are evaluated, and those that were excluded."""
    return tuple(dict.fromkeys((*_evaluated_tasks(recipe), *_excluded_tasks(recipe))))


@_from_whole_inputs
def _contamination(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.contamination.build import build_contamination
    from bert_pipeline.evaluation.tasks.texts import evaluation_texts

    return build_contamination(list(evaluation_texts(_searched_tasks(recipe))), inputs["raw_corpus"], out)


def _searched_texts(recipe: Recipe) -> dict[str, str]:
    from bert_pipeline.evaluation.tasks.texts import text_inputs

    return text_inputs(_searched_tasks(recipe))


@_from_whole_inputs
def _tokenizer(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.tokenizer.build import build_tokenizer, take_tokenizer_over

    if init_from := initial_directory(recipe):
        return take_tokenizer_over(init_from, inputs["raw_corpus"], out)
    return build_tokenizer(recipe.tokenizer, inputs["raw_corpus"], out)


@_from_whole_inputs
def _nsp_dataset(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.nsp import build_nsp_dataset

    return build_nsp_dataset(recipe.nsp, recipe.max_seq_lengths, inputs["raw_corpus"], inputs["tokenizer"], out)


@_from_whole_inputs
def _masked_dataset(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.masking import build_masked_dataset

    return build_masked_dataset(recipe.masking, inputs["tokenizer"], inputs["nsp_dataset"], out)


@_from_whole_inputs
def _pretrained_checkpoint(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.training.launch.build import build_pretrained_checkpoint

    return build_pretrained_checkpoint(
        recipe.pretrain,
        recipe.model,
        recipe.masking,
        inputs["tokenizer"],
        inputs["nsp_dataset"],
        inputs["masked_dataset"],
        out,
        on_row,
        initial_directory(recipe),
    )


@_from_whole_inputs
def _evaluations(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.evaluation.summary import build_evaluations

    return build_evaluations(
        inputs["contamination"],
        inputs["nsp_dataset"],
        inputs["masked_dataset"],
        inputs["pretrained_checkpoint"],
        {name: inputs[EVALUATION + name] for name in _evaluated_tasks(recipe)},
        out,
    )


def _task_stage(name: str) -> Stage:
    """Fine-tuning on one task."""

    def settings(recipe: Recipe) -> TaskRecipe:
        for each in recipe.evaluation.tasks:
            if each.name == name:
                return each
        raise RecipeError(
            f"recipe {recipe.name} does not ask for {name}; "
            f'remedy: [[evaluation.tasks]] with name = "{name}" in the recipe'
        )

    def section(recipe: Recipe) -> dict[str, Any]:
        from bert_pipeline.evaluation.finetuning.protocol import protocol
        from bert_pipeline.evaluation.tasks.task import find_task

        asked = settings(recipe)
        limit = recipe.model.max_position_embeddings
        return protocol(find_task(name), asked, limit).model_dump() | {"other_data": asked.other_data}

    def outside(recipe: Recipe) -> dict[str, str]:
        from bert_pipeline.evaluation.tasks.task import task_fingerprint

        return {"task": task_fingerprint(name)}

    def build(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
        from bert_pipeline.evaluation.evaluate import evaluate_checkpoint

        return evaluate_checkpoint(settings(recipe), inputs["pretrained_checkpoint"], out, on_row)

    return Stage(("pretrained_checkpoint",), "1", section, build, resumable=True, outside=outside)


def _initial_vocabulary(recipe: Recipe) -> dict[str, str]:
    folder = initial_directory(recipe)
    return {"initial_vocabulary": initial_model.vocabulary_fingerprint(folder)} if folder else {}


def _initial_model(recipe: Recipe) -> dict[str, str]:
    folder = initial_directory(recipe)
    return {"initial_model": initial_model.model_fingerprint(folder)} if folder else {}


EXCLUDED_SPLITS = ("dev", "test")
"""Of train, the model is told the labels anyway."""

STAGES = {
    "raw_corpus": Stage(
        (), "3", lambda r: r.corpus.model_dump(), _raw_corpus, outside=_corpus_sources, resumable=True, in_shards=True
    ),
    "contamination": Stage(
        ("raw_corpus",), "1", lambda r: {"tasks": _searched_tasks(r)}, _contamination, outside=_searched_texts
    ),
    "tokenizer": Stage(
        ("raw_corpus",), "1", lambda r: r.tokenizer.model_dump(), _tokenizer, outside=_initial_vocabulary
    ),
    "nsp_dataset": Stage(
        ("raw_corpus", "tokenizer"),
        "2",
        lambda r: r.nsp.model_dump() | {"max_seq_lengths": r.max_seq_lengths},
        _nsp_dataset,
        resumable=True,
        in_shards=True,
    ),
    "masked_dataset": Stage(
        ("tokenizer", "nsp_dataset"),
        "2",
        lambda r: r.masking.model_dump(),
        _masked_dataset,
        resumable=True,
        in_shards=True,
    ),
    "pretrained_checkpoint": Stage(
        ("tokenizer", "nsp_dataset", "masked_dataset"),
        "5",
        lambda r: r.pretrain.model_dump() | {"model": r.model.model_dump()},
        _pretrained_checkpoint,
        outside=_initial_model,
        resumable=True,
    ),
    "evaluations": Stage(
        ("contamination", "nsp_dataset", "masked_dataset", "pretrained_checkpoint"),
        "2",
        lambda r: {"tasks": _evaluated_tasks(r)},
        _evaluations,
    ),
}
"""Of every recipe. Those of its tasks are `evaluation/<task>`."""


def find_stage(kind: str) -> Stage:
    return _task_stage(kind.removeprefix(EVALUATION)) if kind.startswith(EVALUATION) else STAGES[kind]


def inputs_of(kind: str, recipe: Recipe) -> tuple[str, ...]:
    """Kinds of the artifacts that the recipe's artifact is made from."""
    of_tasks = tuple(EVALUATION + name for name in _evaluated_tasks(recipe)) if kind == "evaluations" else ()
    return find_stage(kind).inputs + of_tasks


def kinds_of(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of all the recipe's artifacts, each after those that it is made from."""
    before = [kind for kind in STAGES if kind != "evaluations"]
    return (*before, *(EVALUATION + name for name in _evaluated_tasks(recipe)), "evaluations")


def initial_directory(recipe: Recipe) -> Path | None:
    """Where the model lies that the recipe begins with: in the store, where pretrain.init_from names a recipe.

    Raises RecipeError where that recipe has made none yet.
    """
    name = recipe.pretrain.init_from
    if not name:
        return None
    if name not in recipe_files():
        return settings.in_data_folder(name)
    made = settings.store() / "pretrained_checkpoint" / _fingerprint("pretrained_checkpoint", _other(recipe))
    if not made.exists():
        raise RecipeError(
            f"recipe {recipe.name} begins with the model of recipe {name}, which is not there yet ({made} is missing); "
            f"remedy: dg launch --assets '+key:pretrained_checkpoint' --partition {name}; where its text "
            f"grows, pin it (corpus.sources_file or corpus.cutoff in {name}), or it is another model with each new file"
        )
    return made


def _other(recipe: Recipe) -> Recipe:
    """The recipe that this one begins with. Raises RecipeError where it leads back to where it came from."""
    seen = [recipe.name]
    while (name := recipe.pretrain.init_from) in recipe_files():
        recipe = load_recipe(recipe_files()[name])
        if name in seen:
            raise RecipeError(f"pretrain.init_from leads in a circle: {' -> '.join([*seen, name])}; remedy: break it")
        seen.append(name)
    return resolve_recipe(load_recipe(recipe_files()[seen[1]]))


def resolve_recipe(recipe: Recipe) -> Recipe:
    """The recipe with the sizes and the vocabulary of the model that it begins with; itself where it begins anew."""
    folder = initial_directory(recipe)
    return initial_model.begun_from(recipe, folder) if folder else recipe


def _fingerprint(kind: str, recipe: Recipe) -> str:
    """That of the recipe's artifact, whether it stands or not."""
    stage = find_stage(kind)
    inputs = {name: _fingerprint(name, recipe) for name in inputs_of(kind, recipe)} | stage.outside(recipe)
    return artifact.fingerprint(artifact.origin(kind, stage.section(recipe), inputs, stage.code_version))


def stage_origin(kind: str, recipe: Recipe, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """What decides the artifact's content. Raises ArtifactError where an input is of another kind or missing."""
    stage, needed = find_stage(kind), inputs_of(kind, recipe)
    for name in needed:
        if name not in inputs:
            raise artifact.ArtifactError(f"{kind} is made from {', '.join(needed)}, and {name} was not given")
        if inputs[name].kind != name:
            raise artifact.ArtifactError(f"{kind}: {inputs[name].path} holds a {inputs[name].kind}, not a {name}")
    _refuse_strangers(kind, {name: inputs[name] for name in needed})
    fingerprints = {name: inputs[name].fingerprint for name in needed} | stage.outside(recipe)
    return artifact.origin(kind, stage.section(recipe), fingerprints, stage.code_version)


def sources_in_store(made: Artifact) -> dict[str, str]:
    """The fingerprints of the artifacts that this one was made from, as far as a lineage must agree on them.

    Not the text of a tokenizer: a vocabulary may serve a corpus that has grown since it was learnt.
    """
    return {
        kind: fingerprint
        for kind, fingerprint in made.record["origin"]["inputs"].items()
        if (kind in STAGES or kind.startswith(EVALUATION)) and (made.kind, kind) != ("tokenizer", "raw_corpus")
    }


def _refuse_strangers(kind: str, inputs: Mapping[str, Artifact]) -> None:
    """Inputs must be made from each other: a dataset of another tokenizer holds other ids."""
    for one in inputs.values():
        for name, fingerprint in sources_in_store(one).items():
            if name in inputs and inputs[name].fingerprint != fingerprint:
                raise artifact.ArtifactError(
                    f"{kind}: {one.path} was made from {name} {fingerprint}, but {inputs[name].path} is "
                    f"{inputs[name].fingerprint}; remedy: give the {name} that it was made from"
                )


def make_stage(
    kind: str,
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    destination: Path,
    on_row: OnRow = lambda row: None,
) -> Artifact:
    """Build the artifact in an explicit directory, or return it where it stands there; or pull it (see remote.py).

    Raises ArtifactError where a file of what stands there, or of an input, is missing or cut short.
    """
    from bert_pipeline.store import remote

    recipe = resolve_recipe(recipe)
    stage, origin = find_stage(kind), stage_origin(kind, recipe, inputs)
    paths = {name: inputs[name].path for name in inputs_of(kind, recipe)}
    made = artifact.make(
        destination,
        origin,
        lambda out: stage.build(recipe, paths, out, on_row),
        resumable=stage.resumable,
        tier=remote.from_environment(),
    )
    check_artifact_files(kind, made.path)
    return made
