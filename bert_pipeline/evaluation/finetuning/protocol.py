"""How a task is run: the settings to compare and the seeds. A value that the recipe leaves out comes from the task."""

import itertools
import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

from bert_pipeline.evaluation.tasks.task import Task, TaskError
from bert_pipeline.recipe import Count, Fraction, Positive, Section, Seed, TaskRecipe

EncoderWeights = Literal["pretrained", "random_init"]
SCORED = ("dev", "test")
FIRST_POSITION_AFTER_PAD = {
    *("camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}
"""Model types of transformers whose first piece has the position pad_token_id + 1 (fairseq numbers them so), so that
many rows of the position embedding are never used."""


class Setting(NamedTuple):
    learning_rate: float
    batch_size: int
    num_epochs: int

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps of one run."""
        return self.num_epochs * math.ceil(num_examples / self.batch_size)


class Run(NamedTuple):
    """One fine-tuning: which weights the encoder starts from, the setting and the seed."""

    encoder: EncoderWeights
    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        rate, batch, epochs = self.setting
        return f"{self.encoder}-lr{rate:g}-bs{batch}-ep{epochs}-seed{self.seed}"


class Protocol(Section):
    """How one task is run: the task's profile, with the values of the recipe in place of its own."""

    learning_rates: tuple[Positive, ...]
    batch_sizes: tuple[Count, ...]
    nums_epochs: tuple[Count, ...]
    """If this makes several settings, every combination runs with the first seed, and the best on dev is chosen."""
    max_seq_length: Count
    warmup_fraction: Fraction
    weight_decay: float
    seeds: tuple[Seed, ...]

    @property
    def settings(self) -> list[Setting]:
        """Every combination; the number of epochs varies fastest."""
        return [Setting(*each) for each in itertools.product(self.learning_rates, self.batch_sizes, self.nums_epochs)]

    @property
    def num_settings(self) -> int:
        return len(self.settings)


def protocol(task: Task, settings: TaskRecipe, max_position_embeddings: int | None = None) -> Protocol:
    """Merge the recipe's values with the task's profile; inputs are at most as long as the model's positions.

    Raises TaskError if the recipe sets longer inputs than `max_position_embeddings`, an empty list or a value twice.
    """
    profile = task.quick if settings.profile == "quick" else task.published
    seeds = (1,) if settings.profile == "quick" else tuple(range(1, task.published.num_seeds + 1))
    chosen: dict[str, tuple] = {"seeds": seeds if settings.seeds is None else settings.seeds}
    for name in ("learning_rate", "batch_size", "num_epochs"):
        value = getattr(settings, name)
        value = getattr(profile, name) if value is None else value
        chosen[name] = value if isinstance(value, tuple) else (value,)
    for name, values in chosen.items():
        if not values or len(set(values)) < len(values):
            raise TaskError(f"{task.name}: {name} is {list(values)}; remedy: at least one value, and no value twice")
    limit = max_position_embeddings or task.max_seq_length
    if settings.max_seq_length and max_position_embeddings and settings.max_seq_length > limit:
        raise TaskError(
            f"{task.name}: max_seq_length is {settings.max_seq_length}, but the model has {limit} positions; "
            f"remedy: remove max_seq_length, or set at most {limit}"
        )
    return Protocol(
        learning_rates=chosen["learning_rate"],
        batch_sizes=chosen["batch_size"],
        nums_epochs=chosen["num_epochs"],
        max_seq_length=settings.max_seq_length or min(task.max_seq_length, limit),
        warmup_fraction=settings.warmup_fraction,
        weight_decay=settings.weight_decay,
        seeds=chosen["seeds"],
    )


def max_positions(model_dir: Path) -> int:
    """Return the longest input of a model, in pieces. Raises FileNotFoundError if the directory has no config.json, and
    ValueError if config.json states no length.
    """
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{model_dir} has no config.json; remedy: name a Hugging Face model directory (config.json, "
            "model.safetensors, tokenizer files)"
        ) from None
    stated = config.get("max_position_embeddings")
    if not isinstance(stated, int):
        raise ValueError(
            f"{model_dir}: config.json of this {config.get('model_type')} has max_position_embeddings = {stated!r}; "
            "remedy: write the longest input of the model there"
        )
    return stated - (config.get("pad_token_id", 1) + 1 if config.get("model_type") in FIRST_POSITION_AFTER_PAD else 0)
