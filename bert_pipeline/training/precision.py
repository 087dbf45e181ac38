"""The precisions that a device can train in."""

import torch

from bert_pipeline.core.processor import has_bf16_units
from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.model.attention import FLASH_CAPABILITY


def check_precision(mixed_precision: str, device: torch.device) -> None:
    """Raise TrainingError unless the device trains in this `mixed_precision` of an accelerate config at full speed."""
    if mixed_precision == "no":
        return
    if mixed_precision != "bf16":
        raise TrainingError(
            f"mixed_precision is {mixed_precision}; remedy: bf16 or no in the accelerate config (float16 needs loss "
            "scaling, which this loop does not implement)"
        )
    if device.type == "cuda":
        check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    elif not has_bf16_units():
        raise TrainingError(
            "mixed_precision is bf16, but this processor has no instructions for it (AMX, AVX512-BF16), and without "
            "them training can be hundreds of times slower than in float32; remedy: "
            "BERT_PIPELINE_ACCELERATE_CONFIG=cpu, or `mixed_precision: 'no'` in the accelerate config"
        )


def check_capability(name: str, capability: tuple[int, int]) -> None:
    """Raise TrainingError if a GPU is too old for FlashAttention in bfloat16."""
    if capability < FLASH_CAPABILITY:
        raise TrainingError(
            f"mixed_precision is bf16, but {name} has compute capability {'{}.{}'.format(*capability)}, and "
            f"FlashAttention needs {'{}.{}'.format(*FLASH_CAPABILITY)}; remedy: `mixed_precision: 'no'` in the "
            "accelerate config, or a newer GPU"
        )
