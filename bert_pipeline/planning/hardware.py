"""Known hardware, to estimate training time on machines that are not available here."""

import difflib
from dataclasses import dataclass

ASSUMED_UTILIZATION = 0.40
"""Assumed share of the vendor's peak that training reaches; measure it on your own hardware if it matters."""


@dataclass(frozen=True)
class Hardware:
    flops_per_second: float
    """Peak of the tensor cores in bfloat16 (V100: float16) without sparsity, from the vendor's data sheet."""
    memory: float  # bytes
    source: str


HARDWARE = {
    "A100-80GB": Hardware(312e12, 80e9, "NVIDIA A100 80GB data sheet"),
    "H100-SXM": Hardware(989.4e12, 80e9, "NVIDIA H100 data sheet; with sparsity 1,979"),
    "H200": Hardware(989.4e12, 141e9, "NVIDIA H200 data sheet; with sparsity 1,979"),
    "L4": Hardware(121e12, 24e9, "NVIDIA L4 data sheet; with sparsity 242"),
    "RTX-4090": Hardware(165.2e12, 24e9, "NVIDIA Ada GPU architecture, appendix A; float32 sums"),
    "V100": Hardware(125e12, 32e9, "NVIDIA V100 data sheet; SXM2, float16"),
}


def find_hardware(name: str) -> Hardware:
    """Raise ValueError, with a suggestion, if the name is unknown."""
    if name in HARDWARE:
        return HARDWARE[name]
    near = difflib.get_close_matches(name, HARDWARE, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]}?" if near else "remedy: use a known name"
    raise ValueError(f"unknown hardware {name!r}; {remedy} (known: {', '.join(HARDWARE)})")
