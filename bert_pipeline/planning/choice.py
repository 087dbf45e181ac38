"""The recipe that `bert-pipeline init` writes: what fits a text, a machine and a time, each value with its reason.

    choose(base, minutes)      survey the text, run the data stages on a sample, time training, choose
    best_width(...)            the width with the lowest predicted loss
    recipe_text(choice)        the recipe file, with the reasons as comments

A wider model learns more from each token but sees fewer of them; loss.py predicts which effect is larger.
"""

import json
import math
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_pipeline.planning.hardware import ASSUMED_UTILIZATION, Hardware
from bert_pipeline.planning.loss import INTERVAL, RELATION
from bert_pipeline.planning.plan import measure_training
from bert_pipeline.planning.scripts import script_settings
from bert_pipeline.planning.shapes import HEAD_WIDTH, encoder_weights, scaled
from bert_pipeline.planning.survey import Survey, read_source
from bert_pipeline.planning.trial import run_trial
from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import to_toml
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.model.flops import training_flops

WIDTHS = tuple(range(2 * HEAD_WIDTH, 768 + 1, HEAD_WIDTH))
VOCABULARIES = {3e6: 8_000, 3e7: 16_000, 2e8: 24_000, math.inf: 30_522}
"""Pieces for texts of up to so many words. `small` has 16,000 for 9 million words; BERT has 30,522."""
BATCHES = {1e8: 32, 1e9: 128, math.inf: 1024}
"""Pairs per step for up to so many tokens of training. Measured for 32; the others are between it and `crammed`."""
MAX_PASSES = 10
"""As google-research/bert. Later epochs draw new masks for the pairs of these passes."""


@dataclass(frozen=True)
class Choice:
    recipe: Recipe
    reasons: Mapping[str, str]
    """By dotted key of the recipe."""
    loss: float
    """Predicted held-out MLM loss at the end."""

    @property
    def interval(self) -> tuple[float, float]:
        return self.loss * (1 - INTERVAL), self.loss * (1 + INTERVAL)


def best_width(base: Recipe, one_pair: Load, seconds: float, rate: Callable[[int], float]) -> tuple[int, float, float]:
    """The width with the lowest predicted loss, the tokens that it sees in the time, and that loss.

    `rate`: FLOP per second of training at a width. It is called for few widths, because it may take a minute.
    """
    measured: dict[int, float] = {}

    def predicted(width: int) -> tuple[float, float]:
        nearest = min(measured, key=lambda known: abs(known - width))
        model = scaled(base, width).model
        flops = training_flops(model, base.tokenizer.vocab_size, one_pair)
        tokens = seconds * measured[nearest] / flops * one_pair.tokens
        return RELATION.loss(encoder_weights(model), tokens), tokens

    width = base.model.hidden_size
    while width not in measured:
        measured[width] = rate(width)
        width = min(WIDTHS, key=lambda each: predicted(each)[0])
    loss, tokens = predicted(width)
    return width, tokens, loss


def choose(base: Recipe, minutes: float, hardware: Hardware | None = None) -> Choice:
    """Choose for `minutes` of pretraining on this machine, or on one GPU of a data sheet.

    `base`: a packaged fast recipe of one phase, with the corpus and the tasks of the user. Raises SourceError if the
    text cannot be read or is too small, and ProbeFailed if training cannot be timed here.
    """
    found = read_source(base.corpus)
    words = _words(found)
    vocabulary = _up_to(VOCABULARIES, words)
    of_script = script_settings(_sample_text(found))
    changes = {key: value for key, (value, _) in of_script.items()} | {
        "tokenizer.vocab_size": vocabulary,
        "nsp.dupe_factor": 1,
        "pretrain.budget_minutes": minutes,
    }
    recipe = _changed(_with_budget(base), changes)
    with tempfile.TemporaryDirectory(prefix="bert-pipeline-init-") as folder:
        trial = run_trial(recipe, found, Path(folder))
        [length] = trial.loads
        load = trial.loads[length]
        one_pair = Load(load.tokens / load.pairs, load.squared_lengths / load.pairs, load.masked / load.pairs, 1.0)

        def rate(width: int) -> float:
            if hardware:
                return hardware.flops_per_second * ASSUMED_UTILIZATION
            at_width = scaled(recipe, width)
            pace = measure_training(at_width, Path(folder))
            [phase] = at_width.pretrain.phases
            seconds = pace.pair_seconds[str(length)] + pace.update_seconds / phase.global_batch_size
            return training_flops(at_width.model, vocabulary, one_pair) / seconds

        width, tokens, loss = best_width(recipe, one_pair, 60 * minutes, rate)
    one_pass = load.tokens * found.characters["train"] / found.share_read / trial.train_characters
    passes = min(MAX_PASSES, max(1, math.ceil(tokens / one_pass)))
    batch = _up_to(BATCHES, tokens)
    chosen = _changed(scaled(recipe, width), {"nsp.dupe_factor": passes, "pretrain.phases.0.global_batch_size": batch})
    low, high = loss * (1 - INTERVAL), loss * (1 + INTERVAL)
    reasons = {key: reason for key, (_, reason) in of_script.items()} | {
        "tokenizer.vocab_size": f"for {words / 1e6:,.1f} million words; more pieces would be too rare to be trained",
        "nsp.dupe_factor": f"training reads the text {tokens / one_pass:.1f} times, each time in other pairs",
        "model.hidden_size": (
            f"{minutes:g} minutes are {tokens / 1e6:,.0f} million tokens for this width; the predicted held-out MLM "
            f"loss is {loss:.2f} ({low:.2f} to {high:.2f}), lower than for other widths"
        ),
        "pretrain.phases.0.global_batch_size": f"for {tokens / 1e6:,.0f} million tokens",
    }
    return Choice(chosen, reasons, loss)


def recipe_text(choice: Choice) -> str:
    """The recipe file: keys that differ from their defaults, each reason as a comment above its key."""
    table = choice.recipe.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    lines, path = [], ""
    places: Counter[str] = Counter()
    for line in to_toml(table).splitlines():
        if line.startswith("[["):
            name = line.strip("[]")
            path = f"{name}.{places[name]}."
            places[name] += 1
        elif line.startswith("["):
            path = line.strip("[]") + "."
        elif reason := choice.reasons.get(path + line.partition(" = ")[0]):
            lines += [f"# {part}" for part in textwrap.wrap(reason, width=110)]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _words(found: Survey) -> float:
    """Words of the whole text, estimated from the sample."""
    sampled = sum(len(text.split()) for document in found.sample for text in document.texts)
    return sampled * sum(found.characters.values()) / found.share_read / max(found.sample_characters, 1)


def _sample_text(found: Survey, characters: int = 1_000_000) -> str:
    parts: list[str] = []
    size = 0
    for document in found.sample:
        parts += document.texts
        size += sum(map(len, document.texts))
        if size >= characters:
            break
    return "\n".join(parts)


def _with_budget(base: Recipe) -> Recipe:
    """The recipe with its single phase as a share of a budget of minutes."""
    [phase] = base.pretrain.phases
    warmup = (phase.warmup_steps or 0) / phase.num_steps
    budget = {"num_steps": 0, "warmup_steps": None, "budget_fraction": 1.0, "warmup_fraction": round(warmup, 3)}
    return _changed(base, {"pretrain.budget_minutes": 1.0, "pretrain.phases": [phase.model_dump(mode="json") | budget]})


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values at dotted keys."""
    table = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        section: Any = table
        for part in path:
            section = section[part]
        section[last] = value
    return Recipe.model_validate_json(json.dumps(table))


def _up_to(table: Mapping[float, int], amount: float) -> int:
    return next(value for limit, value in table.items() if amount <= limit)
