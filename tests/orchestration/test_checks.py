import copy
import math

import dagster as dg
import pytest

from bert_pipeline.recipe import Recipe
from bert_pipeline.store.artifact import Artifact
from orchestration import checks

RECIPE = Recipe.model_validate_json(
    """{"name": "r", "corpus": {"source": "sample", "max_rejected_fraction": 0.1, "exclude_tasks": "evaluation"},
        "tokenizer": {"vocab_size": 3000},
        "evaluation": {"tasks": [{"name": "sample-chem"}]}}"""
)
HELDOUT = {"mlm_loss": 8.0, "mlm_accuracy": 0.01, "nsp_loss": 0.69, "nsp_accuracy": 0.5}
PAIRS = {
    "train_pairs": 100_000,
    "random_fraction": 0.58,
    "forced_random_fraction": 0.16,
    "free_random_fraction": 0.5,
    "truncated_fraction": 0.75,
}
SCORES = {"score_mean": 0.8, "score_sd": None, "strict_f1_mean": 0.7, "low": -0.1, "high": 0.9}
TASK = {"gold_size": 547, "unit": "entities", "pretrained": SCORES, "random_init": SCORES}
GOOD = {
    "raw_corpus": {
        "train_documents": 90,
        "heldout_documents": 10,
        "train_sentences": 900,
        "heldout_sentences": 100,
        "records": 105,
        "rejected_documents": 2,
        "rejected_by_reason": {"no text": 2},
        "dropped_documents": 3,
        "dropped_by_reason": {"duplicate text": 2, "retracted": 1},
    },
    "contamination": {"tasks": {"sample-chem": {"dev": {"examples": 9, "examples_held": 0}}}},
    "tokenizer": {
        "vocab_size": 3000,
        "special_token_ids": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4},
        "heldout_unk_fraction": 0.001,
        "heldout_stripped_fraction": 0.0001,
        "stripped_examples": [["é", "e"]],
    },
    "nsp_dataset": {"len_128": PAIRS, "example": "[CLS] a [SEP]"},
    "masked_dataset": {
        "len_128": {
            "masked_fraction": 0.15,
            "mask_token_fraction": 0.8,
            "random_token_fraction": 0.1,
            "kept_fraction": 0.1,
        },
        "example": "[CLS] [MASK] [SEP]",
    },
    "pretrained_checkpoint": {
        "first_loss": 8.7,
        "last_loss": 3.0,
        "heldout_before": HELDOUT,
        "heldout_after": HELDOUT | {"mlm_loss": 2.5},
        "max_logit_difference": 1e-6,
        "active_units_by_layer": [0.3, 0.12],
    },
    "evaluation/sample-chem": TASK,
    "evaluations": {"heldout": HELDOUT, "tasks": {"sample-chem": TASK}},
    "registered_model": {"faults": []},
    "champion": {"faults": []},
}
BAD = [
    ("raw_corpus", "heldout_documents", 0, "corpus_is_not_empty"),
    ("raw_corpus", "rejected_documents", 30, "few_records_rejected"),
    ("raw_corpus", "records", 106, "every_record_is_accounted_for"),
    ("raw_corpus", "dropped_documents", 2, "every_record_is_accounted_for"),
    ("raw_corpus", "dropped_by_reason/retracted", 2, "every_record_is_accounted_for"),
    ("raw_corpus", "rejected_by_reason", {}, "every_record_is_accounted_for"),
    ("contamination", "tasks", {}, "every_task_was_searched"),
    ("contamination", "tasks/sample-chem/dev/examples", 0, "every_task_was_searched"),
    ("contamination", "tasks/sample-chem/dev/examples_held", 2, "excluded_text_is_not_in_the_corpus"),
    ("tokenizer", "special_token_ids", {"[PAD]": 1}, "special_tokens_come_first"),
    ("tokenizer", "vocab_size", 2999, "vocabulary_is_as_large_as_asked"),
    ("tokenizer", "heldout_unk_fraction", 0.02, "few_unknown_pieces"),
    ("tokenizer", "heldout_unk_fraction", math.nan, "few_unknown_pieces"),
    ("tokenizer", "heldout_stripped_fraction", 0.02, "few_letters_stripped"),
    ("tokenizer", "heldout_stripped_fraction", math.nan, "few_letters_stripped"),
    ("nsp_dataset", "len_128/free_random_fraction", 0.58, "labels_are_balanced"),
    ("nsp_dataset", "len_128/forced_random_fraction", 0.95, "few_pairs_forced"),
    ("nsp_dataset", "len_128/forced_random_fraction", math.nan, "few_pairs_forced"),
    ("nsp_dataset", "len_128/truncated_fraction", 0.99, "few_pairs_truncated"),
    ("masked_dataset", "len_128/masked_fraction", 0.10, "masks_are_as_asked"),
    ("masked_dataset", "len_128/masked_fraction", 0.20, "masks_are_as_asked"),
    ("masked_dataset", "len_128/kept_fraction", 0.0, "masks_are_80_10_10"),
    ("pretrained_checkpoint", "last_loss", math.nan, "losses_are_finite"),
    ("pretrained_checkpoint", "heldout_after/nsp_loss", math.inf, "losses_are_finite"),
    ("pretrained_checkpoint", "last_loss", 8.8, "loss_fell"),
    ("pretrained_checkpoint", "heldout_after/mlm_loss", 8.1, "loss_fell"),
    ("pretrained_checkpoint", "max_logit_difference", 1e-3, "export_is_exact"),
    ("pretrained_checkpoint", "max_logit_difference", math.nan, "export_is_exact"),
    ("pretrained_checkpoint", "active_units_by_layer", [0.3, 0.009], "units_are_active"),
    ("pretrained_checkpoint", "active_units_by_layer", [math.nan, 0.3], "units_are_active"),
    ("evaluations", "heldout/mlm_accuracy", 1.2, "losses_are_losses"),
    ("evaluation/sample-chem", "pretrained/score_mean", math.nan, "scores_are_scores"),
    ("evaluation/sample-chem", "random_init/strict_f1_mean", 1.5, "scores_are_scores"),
    ("evaluation/sample-chem", "gold_size", 0, "scores_are_scores"),
    ("evaluations", "tasks", {}, "every_task_was_scored"),
    ("champion", "faults", ["version 1: its files are gone"], "files_are_there"),
]


def artifact_of(kind: str, facts: dict, tmp_path) -> Artifact:
    return Artifact(tmp_path / kind, {"origin": {"kind": kind}, "facts": facts})


def changed(facts: dict, path: str, value) -> dict:
    facts = copy.deepcopy(facts)
    *way, last = path.split("/")
    place = facts
    for name in way:
        place = place[name]
    place[last] = value
    return facts


@pytest.mark.parametrize("kind", GOOD)
def test_good_facts_pass(kind, tmp_path):
    results = checks.check_results(artifact_of(kind, GOOD[kind], tmp_path), RECIPE)
    assert [result.check_name for result in results] == [check.__name__ for check in checks.checks_of(kind)]
    assert all(result.passed for result in results), results


def test_random_weights_are_checked_only_where_the_recipe_asks_for_them(tmp_path):
    made = artifact_of("evaluation/sample-chem", {key: TASK[key] for key in TASK if key != "random_init"}, tmp_path)
    alone = RECIPE.model_copy(update={"evaluation": RECIPE.evaluation.model_copy(update={"baseline": False})})
    assert all(result.passed for result in checks.check_results(made, alone))


@pytest.mark.parametrize(("kind", "path", "value", "check"), BAD)
def test_a_bad_fact_fails_its_gate_and_shows_its_value(kind, path, value, check, tmp_path):
    made = artifact_of(kind, changed(GOOD[kind], path, value), tmp_path)
    failed = {
        result.check_name: result.description for result in checks.check_results(made, RECIPE) if not result.passed
    }
    assert check in failed
    if isinstance(value, float):
        assert any(text in failed[check] for text in (f"{value:.4f}", f"{value:.2%}", f"{value}"))


def test_the_gate_on_unknown_pieces_names_the_alphabet_that_the_text_needs():
    facts = GOOD["tokenizer"] | {"heldout_unk_fraction": 0.189, "cut_words_fraction": 0.19}
    facts |= {"needed_alphabet": 2990, "needed_alphabet_pieces": 3100}
    [fault] = checks.few_unknown_pieces(facts, RECIPE)
    assert "18.90% of the held-out tokens are [UNK]" in fault and "19.00% of the training words" in fault
    assert "limit_alphabet = 1000; remedy: set it to 2990 or more, and tokenizer.vocab_size to more than 3100" in fault


def test_registration_is_refused_with_every_fault(tmp_path):
    artifacts = {kind: artifact_of(kind, facts, tmp_path) for kind, facts in GOOD.items()}
    checks.assert_all_pass(artifacts, RECIPE)
    artifacts["tokenizer"] = artifact_of("tokenizer", GOOD["tokenizer"] | {"heldout_unk_fraction": 0.5}, tmp_path)
    artifacts["raw_corpus"] = artifact_of("raw_corpus", GOOD["raw_corpus"] | {"train_documents": 0}, tmp_path)
    with pytest.raises(checks.GateClosed, match=r"(?s)train_documents is 0.*50.00% of the held-out tokens"):
        checks.assert_all_pass(artifacts, RECIPE)


def test_a_warning_does_not_prevent_registration(tmp_path):
    truncated = changed(GOOD["nsp_dataset"], "len_128/truncated_fraction", 1.0)
    made = artifact_of("nsp_dataset", truncated, tmp_path)
    checks.assert_all_pass({"nsp_dataset": made}, RECIPE)
    severities = {result.check_name: result.severity for result in checks.check_results(made, RECIPE)}
    assert severities["few_pairs_truncated"] == dg.AssetCheckSeverity.WARN
    assert severities["few_pairs_forced"] == dg.AssetCheckSeverity.ERROR


@pytest.mark.parametrize("strips", [True, False])
def test_whoever_set_strip_accents_is_not_warned(strips):
    recipe = RECIPE.model_copy(update={"tokenizer": RECIPE.tokenizer.model_copy(update={"strip_accents": strips})})
    facts = GOOD["tokenizer"] | {"heldout_stripped_fraction": 1.0}
    assert list(checks.few_letters_stripped(facts, RECIPE)) and not list(checks.few_letters_stripped(facts, recipe))


def test_with_segments_instead_of_pairs_fewer_may_be_truncated():
    recipe = RECIPE.model_copy(update={"nsp": RECIPE.nsp.model_copy(update={"objective": "none"})})
    facts = {"len_128": PAIRS | {"truncated_fraction": 0.6}}
    assert list(checks.few_pairs_truncated(facts, recipe)) and not list(checks.few_pairs_truncated(facts, RECIPE))


@pytest.mark.parametrize(
    ("nsp", "facts"),
    [
        ({"objective": "none"}, {"random_fraction": 0.0, "free_random_fraction": 0.0}),
        ({"objective": "sop"}, {"random_fraction": 0.5, "free_random_fraction": 0.5}),
        ({"balance": True}, {"random_fraction": 0.5, "free_random_fraction": 0.37}),
        ({"nsp_prob": 0.3}, {"random_fraction": 0.4, "free_random_fraction": 0.3}),
    ],
)
def test_label_balance_knows_the_objective(nsp, facts):
    recipe = RECIPE.model_copy(update={"nsp": RECIPE.nsp.model_copy(update=nsp)})
    assert not list(checks.labels_are_balanced({"len_128": PAIRS | facts, "example": ""}, recipe))


def test_label_balance_allows_for_chance_in_a_small_corpus():
    by_chance = PAIRS | {"train_pairs": 500, "free_random_fraction": 0.54}
    assert not list(checks.labels_are_balanced({"len_128": by_chance}, RECIPE))
    assert list(checks.labels_are_balanced({"len_128": by_chance | {"train_pairs": 100_000}}, RECIPE))


def test_a_cap_on_predictions_may_lower_the_masked_share():
    capped = RECIPE.masking.model_copy(update={"max_predictions_per_seq": 10})
    recipe = RECIPE.model_copy(update={"masking": capped})
    facts = {"len_128": {"masked_fraction": 0.08}}
    assert not list(checks.masks_are_as_asked(facts, recipe))
    assert list(checks.masks_are_as_asked(facts, RECIPE))
