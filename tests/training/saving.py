"""Checkpoints of a small model whose content is a function of the step, so that loaded ones can be verified."""

from pathlib import Path

import torch
from torch import nn

from bert_pipeline.training.checkpoint import Checkpoints

KEPT = 2


def model_at(step: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after one update, a function of `step`."""
    torch.manual_seed(step)
    model = nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 60))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def state_at(step: int) -> dict:
    return {"metrics_bytes": 1000 * step, "window": {"sums": [step / 3, 0.1], "counts": [1e300]}}


def checkpoints_in(folder: Path) -> Checkpoints:
    return Checkpoints(folder, "mine", KEPT)


def save(folder: Path, *steps: int) -> None:
    checkpoints = checkpoints_in(folder)
    for step in steps:
        checkpoints.save(step, *model_at(step), state_at(step))


def load(folder: Path) -> int:
    """Load the newest checkpoint, compare it with what was saved, and return its step."""
    model, optimizer = model_at(0)
    step, state = checkpoints_in(folder).load_newest(model, optimizer)
    expected, expected_optimizer = model_at(step)
    assert state == state_at(step)
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)
        moments, wanted_moments = optimizer.state[found], expected_optimizer.state[wanted]
        assert moments.keys() == wanted_moments.keys()
        assert all(torch.equal(moments[key], wanted_moments[key]) for key in moments)
    return step


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps(*numbers: int) -> set[str]:
    return {f"step-{number:08d}" for number in numbers}
