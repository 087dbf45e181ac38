"""The measured peak of a device on square matrix products; the model-FLOP utilisation is a share of it."""

import time

import torch

SIZES = {"cpu": 2048, "cuda": 8192}
TIMED_SECONDS = 0.3


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one device: the fastest of many products of two square matrices."""
    size = SIZES.get(device.type, SIZES["cpu"])
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - clock

    seconds()  # warm-up
    best = total = seconds()
    while total < TIMED_SECONDS:
        found = seconds()
        best, total = min(best, found), total + found
    return 2.0 * size**3 / best
