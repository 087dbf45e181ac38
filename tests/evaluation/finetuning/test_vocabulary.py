"""Training without the pieces that do not occur is training with them."""

import pytest
import torch

from bert_pipeline.evaluation.finetuning import finetune as under_test
from bert_pipeline.evaluation.finetuning.engine import Computation, TaskModel
from bert_pipeline.evaluation.finetuning.finetune import Training
from bert_pipeline.evaluation.finetuning.inputs import encode_task
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting, protocol
from bert_pipeline.recipe import TaskRecipe

FEW = 3
"""Training examples: fewer pieces than the vocabulary has."""


def trained(model_dir, small_task, work, whole_vocabulary, monkeypatch):
    task, data = small_task("small-ner")
    settings = TaskRecipe(name=task.name, weight_decay=5.0)  # so strong that it shows after some steps
    inputs = encode_task(model_dir, task, data, 64)
    inputs.splits["train"][FEW:] = []
    with monkeypatch.context() as patch:
        if whole_vocabulary:
            patch.setattr(TaskModel, "train_only_pieces_of", lambda *_: None)
        how = Computation("float32", "packed")
        run = Run("pretrained", Setting(3e-3, 1, 5), 1)
        training = Training(model_dir, inputs, run, protocol(task, settings, 64), work, how)
    rows = len(training.model.model.get_input_embeddings().weight)
    training.train(len(training.batches), lambda done, of: None)
    training.restore_vocabulary()
    return rows, training, inputs


def test_it_is_training_with_all_pieces(model_dir, small_task, tmp_path, monkeypatch):
    rows, with_all, inputs = trained(model_dir, small_task, tmp_path / "all", True, monkeypatch)
    fewer, found, _ = trained(model_dir, small_task, tmp_path / "few", False, monkeypatch)
    occurring = {inputs.pad_id, *(int(n) for each in inputs.learnable for n in each.input_ids)}
    assert fewer == len(occurring) < rows, "the task has fewer pieces than the vocabulary"
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(with_all.losses))
    expected = with_all.model.model.state_dict()
    assert found.model.model.state_dict().keys() == expected.keys()
    for name, weight in found.model.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], msg=lambda m, n=name: f"{n}: {m}")
    unseen = sorted(set(range(rows)) - occurring)
    before = with_all.model.model.__class__.from_pretrained(model_dir).get_input_embeddings().weight[unseen]
    after = found.model.model.get_input_embeddings().weight[unseen]
    assert 0.5 < (after / before)[before != 0].mean().item() < 0.9, "the other pieces have been decayed"
    test = inputs.splits["test"]
    assert {int(n) for each in test for n in each.input_ids} - occurring, "prediction reads other pieces"
    assert under_test.predict(found.model, test) == under_test.predict(with_all.model, test)


def test_a_piece_that_does_not_occur_is_an_error_before_the_vocabulary_is_restored(model_dir, small_task):
    task, data = small_task("small-ner")
    inputs = encode_task(model_dir, task, data, 64)
    training = inputs.learnable[:FEW]
    seen = {int(n) for each in training for n in each.input_ids}
    other = next(each for each in inputs.splits["test"] if not seen.issuperset(each.input_ids.tolist()))
    built, _ = under_test.build_task_model(model_dir, "pretrained", task)
    model = TaskModel(built, task, inputs.pad_id, Computation("float32", "packed"))
    expected = model.logits([other])
    model.train_only_pieces_of(training)
    with pytest.raises(IndexError):
        model.logits([other])
    model.restore_vocabulary([], 0.0)
    assert torch.equal(model.logits([other]), expected)
