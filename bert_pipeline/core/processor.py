"""What this machine's processor can compute."""

import torch


def has_bf16_units() -> bool:
    """Whether the processor multiplies matrices in bfloat16 by instructions of its own (AMX, AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
