"""The machine of a measurement."""

import platform
from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bert_pipeline.settings import CPU_ENVIRONMENT

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


def described(found: Mapping[str, Any]) -> str:
    """The machine in a line; `found`: from `machine`, with `bf16_units`."""
    versions = {"Python": found["python"], **found["versions"]}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"{found['cpu']}, {found['cores']} cores (bf16 units: {', '.join(found['bf16_units']) or 'none'}), {named}"


def on_all(cores: Collection[int]) -> dict[str, str]:
    """The environment of a measurement with a thread on each core, as the launcher sets it for training."""
    return CPU_ENVIRONMENT | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(len(cores)))


def cpu_info(key: str) -> list[str]:
    """The values of this key in /proc/cpuinfo, one per core."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
