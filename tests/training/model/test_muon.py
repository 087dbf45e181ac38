"""Muon against torch.optim.Muon, and in the loop: resumed = uninterrupted, one process = two."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

from bert_pipeline.training.model import muon
from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.muon import COEFFICIENTS, EPSILON, MuonWithAdamW, orthogonal_updates, orthogonalised
from bert_pipeline.training.model.optim import build_optimizer, muon_matrices, schedule_learning_rate

OF_TORCH = (3.4445, -4.7750, 2.0315)
"""torch applies the same polynomial in each iteration."""
ITERATIONS = 3
SHAPES = [(32, 32), (32, 128), (128, 32), (32, 32), (128, 32)]


def matrices(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.fixture
def polynomials_of_torch(monkeypatch):
    monkeypatch.setattr(muon, "COEFFICIENTS", (OF_TORCH,) * ITERATIONS)


def test_updates_are_those_of_torch_matrix_by_matrix(polynomials_of_torch):
    ours = orthogonal_updates(matrices(1))
    for matrix, update in zip(matrices(1), ours, strict=True):
        theirs = _zeropower_via_newtonschulz(matrix, OF_TORCH, ITERATIONS, EPSILON).float()
        assert update.shape == matrix.shape
        assert (update.float() - theirs).norm() / theirs.norm() < 0.02  # bfloat16 has 8 bits


def test_bfloat16_is_used_where_the_processor_has_units_for_it(monkeypatch):
    """Without them, products in bfloat16 take 33 to 47 times as long as in float32 (recipes/LOG.md)."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    updates = {}
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        updates[dtype] = orthogonal_updates(matrices(1))
        assert {update.dtype for update in updates[dtype]} == {dtype}
    for rounded, exact in zip(updates[torch.bfloat16], updates[torch.float32], strict=True):
        assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


def test_singular_values_are_brought_near_one():
    """Norm 1 and 32 nearly equal singular values: each is about 0.18 before."""
    [found] = orthogonalised(matrices(1)[1][None].bfloat16())
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.7 and values.max() < 1.3


def test_each_polynomial_deviates_least_from_one():
    """On the range that the ones before it leave; computed by linear programming."""
    low, high = 0.01, 1.0
    for ours in COEFFICIENTS:
        x = np.geomspace(low, high, 2000)
        powers, ones = np.stack([x, x**3, x**5], axis=1), np.ones((2000, 1))
        deviation = np.block([[powers, -ones], [-powers, -ones]])
        least = linprog([0, 0, 0, 1], deviation, np.repeat([1.0, -1.0], 2000), bounds=[(None, None)] * 3 + [(0, None)])
        assert np.abs(powers @ ours - 1).max() == pytest.approx(least.x[3], abs=2e-3)
        low, high = 1 - least.x[3], 1 + least.x[3]


def test_steps_are_those_of_torch_optim_muon(polynomials_of_torch):
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
