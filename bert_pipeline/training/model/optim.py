"""The optimizers and the learning-rate schedule: warm-up and linear decay (Devlin et al. 2019, section A.2).

The schedule is that of transformers' `get_linear_schedule_with_warmup`, one step earlier in the warm-up, so that step 0
trains too: the decay starts from the peak. google-research/bert (optimization.py) decays over all steps, so that after
w of T steps of warm-up its rate falls from the peak to 1 - w/T of it, and its Adam has no bias correction.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from transformers import BertForPreTraining

from bert_pipeline.recipe import PhaseRecipe, PretrainRecipe
from bert_pipeline.training.model.muon import MuonWithAdamW


def build_optimizer(section: PretrainRecipe, model: BertForPreTraining) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) without weight decay on biases and LayerNorm.

    With optimizer = "muon", Muon trains the matrices of the encoder layers.
    """
    matrices = muon_matrices(model) if section.optimizer == "muon" else []
    by_muon = {id(matrix) for matrix in matrices}
    adamw = torch.optim.AdamW(
        decay_groups([each for each in model.parameters() if id(each) not in by_muon], section.weight_decay),
        lr=0.0,  # set before each step
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_epsilon,
        fused=True,
    )
    return MuonWithAdamW(adamw, matrices, section.muon_weight_decay) if matrices else adamw


def muon_matrices(model: BertForPreTraining) -> list[nn.Parameter]:
    """The weights of 2 dimensions of the encoder layers."""
    return [each for each in model.bert.encoder.parameters() if each.ndim == 2]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict]:
    """Parameter groups: matrices with `weight_decay`, vectors (biases and LayerNorm) without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def learning_rate(
    phases: tuple[PhaseRecipe, ...], step: int, peak: Literal["learning_rate", "muon_learning_rate"] = "learning_rate"
) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up to the peak, then linear decay to 0.

    A schedule spans the phase that starts it and the following phases that continue it.
    """
    begin = 0
    schedule, length = phases[0], 0
    for number, phase in enumerate(phases):
        if number > 0 and phase.learning_rate_handover == "restart":
            if step < begin + length:
                break
            begin, schedule, length = begin + length, phase, 0
        length += phase.num_steps
    highest, warmup_steps, done = getattr(schedule, peak), schedule.warmup_steps, step - begin
    assert highest is not None and warmup_steps is not None, "PretrainRecipe requires both where a schedule starts"
    if done < warmup_steps:
        return highest * (done + 1) / warmup_steps
    return highest * (length - done) / max(length - warmup_steps, 1)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float, muon: float = 0.0) -> None:
    """Set the rate of every parameter group; `muon` is the rate of the matrices that Muon trains."""
    for group in optimizer.param_groups:
        group["lr"] = muon if group.get("is_muon") else value


def schedule_learning_rate(optimizer: torch.optim.Optimizer, section: PretrainRecipe, step: int) -> None:
    """Set the rates of optimizer step `step`."""
    muon = learning_rate(section.phases, step, "muon_learning_rate") if section.optimizer == "muon" else 0.0
    set_learning_rate(optimizer, learning_rate(section.phases, step), muon)


def initial_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """What the optimizer keeps for a parameter before its first step: zeros."""
    by_muon = [each for group in optimizer.param_groups if group.get("is_muon") for each in group["params"]]
    if any(each is parameter for each in by_muon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
