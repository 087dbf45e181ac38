"""Precisions that would be wrong or far too slow are refused."""

import pytest
import torch

from bert_pipeline.core.processor import CPU, has_bf16_units
from bert_pipeline.training import precision
from bert_pipeline.training.job import TrainingError
from bert_pipeline.training.precision import check_capability, check_precision, computes_bf16


def test_bfloat16_is_refused_on_a_processor_that_cannot_multiply_in_it(monkeypatch):
    monkeypatch.setattr(precision, "computes_bf16", lambda: True)
    check_precision("bf16", CPU)
    monkeypatch.setattr(precision, "computes_bf16", lambda: False)
    check_precision("no", CPU)
    with pytest.raises(TrainingError, match=r"bf16, but oneDNN has no .*remedy: BERT_PIPELINE_ACC.*=cpu"):
        check_precision("bf16", CPU)


def test_a_processor_with_units_is_not_refused():
    assert computes_bf16() or not has_bf16_units()


def test_a_gpu_has_units_since_ampere(monkeypatch):
    for capability, expected in (((7, 0), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert has_bf16_units(torch.device("cuda")) is expected


def test_float16_is_refused():
    with pytest.raises(TrainingError, match="mixed_precision is fp16; remedy: bf16 or no"):
        check_precision("fp16", CPU)


def test_a_gpu_without_flash_attention_is_refused_by_name():
    check_capability("NVIDIA A100", (8, 0))
    check_capability("NVIDIA H200", (9, 0))
    with pytest.raises(TrainingError, match=r"bf16, but Tesla T4 has .* 7\.5, .* needs 8\.0; remedy: `mixed_precision"):
        check_capability("Tesla T4", (7, 5))
