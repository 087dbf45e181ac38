"""The accelerate config that suits a machine."""

import re
import shutil

from bert_pipeline.core.processor import has_bf16_units
from bert_pipeline.settings import ACCELERATE_CONFIGS


def suitable_config() -> str:
    """A config for all of this machine, as YAML; empty for float32 on the CPU, the default."""
    import torch

    if gpus := torch.cuda.device_count():
        return config_of_gpus(gpus)
    if has_bf16_units() and shutil.which("g++"):  # for torch.compile
        return (ACCELERATE_CONFIGS / "cpu_bf16.yaml").read_text(encoding="utf-8")
    return ""


def config_of_gpus(count: int) -> str:
    """One process on each of `count` GPUs of one machine, as YAML."""
    if count == 1:
        return (ACCELERATE_CONFIGS / "single_gpu.yaml").read_text(encoding="utf-8")
    text = (ACCELERATE_CONFIGS / "ddp_1node.yaml").read_text(encoding="utf-8").partition("\n")[2]
    return f"# {count} GPUs of one machine, data parallel.\n" + re.sub(
        r"num_processes: \d+", f"num_processes: {count}", text
    )
