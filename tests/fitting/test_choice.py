"""What `init` chooses, from facts alone and from real text."""

import tomllib
from dataclasses import replace

import pytest

from bert_pipeline.fitting.choice import (
    WIDTHS,
    Choice,
    Size,
    best_size,
    choose,
    recipe_text,
    shortest_as_good,
    size_settings,
    text_settings,
)
from bert_pipeline.fitting.loss import RELATION
from bert_pipeline.fitting.shapes import encoder_weights, scaled
from bert_pipeline.fitting.text import Text
from bert_pipeline.planning.hardware import HARDWARE
from bert_pipeline.recipe import CorpusRecipe, Recipe, RecipeError
from bert_pipeline.recipe_files import load_recipe, recipe_files, validated
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.model.flops import training_flops

SMALL = load_recipe(recipe_files()["small"])
ONE_PAIR = Load(118.0, 118.0**2, 35.0, 1.0)
ABSTRACTS = Text(
    words=9e6,
    documents=42_000,
    words_per_document=210,
    languages={"en": 1.0},
    one_sentence=0.0,
    near_duplicates=0.0,
    characters="The patients recovered.",
)


def size(seconds, rate=5e11, in_text=1e12):
    return best_size(SMALL, ONE_PAIR, in_text, seconds, lambda width: rate)


def test_more_time_or_a_faster_machine_means_a_wider_model():
    widths = [size(60 * minutes).width for minutes in (0.2, 10, 150, 100_000)]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert size(600, rate=5e14) == replace(size(600_000, rate=5e11), seconds=600)


def test_the_width_is_the_widest_of_the_best_at_the_measured_speed():
    measured = []

    def rate(width):
        measured.append(width)
        return 5e11 * (256 / width) ** 0.5  # a machine that is slow with wide models

    chosen = best_size(SMALL, ONE_PAIR, 1e12, 60 * 150, rate)
    assert chosen.width in measured and len(measured) <= 4

    def loss(width):
        model = scaled(SMALL, width).model
        flops = training_flops(model, SMALL.tokenizer.vocab_size, ONE_PAIR)
        return RELATION.loss(encoder_weights(model), 60 * 150 * rate(chosen.width) / flops * ONE_PAIR.tokens)

    assert chosen.loss == pytest.approx(loss(chosen.width))
    assert chosen.loss <= 1.03 * min(map(loss, WIDTHS)) < loss(chosen.width + 64)


def test_little_text_is_not_read_for_longer_than_it_teaches():
    million = 1.3e6
    shares = {}
    for in_text in (million, 1000 * million):
        chosen = shortest_as_good(lambda share, in_text=in_text: size(share * 360_000, in_text=in_text))
        shares[in_text] = chosen.seconds / 360_000
    assert shares[million] < shares[1000 * million] == 1
    assert size_settings(size(36_000, in_text=million), million, 128)["nsp.dupe_factor"][0] == 10


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({}, "corpus.heldout_fraction", 0.02),
        ({"words": 1e6}, "corpus.heldout_fraction", 0.05),
        ({"words": 7e7}, "corpus.heldout_fraction", 0.003),
        ({"words": 1e4, "documents": 200}, "corpus.heldout_fraction", 0.1),
        ({}, "tokenizer.vocab_size", 16_000),
        ({"words": 7e7}, "tokenizer.vocab_size", 24_000),
        ({"near_duplicates": 0.2}, "corpus.near_duplicate_threshold", 0.8),
        ({"one_sentence": 0.9}, "nsp.objective", "none"),
        ({"words_per_document": 20}, "pretrain.phases.0.max_seq_length", 64),
        ({"characters": "患者每天服药。"}, "tokenizer.vocab_size", 16_000),
        ({"characters": "환자들은 매일 약을 복용하였다."}, "tokenizer.limit_alphabet", 3_000),
    ],
)
def test_what_the_text_decides(changes, key, value):
    usual = text_settings(ABSTRACTS)
    assert set(usual) == {"corpus.heldout_fraction", "tokenizer.vocab_size"}
    assert text_settings(replace(ABSTRACTS, **changes))[key][0] == value


def test_the_file_has_the_reasons_and_is_the_recipe():
    reasons = {
        "model.hidden_size": "a reason",
        "pretrain.phases.0.learning_rate": "another " * 30,
        "nsp.dupe_factor": "passes",
    }
    text = recipe_text(Choice(SMALL, reasons, ("about the text",)), "my text")
    corpus = SMALL.corpus.model_copy(update={"path": "my text"})
    read = validated({"name": "small"} | tomllib.loads(text), Recipe, "recipe small", RecipeError)
    assert read == SMALL.model_copy(update={"corpus": corpus})
    lines = text.splitlines()
    assert lines[0] == "# about the text"
    assert lines[lines.index("hidden_size = 256") - 1] == "# a reason"
    assert lines[lines.index("dupe_factor = 2") - 1] == "# passes"
    assert text.count("another") == 30 and max(map(len, lines)) <= 120


def test_generated_text_on_a_gpu():
    choice = choose(CorpusRecipe(source="sample", sample_documents=1000), 60, "sample-chem", HARDWARE["L4"])
    recipe = choice.recipe
    [phase], [task] = recipe.pretrain.phases, recipe.evaluation.tasks
    assert recipe.corpus.sample_documents == 1000 and task.name == "sample-chem"
    assert recipe.corpus.exclude_tasks == "evaluation"
    assert recipe.pretrain.budget_minutes is None and phase.warmup_steps == round(phase.num_steps * 200 / 3100)
    assert recipe.pretrain.muon_weight_decay == 0.5
    assert recipe.nsp.dupe_factor == 10, "an hour of a GPU reads a thousand documents many times"
    assert any("little text" in note for note in choice.notes)
    assert "would not lower the loss" in choice.reasons["pretrain.phases.0.num_steps"]
    assert recipe.model.hidden_size / recipe.model.num_attention_heads == 64
    low, high = recipe.expected_mlm_loss
    assert 0 < low < high


def test_size_is_what_was_predicted():
    assert size(600) == Size(size(600).width, 600, size(600).tokens, size(600).loss)
    assert size(1200).loss < size(600).loss
