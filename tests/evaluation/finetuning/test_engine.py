"""Packed rows give what the stock model of transformers gives on padded rows, for every kind of task and family."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from bert_pipeline import settings
from bert_pipeline.evaluation.finetuning.batches import packed, padded
from bert_pipeline.evaluation.finetuning.engine import Computation, TaskModel, usual_computation
from bert_pipeline.evaluation.finetuning.finetune import predict
from bert_pipeline.evaluation.finetuning.heads import build_task_model
from bert_pipeline.evaluation.finetuning.inputs import encode_task
from bert_pipeline.training.model.attention import attention_on_cpu, attention_on_cpu_backward
from bert_pipeline.training.model.dropout import Dropout, Dropped, drop
from bert_pipeline.training.model.packed import packed_outputs

from .test_families import electra, roberta

KINDS = ("ner", "pico", "relation", "similarity", "documents", "qa")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["bert", "electra", "roberta"])
def family(request, model_dir, tmp_path_factory):
    """ELECTRA's embeddings are narrower than its layers; RoBERTa's positions begin after the id of its padding."""
    if request.param == "bert":
        return model_dir
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    AutoModelForMaskedLM.from_config({"electra": electra, "roberta": roberta}[request.param](folder)).save_pretrained(
        folder
    )
    return folder


def stock_loss(model, task, examples, pad_id):
    """The loss that the model of transformers computes itself."""
    tensors = padded(examples, pad_id)
    if examples[0].num_words:
        labels = torch.full(tensors["input_ids"].shape, -100)
        for row, each in enumerate(examples):
            labels[row, : len(each.target)] = torch.from_numpy(each.target)
    else:
        labels = torch.from_numpy(np.stack([each.target for each in examples]))
    return model(**tensors, labels=labels).loss


def gradients(model):
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_padded(family, small_task, kind):
    """Loss and gradients, in float32."""
    task, data = small_task(f"small-{kind}")
    inputs = encode_task(family, task, data, 64)
    examples = sorted(inputs.learnable[:24], key=lambda each: len(each.input_ids))
    torch.manual_seed(1)
    model, _ = build_task_model(family, "pretrained", task)
    model.eval()  # without dropout, of which each side draws its own
    expected = stock_loss(model, task, examples, inputs.pad_id)
    expected.backward()
    of_stock = gradients(model)
    for rows in ("padded", "packed"):
        loss = TaskModel(model, task, inputs.pad_id, Computation("float32", rows)).loss(examples)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=5e-6)
        of_ours = gradients(model)
        assert of_ours.keys() == of_stock.keys()
        for name, gradient in of_stock.items():
            torch.testing.assert_close(of_ours[name], gradient, atol=2e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rows", ["packed", "padded"])
def test_bfloat16_rounds_and_no_more(model_dir, small_task, rows):
    task, data = small_task("small-ner")
    inputs = encode_task(model_dir, task, data, 64)
    torch.manual_seed(1)
    model, _ = build_task_model(model_dir, "pretrained", task)
    model.eval()
    found = {}
    for precision in ("float32", "bf16"):
        model.set_attn_implementation("sdpa")
        loss = TaskModel(model, task, inputs.pad_id, Computation(precision, rows)).loss(inputs.learnable[:16])
        loss.backward()
        found[precision] = loss.item(), torch.cat([each.flatten() for each in gradients(model).values()])
    assert found["bf16"][0] != found["float32"][0]
    assert found["bf16"][0] == pytest.approx(found["float32"][0], rel=2**-6)
    exact, rounded = found["float32"][1], found["bf16"][1]
    assert rounded.dtype == torch.float32 and (rounded - exact).norm() < 2**-4 * exact.norm()


def test_a_prediction_casts_the_weights_once(model_dir, small_task):
    task, data = small_task("small-ner")
    inputs = encode_task(model_dir, task, data, 64)
    model, _ = build_task_model(model_dir, "pretrained", task)
    wrapped, examples = TaskModel(model, task, inputs.pad_id, Computation("bf16", "packed")), inputs.learnable[:6]
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        predict(wrapped, examples, tokens=1)
    casts = {
        tuple(event.input_shapes[0]): event.count
        for event in profiled.key_averages(group_by_input_shape=True)
        if event.key == "aten::_to_copy"
    }
    assert casts[tuple(model.classifier.weight.shape)] == 1, "of 6 batches"


def test_a_packed_row_has_one_of_few_shapes_and_its_padding_changes_nothing(model_dir, small_task):
    task, data = small_task("small-relation")
    inputs = encode_task(model_dir, task, data, 64)
    model, _ = build_task_model(model_dir, "pretrained", task)
    model.eval()
    wrapped = TaskModel(model, task, inputs.pad_id, Computation("float32", "packed"))
    for count in (1, 3, 20):
        row = packed(inputs.learnable[:count], inputs.pad_id)
        assert row["input_ids"].shape[1] % 64 == 0 and len(row["output_positions"]) % 32 == 0
        assert row["offsets"][-1] == row["input_ids"].shape[1] and row["output_offsets"][-1] == len(
            row["output_positions"]
        )
        alone = torch.cat([wrapped.logits([each]) for each in inputs.learnable[:count]])
        torch.testing.assert_close(wrapped.logits(inputs.learnable[:count]), alone)
        assert packed_outputs(model.base_model, **row).shape == (len(row["output_positions"]), 32)


def test_the_family_decides_how_rows_are_computed(monkeypatch):
    def rows(config):
        return usual_computation(config, CPU).rows

    assert {rows(each) for each in (BertConfig(), ElectraConfig(), RobertaConfig())} == {"packed"}
    assert {rows(each) for each in (DistilBertConfig(), ModernBertConfig())} == {"padded"}
    for precision in ("bf16", "float32"):
        monkeypatch.setenv("BERT_PIPELINE_FINETUNING_PRECISION", precision)
        assert usual_computation(BertConfig(), CPU) == (precision, "packed")
    monkeypatch.setenv("BERT_PIPELINE_FINETUNING_PRECISION", "fp16")
    with pytest.raises(settings.SettingError, match=r"PRECISION is 'fp16'; remedy: set bf16 or float32"):
        usual_computation(BertConfig(), CPU)


def test_bfloat16_is_used_where_the_processor_has_units(monkeypatch):
    monkeypatch.delenv("BERT_PIPELINE_FINETUNING_PRECISION", raising=False)
    for amx, avx512, expected in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        assert usual_computation(BertConfig(), CPU).precision == expected


# Dropout of attention weights on the CPU


OFFSETS = torch.tensor([0, 3, 8, 42], dtype=torch.int32)
SEED = torch.tensor(11)


def states(dtype=torch.float64):
    torch.manual_seed(2)
    return [torch.randn(42, 2, 4, dtype=dtype, requires_grad=True) for _ in range(3)]


def test_gradients_of_attention_with_dropout_are_those_of_its_output():
    def attend(query, key, value):
        return attention_on_cpu(query, key, value, OFFSETS, OFFSETS, 0.5, 0.25, SEED)

    assert torch.autograd.gradcheck(attend, states(), fast_mode=True)


def test_gradients_of_dropout_are_those_of_its_output():
    assert torch.autograd.gradcheck(lambda x: Dropped.apply(x, 0.25, 11), states()[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_keeps_its_share_and_leaves_the_mean(dtype):
    ones = torch.ones(1000, 333, dtype=dtype)
    found = drop(ones, 0.1, 7)
    assert found.dtype == dtype and found.shape == ones.shape
    assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / 0.9, dtype=dtype).item()}
    assert (found == 0).double().mean().item() == pytest.approx(0.1, abs=0.003)
    rows = (found == 0).double().mean(1)
    assert rows.std().item() == pytest.approx((0.1 * 0.9 / 333) ** 0.5, rel=0.1), "units are dropped independently"
    assert torch.equal(found, drop(ones, 0.1, 7)) and not torch.equal(found, drop(ones, 0.1, 8))
    assert torch.equal(found.view(-1)[100:], drop(ones.view(-1)[100:], 0.1, 7, start=100)), "a unit has a number"


def test_units_that_are_kept_are_rounded_as_torch_rounds():
    torch.manual_seed(3)
    for scale in (1e-30, 1.0, 1e30):
        given = (torch.randn(1000) * scale).bfloat16()
        found, expected = drop(given, 0.3, 5), given.float().mul(1 / (1 - 0.3)).bfloat16()
        kept = found != 0
        assert torch.equal(found[kept], expected[kept])
    for value in (torch.inf, -torch.inf, torch.nan):
        given = torch.full((8,), value, dtype=torch.bfloat16)
        torch.testing.assert_close(drop(given, 0.0, 1), given, equal_nan=True)


def test_what_is_dropped_differs_between_near_seeds_and_numbers():
    """Every pair of 64 sets of 2^16 units shares as many dropped units as chance has it: 1/16 of 1/16 more or less."""
    ones, p = torch.ones(2**16), 1 / 16
    seeds = [*range(32), *(n << 32 for n in range(1, 33))]
    dropped_units = torch.stack([(drop(ones, p, seed) == 0).double() for seed in seeds])
    shared = (dropped_units @ dropped_units.T / len(ones)).fill_diagonal_(p * p)
    deviations = (shared - p * p) / (p * p * (1 - p * p) / len(ones)) ** 0.5
    assert deviations.abs().max().item() < 6 and deviations.std().item() == pytest.approx(1, abs=0.2)
    [one] = dropped_units[:1]
    lags = torch.tensor([(one[lag:] * one[:-lag]).mean() for lag in range(1, 300)])
    assert ((lags - p * p) / (p * p / len(ones)) ** 0.5).abs().max().item() < 6


def test_a_module_drops_in_training_only_and_follows_the_seed_of_torch():
    module, ones = Dropout(0.5), torch.ones(100)
    first, again = (torch.manual_seed(1) and module(ones) for _ in range(2))
    assert torch.equal(first, again) and set(first.tolist()) == {0.0, 2.0}
    assert torch.equal(module.eval()(ones), ones)


def test_attention_with_dropout_is_a_sound_operation_of_torch():
    torch.library.opcheck(attention_on_cpu, (*states(torch.float32), OFFSETS, OFFSETS, 0.5, 0.25, SEED))
    given = (torch.ones(42, 2, 4), *(each.detach() for each in states(torch.float32)))
    torch.library.opcheck(attention_on_cpu_backward, (*given, OFFSETS, OFFSETS, 0.5, 0.25, SEED))


def test_dropout_is_a_function_of_the_seed_and_drops_its_share():
    """Each output is a mean of 200 values that are 0 with probability p, else 1 / (1 - p)."""
    p, keys = 0.25, 200
    ones, offsets = torch.ones(400, 1, 8), torch.tensor([0, keys, 2 * keys], dtype=torch.int32)
    found, again, other = (
        attention_on_cpu(ones, ones, ones, offsets, offsets, 1.0, p, torch.tensor(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(found, again) and not torch.equal(found, other)
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)
    assert found.std().item() == pytest.approx((p / (1 - p) / keys) ** 0.5, rel=0.1)
    exact = attention_on_cpu(ones, ones, ones, offsets, offsets, 1.0)
    torch.testing.assert_close(exact, ones)
