from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.report.model_card import model_card

RECIPE = Recipe.model_validate_json('{"name": "r", "corpus": {"source": "sample"}}').model_dump(exclude={"name"})
SCORE = {"score_mean": 0.85, "score_sd": 0.01, "low": 0.83, "high": 0.87}
CHEM = {
    "kind": "ner",
    "metric": "entity F1",
    "seeds": [1, 2],
    "pretrained": SCORE,
    "random_init": {"score_mean": 0.5, "score_sd": None},
    "measured": {"MiniLM": 0.8},
    "published": {"PubMedBERT": 0.9333, "BioLinkBERT-large": 0.9404},
}
FACTS = {
    "raw_corpus": {"train_documents": 5700, "example": "A sentence.", "rejected_by_reason": {}},
    "pretrained_checkpoint": {
        "num_steps": 660,
        "heldout_before": {"mlm_loss": 8.0, "nsp_accuracy": 0.5},
        "heldout_after": {"mlm_loss": 2.5, "nsp_accuracy": 0.9},
    },
    "evaluations": {"tasks": {"chem": CHEM}, "contamination": {"tasks": {"chem": {"test": {"share_held": 0.002}}}}},
}


def test_the_card_contains_data_recipe_scores_and_limits():
    card = model_card("bert-r", RECIPE, FACTS)
    assert card.startswith("---\n") and "# bert-r\n" in card
    assert "| train documents | 5,700 |" in card
    assert "| mlm loss | 8 | 2.5 |" in card
    row = "| chem | entity F1 | 85.00 ± 1.00 | 83.00 to 87.00 | 2 | 50.00 | 80.00 (MiniLM) | 93.33 | "
    assert row + "94.04 (BioLinkBERT-large) | 0.20 % |" in card
    assert "## Limits" in card and "generated" in card, "invented text must be called so"


def test_the_card_lists_dropped_documents_by_reason():
    corpus = {"records": 9, "dropped_by_reason": {"deleted": 1, "near duplicate": 1_200}, "cut_off": "2026-01-05"}
    card = model_card("bert-r", RECIPE, {"raw_corpus": corpus | {"sources_fingerprint": "abcd"}})
    assert "was released on 2026-01-05. Left out: 1,200 (near duplicate), 1 (deleted). " in card
    assert "`abcd`" in card and "`data_card.html`" in card
    bare = corpus | {"dropped_by_reason": {}, "cut_off": "", "sources_fingerprint": ""}
    assert "|\n\nMore in the data card" in model_card("bert-r", RECIPE, {"raw_corpus": bare})


def test_the_recipe_in_the_card_can_be_loaded(tmp_path):
    card = model_card("bert-r", RECIPE, {})
    (tmp_path / "r.toml").write_text(card.partition("```toml\n")[2].partition("```")[0])
    assert load_recipe(tmp_path / "r.toml").model_dump(exclude={"name"}) == RECIPE


def test_parts_without_facts_are_left_out():
    card = model_card("bert-r", {"corpus": {"source": "files"}}, {})
    assert "## Scores" not in card and "## Data" not in card and "generated" not in card
