"""AdamW and the learning-rate schedule: warm-up and linear decay, with the values of Devlin et al. 2019, section A.2.

The schedule is that of transformers' `get_linear_schedule_with_warmup`, one step earlier in the warm-up, so that step 0
trains too: the decay starts from the peak. google-research/bert (optimization.py) decays over all steps, so that after
w of T steps of warm-up its rate falls from the peak to 1 - w/T of it, and its Adam has no bias correction.
"""

import torch
from torch import nn

from bert_pipeline.recipe import PhaseRecipe, PretrainRecipe


def build_optimizer(section: PretrainRecipe, model: nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) without weight decay on biases and LayerNorm."""
    return torch.optim.AdamW(
        decay_groups(model, section.weight_decay),
        lr=0.0,  # set before each step
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_epsilon,
        fused=True,
    )


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: matrices with `weight_decay`, vectors (biases and LayerNorm) without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def learning_rate(phases: tuple[PhaseRecipe, ...], step: int) -> float:
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
    peak, warmup_steps, done = schedule.learning_rate, schedule.warmup_steps, step - begin
    assert peak is not None and warmup_steps is not None, "PretrainRecipe requires both where a schedule starts"
    if done < warmup_steps:
        return peak * (done + 1) / warmup_steps
    return peak * (length - done) / max(length - warmup_steps, 1)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
