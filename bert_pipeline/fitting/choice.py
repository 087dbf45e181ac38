"""The recipe that `bert-pipeline init` writes: it fits a text, a machine and a time, with a reason for each value.

    choose(corpus, minutes)    survey the text, run the data stages on a sample, time training, choose
    text_settings(text)        what the text decides
    best_size(...)             the widest model among those with the lowest predicted losses in a time
    size_settings(...)         what the size and the time decide
    recipe_text(choice)        the recipe file, with the reasons as comments

In the same time, a wider model learns more from each token but sees fewer of them; loss.py predicts the outcome.
"""

import json
import math
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bert_pipeline.fitting.loss import INTERVAL, RELATION, worth
from bert_pipeline.fitting.scripts import Settings, script_settings
from bert_pipeline.fitting.shapes import HEAD_WIDTH, RATE_EXPONENT, encoder_weights, scaled
from bert_pipeline.fitting.text import SIMILARITY, Text, describe
from bert_pipeline.planning.hardware import ASSUMED_UTILIZATION, Hardware
from bert_pipeline.planning.survey import read_source
from bert_pipeline.planning.trial import measure_training, run_trial
from bert_pipeline.recipe import CorpusRecipe, Recipe
from bert_pipeline.recipe_files import load_recipe, recipe_files, to_toml
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.launch.budget import Pace, fit_to_budget
from bert_pipeline.training.model.flops import training_flops

BASE = "small"
"""The recipe whose settings are changed. Its rates were tuned at its width (recipes/LOG.md)."""
WIDTHS = tuple(range(2 * HEAD_WIDTH, 768 + 1, HEAD_WIDTH))
VOCABULARIES = {3e6: 8_000, 3e7: 16_000, 2e8: 24_000, math.inf: 30_522}
"""Pieces for texts of up to so many words. `small` has 16,000 for 9 million words; BERT has 30,522."""
BATCH_TOKENS = {1e8: 4_096, 1e9: 16_384, math.inf: 131_072}
"""Tokens per step (pairs times length) for up to so many tokens of training. Measured for the first; the others lie
between it and `crammed`."""
MAX_PASSES = 10
"""As google-research/bert. Further epochs draw new masks for the pairs of these passes."""
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
AS_WIDE = 0.03
"""The widest model is chosen whose predicted loss is at most 3 % above the lowest: for a task, size is worth more than
this difference (recipes/LOG.md)."""
AS_GOOD = 0.01
"""A share of the time is chosen if its predicted loss is at most 1 % above that of the whole time."""
SHORT_LENGTH, SHORT_DOCUMENT = 64, 40
"""Pairs of 64 tokens if half of the documents have at most 40 words: longer pairs would be mostly padding."""
HELDOUT_WORDS, HELDOUT_DOCUMENTS = 2e5, 20
"""Enough words for the held-out pairs that are measured (pretrain.heldout_pairs), and never fewer documents."""
REPEATED = 0.01
"""Share of near duplicates in the sample from which they are dropped."""
CHECKPOINT_SECONDS = 300
MEASUREMENTS = 6
"""Held-out measurements in training; each takes as long as 20 steps or so."""


@dataclass(frozen=True)
class Choice:
    recipe: Recipe
    reasons: Mapping[str, str]
    """By dotted key of the recipe."""
    notes: tuple[str, ...]
    """About the text and the time: the first lines of the file."""


@dataclass(frozen=True)
class Size:
    width: int
    seconds: float
    tokens: float
    """Tokens that training sees in this time."""
    loss: float
    """Predicted held-out MLM loss at the end."""


def choose(corpus: CorpusRecipe, minutes: float, task: str = "", hardware: Hardware | None = None) -> Choice:
    """Choose for `minutes` of pretraining on this machine, or on one GPU of a data sheet. `task` is for the evaluation.

    Raises SourceError if the text cannot be read or is too small, ProbeFailed if training cannot be timed here, and
    BudgetError if the minutes are too few for any training.
    """
    found = read_source(corpus)
    text = describe(found)
    base = load_recipe(recipe_files()[BASE])
    of_text = text_settings(text) | {"description": (f"{_about(text.words)} words, {minutes:g} minutes", "")}
    recipe = _changed(base, {"corpus": (corpus.model_dump(mode="json"), "")} | _budget(base, minutes) | of_text)
    [phase] = recipe.pretrain.phases
    paces: dict[int, Pace] = {}
    with tempfile.TemporaryDirectory(prefix="bert-pipeline-init-") as folder:
        trial = run_trial(recipe, found, Path(folder))
        if trial.tokenizer["vocab_size"] < recipe.tokenizer.vocab_size and found.is_whole:
            of_text["tokenizer.vocab_size"] = (trial.tokenizer["vocab_size"], "the text has no more pieces")
            recipe = _changed(recipe, of_text)
        load = trial.loads[phase.max_seq_length]
        one_pair = Load(load.tokens / load.pairs, load.squared_lengths / load.pairs, load.masked / load.pairs, 1)
        in_text = load.tokens * found.characters["train"] / found.share_read / trial.train_characters
        in_text *= 1 - text.near_duplicates if recipe.corpus.near_duplicate_threshold else 1

        @cache
        def flops_per_second(width: int) -> float:
            if hardware:
                return hardware.flops_per_second * ASSUMED_UTILIZATION
            at_width = scaled(recipe, width)
            pace = paces[width] = measure_training(at_width, Path(folder))
            seconds = pace.pair_seconds[str(phase.max_seq_length)] + pace.update_seconds / phase.global_batch_size
            return training_flops(at_width.model, recipe.tokenizer.vocab_size, one_pair) / seconds

        size = shortest_as_good(
            lambda share: best_size(recipe, one_pair, in_text, 60 * minutes * share, flops_per_second)
        )
    of_size = size_settings(size, in_text, phase.max_seq_length)
    sized = _changed(scaled(recipe, size.width), of_size)
    num_steps = _num_steps(sized, size, one_pair, paces.get(size.width))
    of_size |= _schedule(base, num_steps, size.seconds, 60 * minutes)
    if task:
        of_size["evaluation.tasks"] = _task(task, base, size.width)
        of_size["corpus.exclude_tasks"] = ("evaluation", "no example that scores the model may be part of its text")
    reasons = {key: reason for key, (_, reason) in (of_text | of_size).items() if reason}
    return Choice(_changed(sized, of_size), reasons, tuple(_notes(text, size, in_text)))


def text_settings(text: Text) -> Settings:
    """The keys that depend on the text alone."""
    of_script = script_settings(text.characters)
    heldout = max(0.002, min(0.05, HELDOUT_WORDS / text.words), min(0.2, HELDOUT_DOCUMENTS / text.documents))
    alphabet, _ = of_script.get("tokenizer.limit_alphabet", (0, ""))
    vocabulary = f"for {_about(text.words)} words; rarer pieces would be learnt badly"
    found: Settings = {
        "corpus.heldout_fraction": (float(f"{heldout:.1g}"), "enough to measure the held-out loss"),
        "tokenizer.vocab_size": (max(_up_to(VOCABULARIES, text.words), 2 * alphabet), vocabulary),
    }
    if text.near_duplicates >= REPEATED:
        reason = f"at least {text.near_duplicates:.0%} of the documents repeat an earlier one"
        found["corpus.near_duplicate_threshold"] = (SIMILARITY, reason)
    if text.one_sentence > 0.5:
        reason = f"{text.one_sentence:.0%} of the documents are a single sentence, but a pair needs two"
        found["nsp.objective"] = ("none", reason)
    if text.words_per_document <= SHORT_DOCUMENT:
        reason = f"half of the documents have at most {text.words_per_document:.0f} words"
        found["pretrain.phases.0.max_seq_length"] = (SHORT_LENGTH, reason)
    return found | of_script


def best_size(
    recipe: Recipe, one_pair: Load, in_text: float, seconds: float, flops_per_second: Callable[[int], float]
) -> Size:
    """The widest model whose predicted loss is AS_WIDE of the lowest. `in_text`: tokens of one pass over the text.

    `flops_per_second` is the speed of training at a width. It is called for few widths, because it takes a minute.
    """
    measured: dict[int, float] = {}

    def size(width: int) -> Size:
        nearest = min(measured, key=lambda known: abs(known - width))
        model = scaled(recipe, width).model
        flops = training_flops(model, recipe.tokenizer.vocab_size, one_pair)
        tokens = seconds * measured[nearest] / flops * one_pair.tokens
        return Size(width, seconds, tokens, RELATION.loss(encoder_weights(model), worth(tokens, in_text)))

    width = recipe.model.hidden_size
    while width not in measured:
        measured[width] = flops_per_second(width)
        sizes = [*map(size, WIDTHS)]
        lowest = min(each.loss for each in sizes)
        width = max(each.width for each in sizes if each.loss <= (1 + AS_WIDE) * lowest)
    guessing = math.log(recipe.tokenizer.vocab_size)
    return replace(size(width), loss=min(size(width).loss, guessing))


def shortest_as_good(size_in: Callable[[float], Size]) -> Size:
    """Return the best model size for the shortest sufficient training time.

    A share in SHARES is enough if its predicted loss exceeds that of the whole time by at most the fraction AS_GOOD.
    `size_in(share)` returns the best size for a share of the time.
    """
    whole = size_in(1)
    return next(each for each in map(size_in, SHARES) if each.loss <= (1 + AS_GOOD) * whole.loss)


def size_settings(size: Size, in_text: float, max_seq_length: int) -> Settings:
    """The keys that depend on the size, and the loss to expect."""
    passes, batch_tokens = size.tokens / in_text, _up_to(BATCH_TOKENS, size.tokens)
    steps = size.tokens / batch_tokens
    every = _round_steps(CHECKPOINT_SECONDS / size.seconds * steps)
    of_width = (
        f"{size.seconds / 60:.3g} minutes are about {_about(size.tokens)} tokens for this width, with a predicted "
        f"held-out MLM loss of {size.loss:.2f}: the widest model within {AS_WIDE:.0%} of the lowest predicted loss"
    )
    low, high = (round(size.loss * (1 + side * INTERVAL), 2) for side in (-1, 1))
    return {
        "expected_mlm_loss": ([low, high], "on held-out text; follows from the size of the model and its tokens"),
        "nsp.dupe_factor": (
            min(MAX_PASSES, max(1, math.ceil(passes))),
            f"training reads the text {passes:.2g} times; each pass has other pairs and masks",
        ),
        "model.hidden_size": (size.width, of_width),
        "pretrain.eval_every": (_round_steps(steps / MEASUREMENTS), ""),
        "pretrain.checkpoint_every": (every, "about every five minutes"),
        "pretrain.phases.0.global_batch_size": (batch_tokens // max_seq_length, f"for {_about(size.tokens)} tokens"),
    }


def recipe_text(choice: Choice, path: str) -> str:
    """The recipe file: notes, then the keys that differ from their defaults, each reason as a comment above its key.

    `path`: corpus.path as the file names it.
    """
    table = choice.recipe.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
    table["corpus"]["path"] = path
    lines = [line for note in choice.notes for line in _comment(note)]
    places: Counter[str] = Counter()
    section = ""
    for line in to_toml(table).splitlines():
        if line.startswith("[["):
            name = line.strip("[]")
            section = f"{name}.{places[name]}."
            places[name] += 1
        elif line.startswith("["):
            section = line.strip("[]") + "."
        elif reason := choice.reasons.get(section + line.partition(" = ")[0]):
            lines += _comment(reason)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _budget(base: Recipe, minutes: float) -> Settings:
    """The single phase of the recipe as the whole of a budget of minutes."""
    [phase] = base.pretrain.phases
    share = {"num_steps": 0, "warmup_steps": None, "budget_fraction": 1.0, "warmup_fraction": 0.0}
    return {
        "pretrain.budget_minutes": (minutes, ""),
        "pretrain.phases": ([phase.model_dump(mode="json") | share], ""),
        "evaluation.tasks": ([], ""),
    }


def _num_steps(recipe: Recipe, size: Size, one_pair: Load, pace: Pace | None) -> int:
    """Steps that fit into the time, with held-out measurements and checkpoints if the pace is known."""
    [phase] = recipe.pretrain.phases
    if pace is None:
        return max(1, round(size.tokens / one_pair.tokens / phase.global_batch_size))
    return fit_to_budget(recipe.pretrain.model_copy(update={"budget_minutes": size.seconds / 60}), pace).num_steps


def _schedule(base: Recipe, num_steps: int, seconds: float, given_seconds: float) -> Settings:
    """Steps instead of a budget of minutes, so that the recipe gives the same model again."""
    [of_base] = base.pretrain.phases
    warmup = round(num_steps * (of_base.warmup_steps or 0) / of_base.num_steps)
    shorter = "" if seconds == given_seconds else "; a longer training would not lower the loss on so little text"
    return {
        "pretrain.budget_minutes": (None, ""),
        "pretrain.phases.0.budget_fraction": (None, ""),
        "pretrain.phases.0.warmup_fraction": (None, ""),
        "pretrain.phases.0.num_steps": (num_steps, f"{seconds / 60:.3g} minutes{shorter}"),
        "pretrain.phases.0.warmup_steps": (warmup, ""),
    }


def _task(name: str, base: Recipe, width: int) -> tuple[Any, str]:
    [task] = base.evaluation.tasks
    assert isinstance(task.learning_rate, float)
    rate = float(f"{task.learning_rate * (base.model.hidden_size / width) ** RATE_EXPONENT:.2g}")
    return [task.model_dump(mode="json", exclude_none=True) | {"name": name, "learning_rate": rate}], ""


def _notes(text: Text, size: Size, in_text: float) -> Iterator[str]:
    languages = ", ".join(f"{code or 'uncertain'} {share:.0%}" for code, share in [*text.languages.items()][:3])
    yield (
        f"The text: about {_about(text.words)} words in {text.documents:,.0f} documents, half of them with at most "
        f"{text.words_per_document:,.0f} words; languages of the documents: {languages}."
    )
    if size.tokens > MAX_PASSES * in_text:
        yield (
            "This is little text for training from scratch. If there is a general BERT for its language, compare with "
            "the recipe `continual`, which trains that model further."
        )


def _changed(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with other values at dotted keys."""
    table = recipe.model_dump(mode="json")
    for key, (value, _) in settings.items():
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        section: Any = table
        for part in path:
            section = section[part]
        section[last] = value
    return Recipe.model_validate_json(json.dumps(table))


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, width=110)]


def _about(count: float) -> str:
    """Two digits of a number, in words where it is large."""
    if count < 1e6:
        return f"{float(f'{count:.2g}'):,.0f}"
    return f"{count / 1e6:,.0f} million" if count >= 1e7 else f"{count / 1e6:.2g} million"


def _round_steps(steps: float) -> int:
    return max(50, round(steps / 50) * 50)


def _up_to(table: Mapping[float, int], amount: float) -> int:
    return next(value for limit, value in table.items() if amount <= limit)
