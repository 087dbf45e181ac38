"""Deterministic algorithms on CUDA, so that the same steps give the same weights; CPUs need no request.

FlashAttention's backward pass otherwise adds with atomic operations. The request must be strict: with `warn_only` it
stays as it is (torch 2.13, attention_backward.cu). tests/training/model/test_cuda.py shows that a step calls nothing
that torch refuses in this mode. No test has compared two runs on a GPU.
"""

import torch

from bert_pipeline import settings


def request_determinism(device: torch.device) -> None:
    """Call it before the first matrix product: cuBLAS reads its setting then."""
    if device.type != "cuda":
        return
    settings.make_cublas_deterministic()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time
