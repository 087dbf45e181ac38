"""What `init` chooses, from facts alone and from real text."""

import tomllib

from bert_pipeline.planning.choice import Choice, best_width, recipe_text
from bert_pipeline.recipe import Recipe, RecipeError
from bert_pipeline.recipe_files import load_recipe, recipe_files, validated
from bert_pipeline.training.batches.dataset import Load

SMALL = load_recipe(recipe_files()["small"])
ONE_PAIR = Load(118.0, 118.0**2, 35.0, 1.0)


def width(seconds, rate=5e10):
    return best_width(SMALL, ONE_PAIR, seconds, lambda width: rate)[0]


def test_more_time_or_a_faster_machine_means_a_wider_model():
    widths = [width(60 * minutes) for minutes in (2, 10, 150, 10_000)]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert width(600, rate=5e13) == width(600_000, rate=5e10)


def test_the_chosen_width_is_measured():
    measured = []

    def rate(width):
        measured.append(width)
        return 5e10 * (256 / width) ** 0.5  # a machine that is slow with wide models

    chosen, tokens, _ = best_width(SMALL, ONE_PAIR, 60 * 150, rate)
    assert measured[-1] == chosen or chosen in measured
    assert tokens > 0 and len(measured) <= 3


def test_the_file_has_the_reasons_and_is_the_recipe(tmp_path):
    reasons = {
        "model.hidden_size": "a reason",
        "pretrain.phases.0.learning_rate": "another " * 30,
        "nsp.dupe_factor": "passes",
    }
    text = recipe_text(Choice(SMALL, reasons, 4.0))
    assert validated({"name": "small"} | tomllib.loads(text), Recipe, "recipe small", RecipeError) == SMALL
    lines = text.splitlines()
    assert lines[lines.index("hidden_size = 256") - 1] == "# a reason"
    assert lines[lines.index("dupe_factor = 2") - 1] == "# passes"
    assert text.count("another") == 30 and max(map(len, lines)) <= 120
