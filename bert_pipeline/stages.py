"""The table of stages: the inputs, the recipe section and the builder of each kind of artifact.

    raw_corpus -> tokenizer -> nsp_dataset -> masked_dataset -> pretrained_checkpoint -> evaluation/TASK -> evaluations
               -> contamination -> evaluations

lineage.py builds an artifact through its stage, and finds the artifacts that belong together.
Builders are imported when they are called, so that importing this module stays cheap.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from bert_pipeline import settings
from bert_pipeline.experiments import find_recipe, recipe_names
from bert_pipeline.formats import initial_model
from bert_pipeline.recipe import Recipe, RecipeError, TaskRecipe
from bert_pipeline.store import artifact
from bert_pipeline.store.artifact import Facts


class NotBuilt(RecipeError):
    """A recipe starts from a model that is not built yet."""


OnRow = Callable[[dict[str, Any]], None]
"""Called with each row of metrics as soon as it is measured."""


EVALUATION = "evaluation/"
"""Prefix of the kinds of evaluation artifacts: `evaluation/<task>`."""

Build = Callable[[Recipe, Mapping[str, Path], Path, OnRow], Facts]


@dataclass(frozen=True)
class Stage:
    """How one kind of artifact is built."""

    inputs: tuple[str, ...]
    """Kinds of the artifacts that it reads."""
    code_version: str
    """Raise it with every change to the code that changes the output."""
    section: Callable[[Recipe], dict[str, Any]]
    """The part of the recipe that determines the output."""
    build: Build
    resumable: bool = False
    in_shards: bool = False
    """The output has an index of its shards, so damaged files are found before they are used."""
    outside: Callable[[Recipe], dict[str, str]] = lambda recipe: {}
    """Fingerprints of inputs from outside the store: source files, evaluation sets, an initial model."""


def check_artifact_files(kind: str, path: Path) -> None:
    """Raise ArtifactError if a file of a sharded artifact is missing or truncated."""
    from bert_pipeline.store import shards

    if find_stage(kind).in_shards:
        shards.check_files(path)


def _with_checked_inputs(build: Build) -> Build:
    """Decorate a builder: check the files of its inputs first."""

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
    """The tasks whose dev and test texts are excluded from the corpus."""
    chosen = recipe.corpus.exclude_tasks
    return _evaluated_tasks(recipe) if chosen == "evaluation" else chosen


def _evaluated_tasks(recipe: Recipe) -> tuple[str, ...]:
    return tuple(settings.name for settings in recipe.evaluation.tasks)


def _searched_tasks(recipe: Recipe) -> tuple[str, ...]:
    """The tasks whose texts are searched for in the corpus: the evaluated and the excluded ones."""
    return tuple(dict.fromkeys((*_evaluated_tasks(recipe), *_excluded_tasks(recipe))))


@_with_checked_inputs
def _contamination(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.contamination.build import build_contamination
    from bert_pipeline.evaluation.tasks.texts import evaluation_texts

    return build_contamination(list(evaluation_texts(_searched_tasks(recipe))), inputs["raw_corpus"], out)


def _searched_texts(recipe: Recipe) -> dict[str, str]:
    from bert_pipeline.evaluation.tasks.texts import text_inputs

    return text_inputs(_searched_tasks(recipe))


@_with_checked_inputs
def _tokenizer(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.tokenizer.build import build_tokenizer, take_tokenizer_over

    if init_from := initial_directory(recipe):
        return take_tokenizer_over(recipe.tokenizer, init_from, inputs["raw_corpus"], out)
    return build_tokenizer(recipe.tokenizer, inputs["raw_corpus"], out)


@_with_checked_inputs
def _nsp_dataset(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.nsp import build_nsp_dataset

    return build_nsp_dataset(recipe.nsp, recipe.max_seq_lengths, inputs["raw_corpus"], inputs["tokenizer"], out)


@_with_checked_inputs
def _masked_dataset(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
    from bert_pipeline.data.masking import build_masked_dataset

    return build_masked_dataset(recipe.masking, inputs["tokenizer"], inputs["nsp_dataset"], out)


@_with_checked_inputs
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


@_with_checked_inputs
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
    """The stage that fine-tunes on one task."""

    def task_settings(recipe: Recipe) -> TaskRecipe:
        for each in recipe.evaluation.tasks:
            if each.name == name:
                return each
        raise RecipeError(
            f"recipe {recipe.name} does not evaluate {name}; "
            f'remedy: add [[evaluation.tasks]] with name = "{name}" to the recipe'
        )

    def section(recipe: Recipe) -> dict[str, Any]:
        from bert_pipeline.evaluation.finetuning.protocol import protocol
        from bert_pipeline.evaluation.tasks.task import find_task

        chosen, limit = task_settings(recipe), recipe.model.max_position_embeddings
        stops = {"stop_losing_settings": True} if chosen.stop_losing_settings else {}
        alone = {} if recipe.evaluation.baseline else {"baseline": False}
        return protocol(find_task(name), chosen, limit).model_dump() | {"other_data": chosen.other_data} | stops | alone

    def outside(recipe: Recipe) -> dict[str, str]:
        from bert_pipeline.evaluation.tasks.task import task_fingerprint

        return {"task": task_fingerprint(name)}

    def build(recipe: Recipe, inputs: Mapping[str, Path], out: Path, on_row: OnRow) -> Facts:
        from bert_pipeline.evaluation.evaluate import evaluate_checkpoint

        settings, checkpoint = task_settings(recipe), inputs["pretrained_checkpoint"]
        return evaluate_checkpoint(settings, checkpoint, out, on_row, recipe.evaluation.baseline)

    return Stage(("pretrained_checkpoint",), "2", section, build, resumable=True, outside=outside)


def _initial_vocabulary(recipe: Recipe) -> dict[str, str]:
    folder = initial_directory(recipe)
    return {"initial_vocabulary": initial_model.vocabulary_fingerprint(folder)} if folder else {}


def _initial_model(recipe: Recipe) -> dict[str, str]:
    folder = initial_directory(recipe)
    return {"initial_model": initial_model.model_fingerprint(folder)} if folder else {}


EXCLUDED_SPLITS = ("dev", "test")
"""Text of the train split may stay in the corpus: fine-tuning sees it with its labels anyway."""

STAGES = {
    "raw_corpus": Stage(
        (), "4", lambda r: r.corpus.for_origin(), _raw_corpus, outside=_corpus_sources, resumable=True, in_shards=True
    ),
    "contamination": Stage(
        ("raw_corpus",), "1", lambda r: {"tasks": _searched_tasks(r)}, _contamination, outside=_searched_texts
    ),
    "tokenizer": Stage(
        ("raw_corpus",), "2", lambda r: r.tokenizer.for_origin(), _tokenizer, outside=_initial_vocabulary
    ),
    "nsp_dataset": Stage(
        ("raw_corpus", "tokenizer"),
        "2",
        lambda r: r.nsp.for_origin() | {"max_seq_lengths": r.max_seq_lengths},
        _nsp_dataset,
        resumable=True,
        in_shards=True,
    ),
    "masked_dataset": Stage(
        ("tokenizer", "nsp_dataset"),
        "3",
        lambda r: r.masking.for_origin(),
        _masked_dataset,
        resumable=True,
        in_shards=True,
    ),
    "pretrained_checkpoint": Stage(
        ("tokenizer", "nsp_dataset", "masked_dataset"),
        "8",
        lambda r: r.pretrain.for_origin() | {"model": r.model.for_origin()},
        _pretrained_checkpoint,
        outside=_initial_model,
        resumable=True,
    ),
    "evaluations": Stage(
        ("contamination", "nsp_dataset", "masked_dataset", "pretrained_checkpoint"),
        "3",
        lambda r: {"tasks": _evaluated_tasks(r)},
        _evaluations,
    ),
}
"""The stages of every recipe; `find_stage` adds one per task, `evaluation/<task>`."""


def find_stage(kind: str) -> Stage:
    return _task_stage(kind.removeprefix(EVALUATION)) if kind.startswith(EVALUATION) else STAGES[kind]


def inputs_of(kind: str, recipe: Recipe) -> tuple[str, ...]:
    """Kinds of the artifacts that this recipe's artifact is built from."""
    of_tasks = tuple(EVALUATION + name for name in _evaluated_tasks(recipe)) if kind == "evaluations" else ()
    return find_stage(kind).inputs + of_tasks


def kinds_of(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of all artifacts of a recipe, in build order: inputs first."""
    before = [kind for kind in STAGES if kind != "evaluations"]
    return (*before, *(EVALUATION + name for name in _evaluated_tasks(recipe)), "evaluations")


def initial_directory(recipe: Recipe) -> Path | None:
    """Return the directory of the model that training starts from, or None for a model from scratch.

    If pretrain.init_from names a recipe, that is its checkpoint in the store, otherwise a path in the data folder.
    Raises NotBuilt if that recipe has no checkpoint yet.
    """
    name = recipe.pretrain.init_from
    if not name:
        return None
    if name not in recipe_names():
        return settings.in_data_folder(name)
    kind = "pretrained_checkpoint"
    checkpoint = settings.store() / kind / fingerprints_of((kind,), _initial_recipe(recipe))[kind]
    if not checkpoint.exists():
        raise NotBuilt(
            f"recipe {recipe.name} starts from the model of recipe {name}, which is not built yet ({checkpoint} is "
            f"missing); remedy: dg launch --assets '+key:pretrained_checkpoint' --partition {name}; if its text grows, "
            f"pin it (corpus.sources_file or corpus.cutoff in {name}), because each new file makes it another model"
        )
    return checkpoint


def _initial_recipe(recipe: Recipe) -> Recipe:
    """The recipe whose model this one starts from. Raises RecipeError if pretrain.init_from forms a cycle."""
    seen = [recipe.name]
    while (name := recipe.pretrain.init_from) in recipe_names():
        recipe = find_recipe(name)
        if name in seen:
            raise RecipeError(f"pretrain.init_from forms a cycle: {' -> '.join([*seen, name])}; remedy: break it")
        seen.append(name)
    return resolve_recipe(find_recipe(seen[1]))


def resolve_recipe(recipe: Recipe) -> Recipe:
    """The recipe with the sizes and the vocabulary of its initial model; unchanged if it trains from scratch."""
    folder = initial_directory(recipe)
    return initial_model.adopt_initial_model(recipe, folder) if folder else recipe


def fingerprints_of(kinds: Iterable[str], recipe: Recipe) -> dict[str, str]:
    """The fingerprints of the recipe's artifacts of these kinds and of their inputs, built or not."""
    found: dict[str, str] = {}

    def add(kind: str) -> str:
        if kind not in found:
            stage = find_stage(kind)
            inputs = {name: add(name) for name in inputs_of(kind, recipe)} | stage.outside(recipe)
            found[kind] = artifact.fingerprint(artifact.origin(kind, stage.section(recipe), inputs, stage.code_version))
        return found[kind]

    for kind in kinds:
        add(kind)
    return found
