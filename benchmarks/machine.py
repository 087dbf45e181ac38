"""The machine of a measurement."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Linux's names of CPU features for bfloat16 matrix products."""


def machine(cores: list[int], *packages: str) -> dict[str, Any]:
    models = cpu_info("model name")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(cores),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def bf16_units() -> list[str]:
    flags = " ".join(cpu_info("flags")[:1]).split()
    return [flag for flag in BF16_FLAGS if flag in flags]


def cpu_info(key: str) -> list[str]:
    """The values of this key in /proc/cpuinfo, one per core."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
