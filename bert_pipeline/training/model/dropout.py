"""Dropout for fine-tuning on CPUs. What it drops is a function of a seed, so backward draws it again instead of storing
it.

torch draws each unit with the Mersenne Twister, about 5 ns. Here a hash of its number decides, which takes 0.1 ns: the
32-bit finalizer of MurmurHash3 with the multipliers of lowbias32 (https://github.com/skeeto/hash-prospector).
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

u32 = np.uint32


def drop(states: Tensor, dropout: float, seed: int, start: int = 0) -> Tensor:
    """Each unit is dropped with probability `dropout`, the others are multiplied by 1 / (1 - dropout).

    `states`: on the CPU. `start`: the number of the first unit; units of equal (seed, number) are dropped alike.
    """
    states = states.contiguous()
    out = torch.empty_like(states)  # another place: in place, the compiler finds no vector instructions
    mixed, first, threshold = _splitmix(seed), u32(start % 2**32), u32(round(dropout * 2**32))
    low, high, scale = u32(mixed % 2**32), u32(mixed >> 32), 1 / (1 - dropout)
    if states.dtype == torch.bfloat16:  # numpy has no bfloat16
        given, written = (each.view(torch.uint16).view(-1).numpy() for each in (states, out))
        _drop_bfloat16(given, written, first, low, high, threshold, scale)
    else:
        given, written = (each.view(-1).numpy() for each in (states, out))
        _drop(given, written, first, low, high, threshold, scale)
    return out


def _splitmix(seed: int) -> int:
    """64 bits that differ in about half of their places between any two seeds (Steele et al. 2014, SplitMix64)."""
    found = (seed + 0x9E3779B97F4A7C15) % 2**64
    found = (found ^ (found >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    found = (found ^ (found >> 27)) * 0x94D049BB133111EB % 2**64
    return found ^ (found >> 31)


@njit(nogil=True, inline="always")
def _hash(number, low, high):
    found = u32(number * u32(0x9E3779B1) + low)
    found = u32((found ^ (found >> u32(16))) * u32(0x7FEB352D))
    found = u32((found ^ high ^ (found >> u32(15))) * u32(0x846CA68B))
    return u32(found ^ (found >> u32(16)))


@njit(cache=True, nogil=True)
def _drop(states, out, start, low, high, threshold, scale):  # writes `out`
    factor = states.dtype.type(scale)
    for n in range(len(states)):
        kept = _hash(u32(u32(n) + start), low, high) >= threshold
        out[n] = states[n] * factor if kept else states.dtype.type(0)


@njit(cache=True, nogil=True)
def _drop_bfloat16(states, out, start, low, high, threshold, scale):  # writes `out`: bit patterns
    factor = np.float32(scale)
    for n in range(len(states)):
        kept = _hash(u32(u32(n) + start), low, high) >= threshold
        exact = np.float32(u32(u32(states[n]) << u32(16)).view(np.float32) * factor).view(np.uint32)
        rounded = u32(exact + u32(0x7FFF) + ((exact >> u32(16)) & u32(1))) >> u32(16)  # to the nearest, ties to even
        out[n] = np.uint16(rounded) if kept else np.uint16(0)


class Dropout(nn.Dropout):
    """A stock dropout that computes as above on CPUs. Its seed comes from torch's generator."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.p and input.is_cpu):
            return super().forward(input)
        return Dropped.apply(input, self.p, int(torch.randint(2**62, ())))


class Dropped(torch.autograd.Function):
    """`drop` for torch: (states, dropout, seed)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, dropout: float, seed: int) -> Tensor:
        ctx.dropout, ctx.seed = dropout, seed
        return drop(states, dropout, seed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return drop(gradient, ctx.dropout, ctx.seed), None, None
