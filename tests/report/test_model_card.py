from bert_pipeline.recipe import Recipe
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.report.model_card import model_card
from bert_pipeline.report.score_table import scores_list, scores_markdown

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
    assert "\n- train documents: 5,700\n" in card
    assert "\n- mlm loss: 2.5, before training 8\n" in card
    assert "- **chem**, entity F1: **85.00 ± 1.00**\n    - 95 % interval: 83.00 to 87.00\n    - seeds: 2\n" in card
    assert "    - random weights: 50.00\n    - general domain: 80.00 (MiniLM)\n    - PubMedBERT: 93.33\n" in card
    assert "    - of the test in the corpus: 0.20 %\n" in card
    assert "## Limits" in card and "generated" in card, "invented text must be called so"


def test_the_card_lists_dropped_documents_by_reason():
    corpus = {"records": 9, "dropped_by_reason": {"deleted": 1, "near duplicate": 1_200}, "cut_off": "2026-01-05"}
    card = model_card("bert-r", RECIPE, {"raw_corpus": corpus | {"sources_fingerprint": "abcd"}})
    assert "was released on 2026-01-05. Left out: 1,200 (near duplicate), 1 (deleted). " in card
    assert "`abcd`" in card and "`data_card.html`" in card
    bare = corpus | {"dropped_by_reason": {}, "cut_off": "", "sources_fingerprint": ""}
    assert "- records: 9\n\nMore in the data card" in model_card("bert-r", RECIPE, {"raw_corpus": bare})


def test_the_recipe_in_the_card_can_be_loaded(tmp_path):
    card = model_card("bert-r", RECIPE, {})
    (tmp_path / "r.toml").write_text(card.partition("```toml\n")[2].partition("```")[0])
    assert load_recipe(tmp_path / "r.toml").model_dump(exclude={"name"}) == RECIPE


def test_parts_without_facts_are_left_out():
    card = model_card("bert-r", {"corpus": {"source": "files"}}, {})
    assert "## Scores" not in card and "## Data" not in card and "generated" not in card


def test_the_card_has_no_tables():
    """MLflow shows them without space between the columns."""
    published = {"chem": CHEM | {"published": {}, "measured": {}}}
    for tasks in (FACTS["evaluations"]["tasks"], published):
        facts = FACTS | {"evaluations": FACTS["evaluations"] | {"tasks": tasks}}
        assert "|" not in model_card("bert-r", RECIPE, facts)
    assert "PubMedBERT" not in model_card("bert-r", RECIPE, facts), "a score that is not known is left out"


def test_scores_without_a_baseline_have_an_empty_cell_and_no_line():
    alone = {name: value for name, value in CHEM.items() if name != "random_init"}
    facts = FACTS["evaluations"] | {"tasks": {"chem": alone}}
    assert "| chem | entity F1 | 85.00 ± 1.00 | 83.00 to 87.00 | 2 |  | 80.00 (MiniLM) | 93.33 |" in scores_markdown(
        facts
    )
    assert "random weights" not in scores_list(facts) and "    - seeds: 2\n    - general domain" in scores_list(facts)
