"""Dropout for fine-tuning on CPUs. What it drops is a function of a seed, so backward draws it again instead of storing
it.

torch draws each unit with the Mersenne Twister, about 5 ns. Here it takes 16 bits of SFC64, under 1 ns.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

BITS = 16


def kept(states: Tensor, dropout: float, seed: int) -> Tensor:
    """Factors of the shape and precision of `states`: 0 for a dropped unit, 1 / (1 - dropout) for a kept one."""
    count = states.numel()
    drawn = np.random.SFC64(seed).random_raw(-(-count * BITS // 64)).view(np.uint16)
    value = torch.tensor([1 / (1 - dropout)], dtype=states.dtype)
    bits = np.uint16 if states.dtype == torch.bfloat16 else {4: np.uint32, 8: np.uint64}[states.element_size()]
    factors = np.empty(count, bits)
    _fill(drawn, round(dropout * 2**BITS), value.view(torch.uint8).numpy().view(bits)[0], factors)
    return torch.from_numpy(factors.view(np.uint8)).view(states.dtype).view(states.shape)


@njit(cache=True, nogil=True)
def _fill(drawn, threshold, value, factors):  # writes `factors`: bit patterns
    for n in range(len(factors)):
        if drawn[n] >= threshold:
            factors[n] = value
        else:
            factors[n] = 0


class Dropout(nn.Dropout):
    """A stock dropout that computes as above on CPUs. Its seed comes from torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.p and input.is_cpu):
            return super().forward(input)
        return dropped(input, self.p, torch.randint(2**62, ()))


@torch.library.custom_op("bert_pipeline::dropped", mutates_args=())
def dropped(states: Tensor, dropout: float, seed: Tensor) -> Tensor:
    return states * kept(states, dropout, int(seed))


@dropped.register_fake
def _(states, dropout, seed):
    return states.new_empty(states.shape)


def _setup(ctx, inputs, output):
    _, ctx.dropout, seed = inputs
    ctx.save_for_backward(seed)


def _backward(ctx, gradient):
    [seed] = ctx.saved_tensors
    return dropped(gradient, ctx.dropout, seed), None, None


dropped.register_autograd(_backward, setup_context=_setup)
