"""Muon for the matrices of the encoder, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
matrix with equal singular values. The scale 0.2 sqrt(max(rows, columns)) gives its update the size that AdamW's usually
has (Liu et al. 2025, arXiv 2502.16982, section 2.2), so both can share a schedule.

`torch.optim.Muon` computes the same, matrix by matrix. Here all matrices of one shape are one batch, and under data
parallel each process orthogonalises its share.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from bert_pipeline.core.processor import has_bf16_units

COEFFICIENTS = ((8.0934, -23.6206, 17.4463), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""Of the quintic polynomials that are applied one after the other. Each is the one that deviates least from 1 on the
range that the polynomials before it leave of the singular values from 0.01 to 1 (Polar Express, Amsel et al. 2025,
arXiv 2505.16932, algorithm 1). `torch.optim.Muon` applies one polynomial five times, which takes 13 instead of 8 % of a
step of `small` (recipes/LOG.md)."""
MOMENTUM = 0.95
EPSILON = 1e-7
"""The least norm that a matrix is divided by."""


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer for the training loop. The groups of AdamW come first, the matrices of Muon are the last group."""

    def __init__(self, adamw: torch.optim.AdamW, matrices: Sequence[nn.Parameter], weight_decay: float) -> None:
        """`matrices`: parameters of 2 dimensions that `adamw` does not hold."""
        super().__init__(adamw.param_groups, {})
        adamw.state = self.state  # one state by parameter, so that a checkpoint finds all of it here
        self.add_param_group({"params": list(matrices), "weight_decay": weight_decay, "lr": 0.0, "is_muon": True})
        self._adamw = adamw

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._adamw.step()
        group = self.param_groups[-1]
        updates = orthogonal_updates([self._momentum(each, each.grad) for each in group["params"]])
        for parameter, update in zip(group["params"], updates, strict=True):
            scale = 0.2 * math.sqrt(max(parameter.shape))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """The gradient and its running mean, in Nesterov's combination."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(mean, MOMENTUM)


def orthogonal_updates(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix with its singular values brought near 1; the order is kept.

    In bfloat16 where the device has units for it, else in float32; the two agree within bfloat16's rounding.
    Processes of a group share the work: all call it with the same matrices, and all get all results.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for n, matrix in enumerate(matrices):
        by_shape.setdefault((min(matrix.shape), max(matrix.shape)), []).append(n)
    found: dict[int, Tensor] = {}
    for places in by_shape.values():
        wide = [matrices[n] if matrices[n].shape[0] <= matrices[n].shape[1] else matrices[n].T for n in places]
        for n, update in zip(places, _shared_out(wide), strict=True):
            found[n] = update if update.shape == matrices[n].shape else update.T
    return [found[n] for n in range(len(matrices))]


def _shared_out(matrices: Sequence[Tensor]) -> Sequence[Tensor]:
    """`orthogonalised`, of which each process computes every n-th matrix."""
    dtype = torch.bfloat16 if has_bf16_units(matrices[0].device) else torch.float32
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return orthogonalised(torch.stack([matrix.to(dtype) for matrix in matrices])).unbind()
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    everything = torch.zeros((len(matrices), *matrices[0].shape), device=matrices[0].device)
    if mine := list(matrices[rank::world_size]):
        everything[rank::world_size] = orthogonalised(torch.stack([matrix.to(dtype) for matrix in mine])).float()
    distributed.all_reduce(everything)  # each matrix is zero in all processes but one, so the sum is exact
    return everything.unbind()


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz on a batch of (rows, columns), rows <= columns, in its own precision."""
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    found = matrices / norms.clamp(min=EPSILON)
    for a, b, c in COEFFICIENTS:
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found
