"""What a device can do at most, to hold a training against: square matrix products, measured."""

import time

import torch

SIZES = {"cpu": 2048, "cuda": 8192}
TIMED_SECONDS = 0.3


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one device, the best of many products of two square matrices."""
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

    seconds()  # the first one also sets up what all of them use
    best = total = seconds()
    while total < TIMED_SECONDS:
        found = seconds()
        best, total = min(best, found), total + found
    return 2.0 * size**3 / best
