"""What the processors of this machine compute by instructions of their own."""

import torch

CPU = torch.device("cpu")
BF16_CAPABILITY = (8, 0)
"""The oldest compute capability whose tensor cores take bfloat16 (Ampere)."""


def has_bf16_units(device: torch.device = CPU) -> bool:
    """Whether the device multiplies matrices in bfloat16 by instructions of its own (CPU: AMX, AVX512-BF16).

    Without them torch's products in bfloat16 can be hundreds of times slower than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
