"""The cards as the Hugging Face Hub's own library reads them, offline."""

import pytest
from huggingface_hub import ModelCard
from report.test_model_card import CHEM, FACTS, RECIPE

from bert_pipeline.report.hub import Result, front_matter
from bert_pipeline.report.model_card import model_card, text_of


def data_of(card: str):
    """The metadata; ignore_metadata_errors=False raises an error if the model index is not valid."""
    return ModelCard(card, ignore_metadata_errors=False).data


def test_the_card_of_a_registered_model_has_its_scores():
    data = data_of(model_card("bert-r", RECIPE, FACTS))
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "fill-mask", "unknown")
    assert (data.language, data.tags, data.model_name) == ("en", ["bert", "trained-from-scratch"], "bert-r")
    [result] = data.eval_results
    assert (result.task_type, result.dataset_type, result.dataset_split) == ("token-classification", "chem", "test")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("f1", CHEM["metric"], 0.85)


def test_the_card_of_a_checkpoint_has_no_scores_and_no_guessed_language():
    data = data_of(model_card("bert-r", {"corpus": {"language": ""}}, {}))
    assert data.eval_results is None and data.language is None and data.pipeline_tag == "fill-mask"
    assert data_of(model_card("bert-r", {"corpus": {"language": "ko"}}, {})).language == "ko"
    card = model_card("bert-r", {"pretrain": {"init_from": "bert-a"}}, {})
    assert data_of(card).tags == ["bert", "continual-pretraining"] and text_of(card).startswith("# bert-r\n")


@pytest.mark.parametrize(
    ("kind", "metric", "task_type", "metric_type"),
    [
        ("ner", "entity F1", "token-classification", "f1"),
        ("pico", "word F1, mean over the labels", "token-classification", "f1"),
        ("relation", "micro F1", "text-classification", "f1"),
        ("documents", "micro F1", "text-classification", "f1"),
        ("qa", "accuracy", "text-classification", "accuracy"),
        ("similarity", "Pearson correlation", "text-classification", "pearsonr"),
    ],
)
def test_kinds_and_metrics_have_the_names_of_the_hub(kind, metric, task_type, metric_type):
    [result] = data_of(front_matter("m", task_type, ["bert"], "", [Result("t", kind, metric, 0.5)])).eval_results
    assert (result.task_type, result.metric_type) == (task_type, metric_type)
