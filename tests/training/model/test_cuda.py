"""The CUDA branches, traced without a GPU: signatures, shapes, autograd and torch.compile.

A CPU build of torch has no autograd for CUDA tensors, not even for fake ones. So the dispatch is traced on fake CUDA
tensors, and what it dispatches to on meta tensors, for which torch's CUDA operations declare their shapes.
"""

import inspect

import pytest
import torch
from torch._dynamo import lookup_backend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel import distributed as ddp
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from bert_pipeline import settings
from bert_pipeline.recipe import ModelRecipe
from bert_pipeline.training import determinism
from bert_pipeline.training.model import attention
from bert_pipeline.training.model.attention import packed_attention
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model

FORWARD, BACKWARD = "aten::_flash_attention_forward", "aten::_flash_attention_backward"
COMPILED = "model.bert.encoder"
"""The gradients to expect after torch.compile: on meta tensors it loses those of `cross_entropy` (torch 2.13)."""
VARLEN, VARLEN_BACKWARD = "torch_attn::_varlen_attn", "torch_attn::_varlen_attn_backward"


class Operations(TorchDispatchMode):
    """Records the names of the operations that torch dispatches, and the last dimension of their first argument."""

    def __init__(self):
        super().__init__()
        self.names, self.widths = set(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        self.names.add(name)
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim:
            self.widths[name] = args[0].shape[-1]
        return function(*args, **(kwargs or {}))


class Config:
    max_position_embeddings = 128


def states(device, width=16, dtype=torch.bfloat16, queries=30):
    module = torch.nn.Module()
    module.config = Config()
    given = [torch.empty(1, 2, n, width, device=device, dtype=dtype) for n in (queries, 30, 30)]
    return module, *given


def offsets(device):
    return torch.empty(4, dtype=torch.int32, device=device)


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setattr(attention, "has_flash_attention", lambda query: True)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("width", [16, 12, 64, 250])
def test_half_precision_on_cuda_takes_flash_attention(dropout, width):
    """A width that is not a multiple of 8, which the kernel refuses, is padded."""
    with FakeTensorMode(), Operations() as seen:
        module, *given = states("cuda", width)
        found, _ = packed_attention(module, *given, None, offsets=offsets("cuda"), scaling=0.3, dropout=dropout)
    assert (found.shape, found.dtype, found.device.type) == ((1, 30, 2, width), torch.bfloat16, "cuda")
    called = FORWARD if dropout else VARLEN
    assert called in seen.names and seen.widths[called] % 8 == 0 and seen.widths[called] - width < 8


@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (264, torch.bfloat16)])
def test_what_flash_attention_refuses_is_computed_otherwise(width, dtype):
    with FakeTensorMode():
        assert not attention.has_flash_attention(torch.empty(3, 2, width, device="cuda", dtype=dtype))
        assert attention.has_flash_attention(torch.empty(3, 2, 256, device="cuda", dtype=torch.float16))
    assert not attention.has_flash_attention(torch.empty(3, 2, 16, dtype=torch.bfloat16))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("width", [16, 12])
@pytest.mark.parametrize("queries", [30, 8])
def test_gradients_pass_through_flash_attention(flash, dropout, width, queries):
    module, *given = states("meta", width, queries=queries)
    given = [each.requires_grad_() for each in given]
    query_offsets = None if queries == 30 else offsets("meta")
    with Operations() as seen:
        found, _ = packed_attention(
            *(module, *given, None), offsets=offsets("meta"), query_offsets=query_offsets, scaling=0.3, dropout=dropout
        )
        found.sum().backward()
    assert found.shape == (1, queries, 2, width)
    assert all(each.grad.shape == each.shape and each.grad.dtype == each.dtype for each in given)
    assert {BACKWARD if dropout else VARLEN_BACKWARD} <= seen.names


def test_padding_a_head_changes_nothing(monkeypatch, flash):
    """The kernel is replaced by plain products on the CPU: `varlen_attn` of one pair."""

    def products(query, key, value, query_offsets, offsets, longest, longest_key, *, scale):
        assert query.shape[-1] == key.shape[-1] == value.shape[-1] == 16
        q, k, v = (each.transpose(0, 1) for each in (query, key, value))
        return scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1)

    monkeypatch.setattr(attention, "varlen_attn", products)
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(1, 2, 30, 12, generator=generator).requires_grad_() for _ in range(3)]
    toward = torch.randn(1, 30, 2, 12, generator=generator)
    module, one = states("cpu")[0], torch.tensor([0, 30], dtype=torch.int32)
    found, _ = packed_attention(module, *given, None, offsets=one, scaling=0.3)
    expected = scaled_dot_product_attention(*given, scale=0.3).transpose(1, 2)
    for mine, right in zip(
        [found, *torch.autograd.grad(found, given, toward)],
        [expected, *torch.autograd.grad(expected, given, toward)],
        strict=True,
    ):
        torch.testing.assert_close(mine, right, atol=2e-6, rtol=1e-5)


def test_the_public_function_still_has_no_dropout():
    """If this fails, the private operation is no longer needed."""
    assert not [name for name in inspect.signature(varlen_attn).parameters if "dropout" in name]


def objective(dropout, width=12):
    recipe = ModelRecipe(
        hidden_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    loss = PretrainingLoss(build_model(recipe, 1000, seed=1)).to("meta").train()
    loss.model.tie_weights()
    return loss


def micro_batch(pairs=4, tokens=256, masked=32, device="meta"):
    def some(*shape, dtype=torch.int64):
        return torch.empty(shape, dtype=dtype, device=device)

    return {
        **{name: some(1, tokens) for name in ("input_ids", "token_type_ids", "position_ids")},
        "offsets": some(pairs + 1, dtype=torch.int32),
        "output_positions": some(pairs + masked),
        "output_offsets": some(pairs + 1, dtype=torch.int32),
        "masked": some(masked),
        "masked_labels": some(masked),
        "next_sentence_label": some(pairs),
    }


def step(loss, **sizes):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = loss(**micro_batch(**sizes))
    (sums.mlm_loss + sums.nsp_loss).backward()


def assert_gradients(loss, part="model"):
    named = [(name, each) for name, each in loss.named_parameters() if name.startswith(part)]
    assert named and not [name for name, each in named if each.grad is None or each.grad.shape != each.shape]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_has_all_gradients_and_only_deterministic_operations(flash, dropout):
    """Operations that torch.use_deterministic_algorithms refuses on CUDA, by its documentation."""
    refused = {"cumsum", "put_", "histc", "bincount", "kthvalue", "median", "nll_loss2d_forward", "ctc_loss_backward"}
    refused |= {"scatter_reduce", "grid_sampler_2d_backward", "upsample_linear1d_backward", "max_unpool2d", "resize_"}
    loss = objective(dropout)
    with Operations() as seen:
        step(loss)
    assert_gradients(loss)
    assert not {f"aten::{name}" for name in refused} & seen.names
    assert {FORWARD if dropout else VARLEN, BACKWARD if dropout else VARLEN_BACKWARD} <= seen.names
    assert {"aten::embedding_dense_backward", "aten::index_add"} & seen.names, "the trace has seen a backward pass"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_compiles_without_breaks_for_all_sizes(flash, dropout):
    torch.compiler.reset()
    loss = objective(dropout)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(loss, backend=backend, dynamic=True, fullgraph=True)
    step(compiled)
    before = len(graphs)
    step(compiled, pairs=5, tokens=320, masked=64)
    assert_gradients(loss, COMPILED)
    assert len(graphs) == before > 0, "another size compiles nothing"


@pytest.fixture
def fake_group():
    """A group of two processes in which nothing is sent."""
    torch.compiler.reset()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def unsent(_, bucket):
    sent = torch.futures.Future()
    sent.set_result(bucket.buffer())
    return sent


@pytest.mark.parametrize("compiled", [False, True])
def test_distributed_data_parallel(flash, fake_group, monkeypatch, compiled):
    """Its checks of the weights' values are left out, because meta tensors have none."""
    for name in ("_verify_param_shape_across_processes", "_sync_module_states"):
        monkeypatch.setattr(ddp, name, lambda *_, **__: None)
    loss = objective(0.1)
    wrapped = DistributedDataParallel(loss, broadcast_buffers=False)
    wrapped.register_comm_hook(None, unsent)
    step(torch.compile(wrapped, backend="aot_eager", dynamic=True) if compiled else wrapped)
    assert_gradients(loss, COMPILED if compiled else "model")


def test_determinism_is_requested_strictly_on_cuda_only(monkeypatch):
    """With `warn_only` torch's FlashAttention stays nondeterministic."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.utils.deterministic.fill_uninitialized_memory
    try:
        determinism.request_determinism(torch.device("cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        determinism.request_determinism(torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert settings.child_environment({})["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
