"""Muon against torch.optim.Muon, and in the loop: resumed = uninterrupted, one process = two."""

import copy

import pytest
import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.muon import (
    COEFFICIENTS,
    EPSILON,
    ITERATIONS,
    MuonWithAdamW,
    orthogonal_updates,
    orthogonalised,
)
from bert_pipeline.training.model.optim import build_optimizer, muon_matrices, schedule_learning_rate

SHAPES = [(32, 32), (32, 128), (128, 32), (32, 32), (128, 32)]


def matrices(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_updates_are_those_of_torch_matrix_by_matrix():
    ours = orthogonal_updates(matrices(1))
    for matrix, update in zip(matrices(1), ours, strict=True):
        theirs = _zeropower_via_newtonschulz(matrix, COEFFICIENTS, ITERATIONS, EPSILON).float()
        assert update.shape == matrix.shape
        assert (update.float() - theirs).norm() / theirs.norm() < 0.02  # bfloat16 has 8 bits


def test_five_iterations_bring_singular_values_near_one():
    [found] = orthogonalised(matrices(1)[1][None].bfloat16(), iterations=5)
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_steps_are_those_of_torch_optim_muon():
    ours, theirs = ([nn.Parameter(each) for each in matrices(2)] for _ in range(2))
    vector = nn.Parameter(torch.ones(3))
    optimizer = MuonWithAdamW(torch.optim.AdamW([vector], lr=0.01), ours, weight_decay=0.1)
    oracle = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, ns_steps=ITERATIONS, adjust_lr_fn="match_rms_adamw"
    )
    optimizer.param_groups[-1]["lr"] = 0.02
    for step in range(5):
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, matrices(10 + step), strict=True):
                parameter.grad = gradient
        vector.grad = torch.ones(3)
        optimizer.step()
        oracle.step()
    for one, other, start in zip(ours, theirs, matrices(2), strict=True):
        assert (one - other).norm() / (other - start).norm() < 0.02


def test_muon_trains_the_matrices_of_the_encoder_and_adamw_the_rest(muon_recipe):
    model = build_model(muon_recipe.model, 800, seed=1)
    optimizer = build_optimizer(muon_recipe.pretrain, model)
    by_muon = {id(each) for each in optimizer.param_groups[-1]["params"]}
    held = [id(each) for group in optimizer.param_groups for each in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert (id(parameter) in by_muon) == ("encoder" in name and name.endswith("weight") and "LayerNorm" not in name)
    schedule_learning_rate(optimizer, muon_recipe.pretrain, 1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 1e-3, 3e-3])


def test_the_rest_is_trained_as_by_adamw_alone(muon_recipe):
    """The two share one state; neither touches the other's parameters."""
    both = build_model(muon_recipe.model, 800, seed=1)
    alone = copy.deepcopy(both)
    for matrix in muon_matrices(alone):
        matrix.requires_grad_(False)
    adamw = muon_recipe.pretrain.model_copy(update={"optimizer": "adamw"})
    optimizers = build_optimizer(muon_recipe.pretrain, both), build_optimizer(adamw, alone)
    for step in range(3):
        for model, optimizer in zip((both, alone), optimizers, strict=True):
            for n, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, 0.01 * (n + step + 1))
            schedule_learning_rate(optimizer, muon_recipe.pretrain, step)
            optimizer.step()
    trained = dict(both.named_parameters())
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter, trained[name]) == parameter.requires_grad, name
