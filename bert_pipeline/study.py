"""A study: several recipes, one question, and the rule that makes their comparison fair.

A study states a base recipe, arms that each change something in it, and seeds. It expands to a recipe for each arm and
pretraining seed, named `STUDY--ARM--seedN`. Such a recipe is like any other: a Dagster partition with artifacts of its
own, which share what agrees with other recipes. docs/reference/study.md is generated from the docstrings of the fields.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bert_pipeline.recipe import PretrainRecipe, Recipe, RecipeError, Section, Seed, TaskRecipe

KIND = "study"
"""Kind of the artifact of a study."""
SEPARATOR = "--"
"""Between study, arm and seed in the name of a recipe."""
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")
"""The keys of [model] that an arm with `continues` keeps from its recipe: no weight depends on them."""
OF_THE_STUDY = {
    "name": "the study names its recipes",
    "description": "describe the arm in its own `description`",
    "expected_mlm_loss": "it is the expectation for one recipe",
    "evaluation": "set `tasks` and `finetuning_seeds` of the study, the same for all arms",
    "registry": "arms are never promoted",
    "retraining": "arms are never retrained automatically",
}
"""The keys of a recipe that no arm may change, each with the reason or the remedy."""

Table = dict[str, Any]
"""The content of a recipe file."""


class StudyError(RecipeError):
    """An invalid study; the message lists every fault."""


class Arm(Section):
    """One of the recipes to compare."""

    name: str = Field(pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9_.])*$")
    """Name of the arm; single hyphens are allowed."""
    description: str = ""
    """What the arm is, in words, for the page."""
    recipe: str = ""
    """Recipe that the arm changes. Empty: the study's `base`."""
    continues: str = ""
    """Start from the model of this arm with the same seed (`pretrain.init_from`). The arm must be listed before.
    Sizes and vocabulary then come from that model: of [model] and [tokenizer] in the recipe, only the dropout rates
    remain."""
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keys of the recipe with other values, as in `pretrain.optimizer = "muon"`; they come after the `changes` of the
    study. A number selects a table of an array: `pretrain.phases.0.learning_rate = 1e-3`."""
    compared: bool = True
    """Evaluate and compare the arm. `false`: train it only because another arm continues its model."""
    exempt: str = ""
    """Why the arm may break the rule `equal`, in words; the page shows the reason."""


class Study(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the study and of its Dagster partition: the stem of the study's file."""
    question: str = Field(min_length=1)
    """The question that the study answers, in words."""
    base: str
    """Recipe that the arms change."""
    equal: Literal["steps", "tokens", "minutes"]
    """What all compared arms must spend alike in pretraining. `steps`: optimizer steps. `tokens`: steps * batch *
    length. `minutes`: `pretrain.budget_minutes`."""
    with_first_model: bool = False
    """Count also what the training of the first model took, for arms with `continues`."""
    pretraining_seeds: tuple[Seed, ...] = Field(min_length=1)
    """Values of `pretrain.seed`; every arm is trained once with each of them."""
    finetuning_seeds: tuple[Seed, ...] | None = Field(None, min_length=1)
    """Seeds of the fine-tuning runs of each model. Left out: those of the tasks."""
    reference: str
    """Arm that all others are compared with."""
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Keys of the recipes with other values, for all arms, as in the `changes` of an arm."""
    tasks: tuple[TaskRecipe, ...] = ()
    """Tasks of all arms, as in [[evaluation.tasks]] of a recipe. Empty: the tasks of `base`."""
    arms: tuple[Arm, ...] = Field(min_length=2)
    """The recipes to compare."""

    @field_validator("name")
    @classmethod
    def _name_has_no_separator(cls, name: str) -> str:
        if SEPARATOR in name:
            raise ValueError(
                "has two hyphens in a row, which separate study, arm and seed in names of recipes; remedy: rename the "
                "file"
            )
        return name

    @model_validator(mode="after")
    def _arms_fit_together(self) -> Self:
        if faults := [*self._faults()]:
            raise ValueError("; ".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        names = [arm.name for arm in self.arms]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"two arms are named {name}; remedy: rename one"
        for field in ("pretraining_seeds", "finetuning_seeds"):
            seeds = getattr(self, field) or ()
            if len(set(seeds)) < len(seeds):
                yield f"{field} is {list(seeds)}; remedy: name each seed once"
        if self.reference not in [arm.name for arm in self.compared_arms]:
            yield f"reference is {self.reference!r}; remedy: name a compared arm ({', '.join(names)})"
        for number, arm in enumerate(self.arms):
            where = f"arm {arm.name}"
            if arm.continues and arm.continues not in names[:number]:
                yield f"{where}: continues is {arm.continues!r}; remedy: name an arm that is listed before it"
            if not arm.compared and arm.name not in [each.continues for each in self.arms]:
                yield f"{where}: compared is false, but no arm continues its model; remedy: remove the arm"
            if arm.continues and "init_from" in arm.changes.get("pretrain", {}):
                yield f"{where}: changes.pretrain.init_from contradicts continues; remedy: remove one of them"
        for where, changes in (("", self.changes), *((f"arm {arm.name}: ", arm.changes) for arm in self.arms)):
            for key in changes.keys() & OF_THE_STUDY.keys():
                yield f"{where}changes.{key}: no arm may change it; remedy: {OF_THE_STUDY[key]}"
            if "seed" in changes.get("pretrain", {}):
                yield f"{where}changes.pretrain.seed: no arm may change it; remedy: set pretraining_seeds"

    @property
    def compared_arms(self) -> tuple[Arm, ...]:
        return tuple(arm for arm in self.arms if arm.compared)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def recipe_name(self, arm: str, seed: int) -> str:
        return SEPARATOR.join([self.name, arm, f"seed{seed}"])

    @property
    def recipe_names(self) -> list[str]:
        """The names of all recipes in the order of training: seed by seed, and first models before their successors."""
        return [self.recipe_name(arm.name, seed) for seed in self.pretraining_seeds for arm in self.arms]


def recipe_table(study: Study, arm: Arm, seed: int, tables: Mapping[str, Table]) -> Table:
    """The recipe of an arm as the table of a recipe file. `tables`: the recipe files that the study names, by name.

    Raises StudyError if a change names an entry of an array that the recipe does not have.
    """
    table = deepcopy(tables[arm.recipe or study.base])
    for key in OF_THE_STUDY:
        table.pop(key, None)
    _change(table, study.changes, f"study {study.name}: changes")
    if arm.continues:
        table.pop("tokenizer", None)
        table["model"] = {key: value for key, value in table.get("model", {}).items() if key in DROPOUT}
        table.setdefault("pretrain", {})["init_from"] = study.recipe_name(arm.continues, seed)
    _change(table, arm.changes, f"study {study.name}, arm {arm.name}: changes")
    table.setdefault("pretrain", {})["seed"] = seed
    table["name"] = study.recipe_name(arm.name, seed)
    table["description"] = f"Study {study.name}, arm {arm.name}, seed {seed}: {arm.description or study.question}"
    if arm.compared:
        # Random weights have no pretraining seed: each arm would repeat the same runs.
        table["evaluation"] = {"baseline": False, "tasks": _tasks(study, tables[study.base])}
    return table


def _change(table: Table, changes: Mapping[str, Any], where: str) -> None:
    """Set each of `changes` in `table`. A table changes single keys; any other value replaces the old one."""
    for key, value in changes.items():
        here, old = f"{where}.{key}", table.get(key)
        if isinstance(value, Mapping) and isinstance(old, list):
            for number, change in value.items():
                if not (number.isdecimal() and int(number) < len(old) and isinstance(change, Mapping)):
                    raise StudyError(
                        f"{here}.{number}: not a table of the recipe's {key}; remedy: {here}.N.KEY = VALUE with N from "
                        f"0 to {len(old) - 1}"
                    )
                _change(old[int(number)], change, f"{here}.{number}")
        elif isinstance(value, Mapping) and isinstance(inner := table.setdefault(key, {}), dict):
            _change(inner, value, here)
        else:
            table[key] = value


def _tasks(study: Study, base: Table) -> list[Table]:
    tasks = [task.model_dump(mode="json", exclude_unset=True) for task in study.tasks]
    tasks = tasks or deepcopy(base.get("evaluation", {}).get("tasks", []))
    if not tasks:
        raise StudyError(f"study {study.name}: neither the study nor {study.base} has tasks; remedy: add [[tasks]]")
    if study.finetuning_seeds is None:
        if len(tasks) > 1:
            raise StudyError(f"study {study.name}: several tasks need the same seeds; remedy: set finetuning_seeds")
        return tasks
    seeds = {"seeds": list(study.finetuning_seeds)}
    return [task | seeds for task in tasks]


def fairness_faults(study: Study, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Yield a message for each arm that breaks the rule `equal`. `recipes`: the recipe of each arm, of any seed."""
    what = f"{study.equal} with its first model" if study.with_first_model else study.equal
    expected = amount(study, study.reference, recipes)
    if expected is None:
        yield (
            f'arm {study.reference}: {what} are not known before the training; remedy: equal = "minutes" with '
            'pretrain.budget_minutes, "steps" or "tokens" without it'
        )
        return
    for arm in study.compared_arms:
        found = amount(study, arm.name, recipes)
        if found == expected or arm.exempt:
            continue
        known = f"{found:,.10g}" if found is not None else "an unknown number of"
        yield (
            f"arm {arm.name} trains for {known} {what}, but the reference, {study.reference}, for {expected:,.10g}; "
            "remedy: change the arm, or state in its `exempt` why it may differ"
        )


def amount(study: Study, arm: str, recipes: Mapping[str, Recipe]) -> float | None:
    """What an arm spends of `equal`; None if that is not known before the training."""
    own = _spent(recipes[arm].pretrain, study.equal)
    first_model = recipes[arm].pretrain.init_from
    if own is None or not (study.with_first_model and first_model):
        return own
    continued = study.arm(arm).continues
    before = amount(study, continued, recipes) if continued else None
    return None if before is None else own + before


def _spent(section: PretrainRecipe, equal: str) -> float | None:
    if equal == "minutes":
        return section.budget_minutes
    if section.budget_minutes:
        return None
    if equal == "steps":
        return section.num_steps
    return sum(phase.num_steps * phase.global_batch_size * phase.max_seq_length for phase in section.phases)
