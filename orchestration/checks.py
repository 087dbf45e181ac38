"""The gates: asset checks on an artifact's facts that must pass before anything is built from it.

A check is a function of (facts, recipe) that yields one sentence per fault. Its docstring is its description in
Dagster's UI. In the graph, checks block the assets downstream. Dagster blocks within one run only, so
`registered_model` evaluates all of them again. The checks in WARNINGS only warn: they block nothing.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator

import dagster as dg

from bert_pipeline.data.tokenizer.accents import MAX_STRIPPED_FRACTION, REMEDY, describe_stripped
from bert_pipeline.formats.tokenizer import SPECIAL_TOKENS
from bert_pipeline.recipe import Recipe
from bert_pipeline.stages import EVALUATION, EXCLUDED_SPLITS
from bert_pipeline.store.artifact import Artifact, Facts

Check = Callable[[Facts, Recipe], Iterator[str]]

MAX_UNK_FRACTION = 0.01
"""Highest share of [UNK] in held-out tokens. WordPiece falls back to characters, so only unknown ones give [UNK]."""
MAX_FORCED_FRACTION = 0.9
"""Highest share of pairs that are random because their text is one sentence. English: 0.1 to 0.3, 0.8 at 32 tokens."""
MAX_TRUNCATED_FRACTION = 0.97
"""Highest share of shortened pairs. A pair takes sentences until it is full, so English text has 0.6 to 0.9 at 128."""
MAX_TRUNCATED_SEGMENT_FRACTION = 0.5
"""The same with objective = "none", where only a sentence longer than a row is shortened; English text: below 0.15."""
SHARE_TOLERANCE = 0.03
"""Allowed difference between a configured and a measured share of masks: rounding per row, chance in small corpora."""
MAX_LOGIT_DIFFERENCE = 1e-4
"""Allowed between the trained model and its export in plain transformers, fp32 on one device."""
MIN_ACTIVE_UNITS = 0.01
"""Lowest share of feed-forward units that are active on a token. Measured (recipes/LOG.md): 0.12 to 0.32 in good
models, 0.00 in one that resisted fine-tuning."""


def corpus_is_not_empty(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The training part and the held-out part each have documents and sentences."""
    for name in ("train_documents", "heldout_documents", "train_sentences", "heldout_sentences"):
        if not facts[name]:
            yield f"{name} is 0"


def few_records_rejected(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The share of broken records is at most `corpus.max_rejected_fraction`; `rejected.jsonl` lists them."""
    rejected, records = facts["rejected_documents"], facts["records"]
    limit = recipe.corpus.max_rejected_fraction
    if rejected > limit * records:
        yield (
            f"{rejected} of {records} records are rejected, corpus.max_rejected_fraction is {limit}: "
            f"{facts['rejected_by_reason']}"
        )


def every_record_is_accounted_for(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Each record that was read is a document of the corpus, was dropped for a reason, or was rejected."""
    documents = facts["train_documents"] + facts["heldout_documents"]
    dropped, rejected = facts["dropped_documents"], facts["rejected_documents"]
    if facts["records"] != documents + dropped + rejected:
        yield (
            f"{facts['records']:,} records were read, but {documents:,} documents, {dropped:,} dropped and "
            f"{rejected:,} rejected records make {documents + dropped + rejected:,}"
        )
    for name in ("dropped", "rejected"):
        reasons = facts[f"{name}_by_reason"]
        if sum(reasons.values()) != facts[f"{name}_documents"]:
            yield f"{name}_documents is {facts[f'{name}_documents']:,}, but their reasons make {reasons}"


def every_task_was_searched(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The corpus was searched for the text of each task of the recipe."""
    for task in recipe.evaluation.tasks:
        if not any(split["examples"] for split in facts["tasks"].get(task.name, {}).values()):
            yield f"the corpus was searched for no example of {task.name}"


def excluded_text_is_not_in_the_corpus(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """No document contains a dev or test example of the tasks in `corpus.exclude_tasks`."""
    chosen = recipe.corpus.exclude_tasks
    for task in [each.name for each in recipe.evaluation.tasks] if chosen == "evaluation" else chosen:
        for split in EXCLUDED_SPLITS:
            if held := facts["tasks"].get(task, {}).get(split, {}).get("examples_held"):
                yield f"the corpus contains {held:,} {split} examples of {task}, which corpus.exclude_tasks excludes"


def special_tokens_come_first(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """[PAD], [UNK], [CLS], [SEP] and [MASK] have the ids 0 to 4, in this order."""
    expected = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    if facts["special_token_ids"] != expected:
        yield f"special_token_ids are {facts['special_token_ids']}, not {expected}"


def vocabulary_is_as_large_as_asked(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The vocabulary has `tokenizer.vocab_size` entries."""
    if facts["vocab_size"] != recipe.tokenizer.vocab_size:
        yield f"vocab_size is {facts['vocab_size']}, tokenizer.vocab_size is {recipe.tokenizer.vocab_size}"


def few_unknown_pieces(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """At most 1 % of the tokens in held-out text are [UNK]."""
    share = facts["heldout_unk_fraction"]
    if not share <= MAX_UNK_FRACTION:
        cause = ""
        if needed := facts.get("needed_alphabet"):
            cause = (
                f"; {facts['cut_words_fraction']:.2%} of the training words contain a character beyond "
                f"tokenizer.limit_alphabet = {recipe.tokenizer.limit_alphabet}; remedy: set it to {needed} or more, "
                f"and tokenizer.vocab_size to more than {facts['needed_alphabet_pieces']}"
            )
        yield f"{share:.2%} of the held-out tokens are [UNK], the limit is {MAX_UNK_FRACTION:.0%}{cause}"


def few_letters_stripped(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Stripping accents, which BERT does with lowercase = true, changes at most 1 % of the letters of held-out text, or
    `tokenizer.strip_accents` is set. It damages Korean, Japanese, Thai, the scripts of India, Vietnamese and others.
    """
    share = facts.get("heldout_stripped_fraction", 0.0)  # older artifacts lack it
    if recipe.tokenizer.strip_accents is None and not share <= MAX_STRIPPED_FRACTION:
        remedy = "start from a model that keeps accents" if recipe.pretrain.init_from else REMEDY
        yield f"{describe_stripped(share, facts['stripped_examples'])}; remedy: {remedy}"


def labels_are_balanced(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The share of random second segments is `nsp.nsp_prob`, among pairs that were not forced to be random."""
    nsp = recipe.nsp
    if nsp.objective == "none":
        return
    drawn_freely = nsp.objective == "nsp" and not nsp.balance
    name, expected = ("free_random_fraction", nsp.nsp_prob) if drawn_freely else ("random_fraction", 0.5)
    for length, measured in _by_length(facts):
        pairs = measured["train_pairs"] * (1 - measured["forced_random_fraction"] if drawn_freely else 1)
        tolerance = 0.01 + 4 * math.sqrt(expected * (1 - expected) / max(pairs, 1))  # four standard errors
        if not abs(measured[name] - expected) <= tolerance:
            yield f"{length}: {name} is {measured[name]:.4f}, expected {expected} within {tolerance:.4f}"


def few_pairs_forced(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """At most 90 % of the pairs get a random second segment because their text is a single sentence. If nearly all do,
    the next-sentence label teaches nothing: the documents have one sentence each, or were not split into sentences.
    """
    for length, measured in _by_length(facts):
        if not (share := measured["forced_random_fraction"]) <= MAX_FORCED_FRACTION:
            yield (
                f"{length}: {share:.2%} of the pairs are random because their text is a single sentence, the limit is "
                f"{MAX_FORCED_FRACTION:.0%}; remedy: see in raw_corpus whether sentences are split (if not, "
                'corpus.sentence_splitter = "lines" with one sentence per line); if the documents have one sentence '
                'each, nsp.objective = "none"; if sentences are as long as a row, a larger max_seq_length'
            )


def few_pairs_truncated(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """At most 97 % of the pairs are shortened to max_seq_length (50 % with objective = "none"): else text is lost
    because sentences are longer than a row, or were not split.
    """
    limit = MAX_TRUNCATED_SEGMENT_FRACTION if recipe.nsp.objective == "none" else MAX_TRUNCATED_FRACTION
    for length, measured in _by_length(facts):
        if not (share := measured["truncated_fraction"]) <= limit:
            yield (
                f"{length}: {share:.2%} of the pairs are truncated, the limit is {limit:.0%}; remedy: see in "
                'raw_corpus whether sentences are split (if not, corpus.sentence_splitter = "lines" with one sentence '
                "per line); if they are long, a larger max_seq_length"
            )


def masks_are_as_asked(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The share of masked tokens is `masking.masked_lm_prob`, or less if `max_predictions_per_seq` limits it."""
    expected = recipe.masking.masked_lm_prob
    for length, measured in _by_length(facts):
        share = measured["masked_fraction"]
        capped = 0 < recipe.masking.max_predictions_per_seq < expected * int(length.removeprefix("len_"))
        if not (0 < share <= expected + SHARE_TOLERANCE and (capped or share >= expected - SHARE_TOLERANCE)):
            yield f"{length}: masked_fraction is {share:.4f}, masking.masked_lm_prob is {expected}"


def masks_are_80_10_10(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Of the masked tokens 80 % are [MASK], 10 % random, 10 % kept (Devlin et al. 2019, section 3.1)."""
    for length, measured in _by_length(facts):
        for name, share in {"mask_token_fraction": 0.8, "random_token_fraction": 0.1, "kept_fraction": 0.1}.items():
            if not abs(measured[name] - share) <= SHARE_TOLERANCE:
                yield f"{length}: {name} is {measured[name]:.4f}, expected {share} within {SHARE_TOLERANCE}"


def losses_are_finite(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Every measured loss is finite. If not, the training diverged: lower the learning rate."""
    losses = {"first_loss": facts["first_loss"], "last_loss": facts["last_loss"]}
    for when in ("heldout_before", "heldout_after"):
        losses |= {f"{when}/{name}": value for name, value in facts[when].items() if name.endswith("loss")}
    for name, loss in losses.items():
        if not math.isfinite(loss):
            yield f"{name} is {loss}"


def loss_fell(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The training loss and the held-out MLM loss are lower at the end of training than at its start."""
    held_out = (facts["heldout_before"]["mlm_loss"], facts["heldout_after"]["mlm_loss"])
    for what, (before, after) in {
        "training loss": (facts["first_loss"], facts["last_loss"]),
        "held-out mlm_loss": held_out,
    }.items():
        if not after < before:
            yield f"{what} was {before:.4f} at the start and is {after:.4f} at the end"


def export_is_exact(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The exported directory, loaded with plain transformers, gives the same logits as the trained model."""
    if not facts["max_logit_difference"] < MAX_LOGIT_DIFFERENCE:
        yield f"max_logit_difference is {facts['max_logit_difference']}, the limit is {MAX_LOGIT_DIFFERENCE}"


def units_are_active(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """In each layer, at least 1 % of the feed-forward units have a positive input on a token of held-out text. If not,
    the layer adds almost nothing, and fine-tuning can hardly change it.
    """
    decay = "muon_weight_decay" if recipe.pretrain.optimizer == "muon" else "weight_decay"
    for number, share in enumerate(facts.get("active_units_by_layer", ())):  # older artifacts lack it
        if not share >= MIN_ACTIVE_UNITS:
            yield (
                f"layer {number}: {share:.2%} of the feed-forward units are active, expected at least "
                f"{MIN_ACTIVE_UNITS:.0%}; remedy: a higher pretrain.{decay} or a lower learning rate"
            )


def losses_are_losses(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Held-out losses are finite and not negative, accuracies are between 0 and 1."""
    for name, score in facts["heldout"].items():
        highest = math.inf if name.endswith("loss") else 1.0
        if not (math.isfinite(score) and 0.0 <= score <= highest):
            yield f"heldout/{name} is {score}"


def scores_are_scores(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Every mean, deviation and bound is finite and between -1 and 1, and there were gold labels to score against."""
    if not facts["gold_size"]:
        yield f"gold_size is 0 {facts['unit']}"
    for encoder in ("pretrained", "random_init") if recipe.evaluation.baseline else ("pretrained",):
        for name, score in facts[encoder].items():
            open_ended = name.startswith("mse")  # mean squared error, in the units of the similarity scores
            if score is not None and not (math.isfinite(score) and (open_ended or abs(score) <= 1.0)):
                yield f"{encoder}/{name} is {score}"


def every_task_was_scored(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """Each task of the recipe has its scores."""
    for task in recipe.evaluation.tasks:
        if task.name not in facts["tasks"]:
            yield f"{task.name} has no scores"


def files_are_there(facts: Facts, recipe: Recipe) -> Iterator[str]:
    """The files of the version are complete and unchanged in MLflow's artifact store, so it can be loaded."""
    yield from facts["faults"]


CHECKS: dict[str, tuple[Check, ...]] = {
    "raw_corpus": (corpus_is_not_empty, few_records_rejected, every_record_is_accounted_for),
    "contamination": (every_task_was_searched, excluded_text_is_not_in_the_corpus),
    "tokenizer": (special_tokens_come_first, vocabulary_is_as_large_as_asked, few_unknown_pieces, few_letters_stripped),
    "nsp_dataset": (labels_are_balanced, few_pairs_forced, few_pairs_truncated),
    "masked_dataset": (masks_are_as_asked, masks_are_80_10_10),
    "pretrained_checkpoint": (losses_are_finite, loss_fell, export_is_exact, units_are_active),
    "evaluations": (losses_are_losses, every_task_was_scored),
    "registered_model": (files_are_there,),
    "champion": (files_are_there,),
}

WARNINGS: tuple[Check, ...] = (few_letters_stripped, few_pairs_truncated, units_are_active)
"""Checks whose failure is shown as a warning and blocks nothing."""


def checks_of(kind: str) -> tuple[Check, ...]:
    return (scores_are_scores,) if kind.startswith(EVALUATION) else CHECKS.get(kind, ())


def asset_key(kind: str) -> dg.AssetKey:
    """The asset key of a kind: `evaluation/GAD` is a key of two parts."""
    return dg.AssetKey(kind.split("/"))


class GateClosed(RuntimeError):
    """An artifact that failed a check and must not be registered."""


def check_specs(kind: str, recipes: dg.PartitionsDefinition) -> list[dg.AssetCheckSpec]:
    """The gates of an asset, partitioned by recipe: the artifact of one recipe does not affect another's gates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specifying a partitions_def on an AssetCheckSpec", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                check.__name__,
                asset=asset_key(kind),
                description=inspect.getdoc(check),
                blocking=check not in WARNINGS,
                partitions_def=recipes,
            )
            for check in checks_of(kind)
        ]


def check_results(made: Artifact, recipe: Recipe) -> list[dg.AssetCheckResult]:
    return results_of(made.kind, made.facts, recipe)


def results_of(kind: str, facts: Facts, recipe: Recipe) -> list[dg.AssetCheckResult]:
    results = []
    for check in checks_of(kind):
        faults = list(check(facts, recipe))
        description = "; ".join(faults) or None
        results.append(
            dg.AssetCheckResult(
                asset_key=asset_key(kind),
                check_name=check.__name__,
                passed=not faults,
                severity=dg.AssetCheckSeverity.WARN if check in WARNINGS else dg.AssetCheckSeverity.ERROR,
                description=description,
            )
        )
    return results


def assert_all_pass(artifacts: dict[str, Artifact], recipe: Recipe) -> None:
    """Raise GateClosed with every fault if a blocking check of any artifact fails."""
    faults = [
        f"{kind} ({made.path}): {check.__name__}: {fault}"
        for kind, made in artifacts.items()
        for check in checks_of(kind)
        if check not in WARNINGS
        for fault in check(made.facts, recipe)
    ]
    if faults:
        raise GateClosed("\n".join(faults))


def _by_length(facts: Facts) -> Iterator[tuple[str, Facts]]:
    """The facts of each sequence length: ("len_128", {...}), ..."""
    return ((name, value) for name, value in facts.items() if name.startswith("len_"))
