"""The precisions that a device can train in."""

import torch

from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.model.attention import FLASH_CAPABILITY


def check_precision(mixed_precision: str, device: torch.device) -> None:
    """Raise TrainingError unless the device trains at full speed in this `mixed_precision` of an accelerate
    config.
    """
    if mixed_precision == "no":
        return
    if mixed_precision != "bf16":
        raise TrainingError(
            f"mixed_precision is {mixed_precision}; remedy: bf16 or no in the accelerate config (float16 needs loss "
            "scaling, which this loop does not implement)"
        )
    if device.type == "cuda":
        check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    elif not computes_bf16():
        raise TrainingError(
            "mixed_precision is bf16, but oneDNN has no products in bfloat16 for this processor, and torch's own can "
            "take hundreds of times as long as float32; remedy: BERT_PIPELINE_ACCELERATE_CONFIG=cpu, or "
            "`mixed_precision: 'no'` in the accelerate config"
        )


def computes_bf16() -> bool:
    """Whether oneDNN multiplies matrices in bfloat16 on this processor: by units for it, or converting by AVX-512."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Raise TrainingError if a GPU is too old for FlashAttention in bfloat16."""
    if capability < FLASH_CAPABILITY:
        raise TrainingError(
            f"mixed_precision is bf16, but {name} has compute capability {'{}.{}'.format(*capability)}, and "
            f"FlashAttention needs {'{}.{}'.format(*FLASH_CAPABILITY)}; remedy: `mixed_precision: 'no'` in the "
            "accelerate config, or a newer GPU"
        )
