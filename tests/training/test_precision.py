"""Precisions that would be wrong or far too slow are refused."""

import pytest
import torch

from bert_pipeline.core.processor import CPU
from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.precision import check_capability, check_precision


def test_bfloat16_is_refused_on_a_processor_without_units_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    check_precision("bf16", CPU)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    check_precision("no", CPU)
    with pytest.raises(TrainingError, match=r"bf16, but this processor .*AVX512-BF16.*remedy: BERT_PIPELINE_ACC.*=cpu"):
        check_precision("bf16", CPU)


def test_float16_is_refused():
    with pytest.raises(TrainingError, match="mixed_precision is fp16; remedy: bf16 or no"):
        check_precision("fp16", CPU)


def test_a_gpu_without_flash_attention_is_refused_by_name():
    check_capability("NVIDIA A100", (8, 0))
    check_capability("NVIDIA H200", (9, 0))
    with pytest.raises(TrainingError, match=r"bf16, but Tesla T4 has .* 7\.5, .* needs 8\.0; remedy: `mixed_precision"):
        check_capability("Tesla T4", (7, 5))
