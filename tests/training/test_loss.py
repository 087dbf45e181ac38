import numpy as np
import pytest
import torch
from transformers import BertForPreTraining

from bert_pipeline.training.batches import PairDataset, micro_batches, to_tensors
from bert_pipeline.training.loss import PretrainingLoss
from bert_pipeline.training.model import build_model


@pytest.fixture(scope="module")
def dataset(tiny):
    paths = (tiny[kind].path for kind in ("nsp_dataset", "masked_dataset", "tokenizer"))
    return PairDataset(*paths, 64, "train")


@pytest.fixture
def model(tiny_recipe, tiny):
    still = tiny_recipe.model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    return build_model(still, tiny["tokenizer"].facts["vocab_size"], seed=3)


def gradients(model, rows, tokens):
    """Loss and gradients of one step, computed in micro-batches of `tokens` places."""
    loss = PretrainingLoss(model)
    model.zero_grad()
    total = 0.0
    for part in micro_batches(rows, tokens):
        sums = loss(**to_tensors(part))
        mean = sums.mlm_loss / rows.num_masked + sums.nsp_loss / len(rows)
        mean.backward()
        total += mean.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_the_loss_is_that_of_the_stock_model(model: BertForPreTraining, dataset):
    """Dense logits, labels of -100 and the stock loss, against the sparse head on masked positions."""
    rows = dataset.rows(0, np.arange(16))
    batch = to_tensors(rows)
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["masked_positions"]] = batch["masked_labels"]
    stock = model(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        attention_mask=batch["attention_mask"],
        labels=labels,
        next_sentence_label=batch["next_sentence_label"],
    )
    total, _ = gradients(model, rows, 10**6)
    assert total == pytest.approx(stock.loss.item(), abs=2e-6)


@pytest.mark.parametrize("tokens", [1, 200, 600])
def test_the_numbers_do_not_depend_on_the_micro_batches(model, dataset, tokens):
    rows = dataset.rows(0, np.arange(32))
    expected_loss, expected = gradients(model, rows, 10**6)
    found_loss, found = gradients(model, rows, tokens)
    assert len(list(micro_batches(rows, tokens))) > 1
    assert found_loss == pytest.approx(expected_loss, abs=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def spans(rows):
    """The input_ids of each row."""
    return [bytes(span) for span in np.split(rows.input_ids, rows.offsets[1:-1])]


def test_micro_batches_hold_every_row_once_within_the_budget(dataset):
    rows = dataset.rows(0, np.arange(50))
    parts = list(micro_batches(rows, 300))
    cut = [span for part in parts for span in spans(part)]
    assert sorted(cut) == sorted(spans(rows))
    assert all(len(part) * part.lengths.max() <= 300 or len(part) == 1 for part in parts)


def test_the_vocabulary_is_padded_for_the_matrix_units(tiny, model):
    assert model.config.vocab_size % 64 == 0
    assert 0 <= model.config.vocab_size - tiny["tokenizer"].facts["vocab_size"] < 64


def test_fresh_weights_are_a_function_of_the_seed(tiny_recipe):
    torch.manual_seed(1)
    one = build_model(tiny_recipe.model, 800, seed=3)
    torch.manual_seed(2)
    same, other = build_model(tiny_recipe.model, 800, seed=3), build_model(tiny_recipe.model, 800, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.bert.embeddings.word_embeddings.weight, other.bert.embeddings.word_embeddings.weight)
