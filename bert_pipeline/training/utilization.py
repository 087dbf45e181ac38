"""The clock of the steps, and the measured peak of a device on square matrix products.

The model-FLOP utilization is the share of this peak that the steps reach.
"""

import time

import torch

SIZES = {"cpu": 2048, "cuda": 8192}
TIMED_SECONDS = 0.3


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one device: the fastest of many products of two square matrices."""
    size = SIZES.get(device.type, SIZES["cpu"])
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def seconds() -> float:
        wait_for_kernels(device)
        clock = time.perf_counter()
        torch.mm(left, right)
        wait_for_kernels(device)
        return time.perf_counter() - clock

    seconds()  # warm-up
    best = total = seconds()
    while total < TIMED_SECONDS:
        found = seconds()
        best, total = min(best, found), total + found
    return 2.0 * size**3 / best


def wait_for_kernels(device: torch.device) -> None:
    """Wait until the device has computed everything: CUDA returns from a call before its kernels have run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Peak:
    """Operations per second that a group of equal devices can reach together; never less than what it has reached."""

    def __init__(self, device: torch.device, dtype: torch.dtype, num_devices: int) -> None:
        self._measure = lambda: matmul_peak(device, dtype) * num_devices
        self.flops_per_second = self._measure()

    def utilization(self, flops_per_second: float) -> tuple[float, bool]:
        """The share of the peak, at most 1, and whether the peak had to be raised for it.

        A rate above the peak shows that other work ran while the peak was measured. The peak is then measured again.
        """
        raised = flops_per_second > self.flops_per_second
        if raised:
            self.flops_per_second = max(self._measure(), flops_per_second)
        return flops_per_second / self.flops_per_second, raised


class Stopwatch:
    """Times stretches of consecutive steps, without the reports, held-out scores and checkpoints between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started: float | None = None

    def start(self, waited: float) -> None:
        """Start with a step that has already waited this many seconds for its data; do nothing if running."""
        if self._started is None:
            self._started = time.monotonic() - waited

    def stop(self) -> float:
        """Seconds since the start, until the last kernel has finished; 0 if it was not running."""
        if self._started is None:
            return 0.0
        wait_for_kernels(self._device)
        seconds, self._started = time.monotonic() - self._started, None
        return seconds
