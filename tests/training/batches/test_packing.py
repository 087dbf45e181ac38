"""Packed rows: what they hold, and that the model computes on them what it computes on padded ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from training.runs import open_dataset
from transformers import BertForPreTraining

from bert_pipeline.formats.pairs import IGNORE_INDEX, token_type_ids
from bert_pipeline.formats.tokenizer import PAD_ID
from bert_pipeline.training.batches.dataset import Rows
from bert_pipeline.training.batches.packing import OUTPUT_STEP, TOKEN_STEP, fill_up, micro_batches, pack, pad
from bert_pipeline.training.model import attention
from bert_pipeline.training.model.attention import packed_attention
from bert_pipeline.training.model.loss import PretrainingLoss, sum_of_cross_entropy
from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.packed import Embedding, sum_by_row


@pytest.fixture(scope="module")
def dataset(tiny, tiny_recipe):
    return open_dataset(tiny, tiny_recipe, 64)


@pytest.fixture
def model(tiny_recipe, tiny):
    still = tiny_recipe.model.model_copy(
        update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 2}
    )
    return build_model(still, tiny["tokenizer"].facts["vocab_size"], seed=3)


@st.composite
def made_samples(draw):
    """Rows of any length from 5 tokens on, with no mask up to all masked, of a small or a large vocabulary."""
    ids = draw(st.sampled_from([np.uint16, np.uint32]))
    numbers = st.integers(0, np.iinfo(ids).max)
    samples = []
    for length in draw(st.lists(st.integers(5, 30), min_size=1, max_size=20)):
        positions = sorted(draw(st.sets(st.integers(1, length - 1))))
        samples.append(
            (
                np.array(draw(st.lists(numbers, min_size=length, max_size=length)), ids),
                draw(st.integers(1, length - 3)),  # up to no segment B at all
                draw(st.sampled_from([0, 1, IGNORE_INDEX])),
                np.array(positions, np.uint16),
                np.array(draw(st.lists(numbers, min_size=len(positions), max_size=len(positions))), ids),
            )
        )
    return samples


def rows_of(samples):
    originals, segment_a_lengths, labels, positions, replacements = zip(*samples, strict=True)
    return Rows(
        np.concatenate(originals),
        np.cumsum([0, *map(len, originals)]),
        np.array(segment_a_lengths, np.uint16),
        np.array(labels, np.int8),
        np.concatenate(positions),
        np.concatenate(replacements),
        np.cumsum([0, *map(len, positions)]),
    )


def slow_pack(samples):
    """The oracle: token by token."""
    columns = {
        name: []
        for name in ("input_ids", "token_type_ids", "position_ids", "output_positions", "masked", "masked_labels")
    }
    offsets, output_offsets = [0], [0]
    for original, segment_a_length, _, positions, replacements in samples:
        seen = dict(zip(positions.tolist(), replacements.tolist(), strict=True))
        types = token_type_ids(len(original), segment_a_length)
        columns["output_positions"].append(offsets[-1])
        for place, token in enumerate(original.tolist()):
            if place in seen:
                columns["masked"].append(len(columns["output_positions"]))
                columns["output_positions"].append(offsets[-1] + place)
                columns["masked_labels"].append(token)
            columns["input_ids"].append(seen.get(place, token))
            columns["token_type_ids"].append(int(types[place]))
            columns["position_ids"].append(place)
        offsets.append(offsets[-1] + len(original))
        output_offsets.append(len(columns["output_positions"]))
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()}
    for name in ("input_ids", "token_type_ids", "position_ids"):
        tensors[name] = tensors[name][None]
    labels = torch.tensor([label for _, _, label, _, _ in samples])
    tensors |= {"offsets": torch.tensor(offsets, dtype=torch.int32), "next_sentence_label": labels}
    return tensors | {"output_offsets": torch.tensor(output_offsets, dtype=torch.int32)}


@given(made_samples())
@settings(max_examples=60)
def test_a_packed_row_is_that_of_the_oracle(samples):
    rows = rows_of(samples)
    assert rows.num_labelled == sum(label != IGNORE_INDEX for _, _, label, _, _ in samples)
    assert (rows.load.tokens, rows.load.pairs) == (sum(len(each[0]) for each in samples), len(samples))
    assert rows.load.squared_lengths == sum(len(each[0]) ** 2 for each in samples)
    torch.testing.assert_close(pack(rows), slow_pack(samples), atol=0, rtol=0)  # names, shapes, types and values


@given(made_samples())
@settings(max_examples=30)
def test_a_row_is_filled_up_by_a_pair_without_labels(samples):
    packed = pack(rows_of(samples))
    filled = fill_up(packed)
    for name, tensor in packed.items():
        assert torch.equal(filled[name][..., : tensor.shape[-1]], tensor) and filled[name].dtype == tensor.dtype
    tokens, outputs = packed["input_ids"].shape[1], len(packed["output_positions"])
    assert filled["offsets"].tolist() == [*packed["offsets"].tolist(), filled["input_ids"].shape[1]]
    assert filled["output_offsets"].tolist() == [*packed["output_offsets"].tolist(), len(filled["output_positions"])]
    assert filled["input_ids"].shape[1] % TOKEN_STEP == 0 < filled["input_ids"].shape[1] - tokens <= TOKEN_STEP
    assert len(filled["output_positions"]) % OUTPUT_STEP == len(filled["masked"]) % OUTPUT_STEP == 0
    assert set(filled["output_positions"][outputs:].tolist()) == {tokens}, "the pair's own first token"
    assert set(filled["masked"][len(packed["masked"]) :].tolist()) <= {outputs}
    for name in ("masked_labels", "next_sentence_label"):
        assert set(filled[name][len(packed[name]) :].tolist()) <= {IGNORE_INDEX}


@given(made_samples())
@settings(max_examples=30)
def test_padded_rows_hold_the_same(samples):
    batch, width = pad(rows_of(samples)), max(len(each[0]) for each in samples)
    for n, (original, segment_a_length, label, positions, replacements) in enumerate(samples):
        seen, labels = original.astype(np.int64), np.full(len(original), IGNORE_INDEX)
        seen[positions], labels[positions] = replacements, original[positions]
        filling = [0] * (width - len(original))
        assert batch["input_ids"][n].tolist() == [*seen.tolist(), *([PAD_ID] * len(filling))]
        assert batch["labels"][n].tolist() == [*labels.tolist(), *([IGNORE_INDEX] * len(filling))]
        types = token_type_ids(len(original), segment_a_length).tolist()
        assert batch["token_type_ids"][n].tolist() == [*types, *filling]
        assert batch["attention_mask"][n].tolist() == [*([1] * len(original)), *filling]
        assert batch["next_sentence_label"][n] == label


@given(made_samples(), st.integers(1, 400))
def test_micro_batches_hold_every_row_once_within_the_budget(samples, tokens):
    rows = rows_of(samples)
    parts = micro_batches(rows, tokens)
    cut = [bytes(span) for part in parts for span in np.split(part.input_ids, part.offsets[1:-1])]
    assert sorted(cut) == sorted(bytes(span) for span in np.split(rows.input_ids, rows.offsets[1:-1]))
    assert all(part.num_tokens <= tokens or len(part) == 1 for part in parts)
    assert all((np.diff(part.lengths) <= 0).all() for part in parts)
    if len(parts) > 1 and rows.lengths.max() <= tokens // 4:
        assert max(part.num_tokens for part in parts) - min(part.num_tokens for part in parts) <= rows.lengths.max()


@pytest.mark.parametrize("name", ["attention_on_cpu", "_any_device"])
@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [64, 9, 9, 3, 1, 1], [2, 31, 2], [65, 64, 40, 33, 33, 33, 32, 31]])
def test_attention_stays_within_each_pair(name, lengths, monkeypatch):
    """Output and gradients are those of a block-diagonal mask over the whole row, in float32's tolerance."""
    if name == "_any_device":  # what other devices than CUDA and the CPU, and dropout, use
        monkeypatch.setattr(attention, "attention_on_cpu", lambda *a: attention._any_device(*a[:5], 0.0, a[5]))
    generator = torch.Generator().manual_seed(1)
    shape = (1, 2, sum(lengths), 16)
    states = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
    toward = torch.randn((1, shape[2], 2, 16), generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    pair = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    masked = scaled_dot_product_attention(*states, attn_mask=pair[:, None] == pair, scale=0.3).transpose(1, 2)
    expected = [masked, *torch.autograd.grad(masked, states, toward)]
    packed, _ = packed_attention(torch.nn.Module(), *states, None, offsets=offsets, scaling=0.3)
    found = [packed, *torch.autograd.grad(packed, states, toward)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dropout_path", [False, True])
def test_some_queries_attend_to_the_whole_pair(dropout_path, monkeypatch):
    """Output and gradients of some queries equal those of all queries, at their positions."""
    if dropout_path:
        monkeypatch.setattr(attention, "attention_on_cpu", lambda *a: attention._any_device(*a[:5], 0.0, a[5]))
    generator = torch.Generator().manual_seed(2)
    states = [torch.randn((1, 2, 30, 8), generator=generator).requires_grad_() for _ in range(3)]
    offsets, output_offsets = (torch.tensor(each, dtype=torch.int32) for each in ([0, 9, 18, 30], [0, 3, 6, 8]))
    queries = torch.tensor([0, 4, 8, 9, 12, 13, 18, 29])
    toward = torch.randn((1, 8, 2, 8), generator=generator)
    query, key, value = states
    whole, _ = packed_attention(torch.nn.Module(), *states, None, offsets=offsets, scaling=0.3)
    expected = [whole[:, queries], *torch.autograd.grad(whole[:, queries], states, toward)]
    found, _ = packed_attention(
        torch.nn.Module(),
        query[:, :, queries],
        key,
        value,
        None,
        offsets=offsets,
        query_offsets=output_offsets,
        scaling=0.3,
    )
    for one, other in zip([found, *torch.autograd.grad(found, states, toward)], expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shared", [0, 4])
def test_attention_in_bfloat16_is_that_of_float32(shared):
    """Within two units of bfloat16's eight bits; also where tokens have much in common, which softmax does not see."""
    generator = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, 100, 200, 240], dtype=torch.int32)
    own = [torch.randn((1, 2, 240, 32), generator=generator) for _ in range(3)]
    states = [(each + shared * torch.randn((1, 2, 1, 32), generator=generator)).bfloat16() for each in own]
    toward = torch.randn((1, 240, 2, 32), generator=generator).bfloat16()

    def outcome(dtype):
        given = [each.to(dtype).requires_grad_() for each in states]
        found, _ = packed_attention(torch.nn.Module(), *given, None, offsets=offsets, scaling=0.2)
        return [found, *torch.autograd.grad(found, given, toward.to(dtype))]

    for found, expected in zip(outcome(torch.bfloat16), outcome(torch.float32), strict=True):
        assert (found.float() - expected).norm() < 2**-6 * expected.norm()


def test_the_attention_is_a_sound_operation_of_torch():
    """Schema, autograd and shapes, as torch.compile relies on them."""
    states = [torch.randn(12, 2, 8, requires_grad=True) for _ in range(3)]
    offsets = torch.tensor([0, 5, 10, 12], dtype=torch.int32)
    torch.library.opcheck(attention.attention_on_cpu, (*states, offsets, offsets, 0.5))


def test_attention_drops_its_share_of_probabilities():
    """Each output is a mean of 200 values that are 0 with probability p, else 1 / (1 - p)."""
    p, keys = 0.25, 200
    states = [torch.ones(1, 1, 400, 8) for _ in range(3)]
    offsets = torch.tensor([0, keys, 2 * keys], dtype=torch.int32)
    torch.manual_seed(0)
    found, _ = packed_attention(torch.nn.Module(), *states, None, offsets=offsets, scaling=1.0, dropout=p)
    assert found.std().item() == pytest.approx((p / (1 - p) / keys) ** 0.5, rel=0.1)
    assert found.mean() == pytest.approx(1.0, abs=0.01)


def step(objective, parts, rows):
    """Loss and gradients of a step over its packed micro-batches."""
    objective.zero_grad()
    total = 0.0
    for part in parts:
        sums = objective(**part)
        mean = sums.mlm_loss / rows.num_masked + sums.nsp_loss / rows.num_labelled
        mean.backward()
        total += mean.item()
    return total, {name: p.grad.clone() for name, p in objective.named_parameters()}


def assert_same_step(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=5e-6)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=2e-6, rtol=1e-4)


def test_packed_is_padded(model, dataset):
    """Loss and gradients of the stock model on padded rows, with its dense head and its own loss, and of ours."""
    rows = dataset.rows(0, np.arange(16))
    stock = model(**pad(rows))
    stock.loss.backward()
    expected = stock.loss.item(), {f"model.{name}": p.grad.clone() for name, p in model.named_parameters()}
    assert_same_step(step(PretrainingLoss(model), [pack(rows)], rows), expected)


def test_filled_up_is_packed(model, dataset):
    """Sums, counts and gradients; the embedding of padding gets none."""
    objective, rows = PretrainingLoss(model), dataset.rows(0, np.arange(16))
    packed, filled = pack(rows), fill_up(pack(rows))
    assert filled["input_ids"].shape != packed["input_ids"].shape
    torch.testing.assert_close(objective(**filled), objective(**packed), atol=1e-4, rtol=1e-6)
    found = step(objective, [filled], rows)
    assert_same_step(found, step(objective, [packed], rows))
    assert not found[1]["model.bert.embeddings.position_embeddings.weight"][64:].any()


@pytest.mark.parametrize("tokens", [1, 200, 600])
def test_the_numbers_do_not_depend_on_the_micro_batches(model, dataset, tokens):
    rows = dataset.rows(0, np.arange(32))
    objective = PretrainingLoss(model)
    expected = step(objective, [pack(rows)], rows)
    parts = [pack(part) for part in micro_batches(rows, tokens)]
    assert len(parts) > 1
    assert_same_step(step(objective, parts, rows), expected)


def test_eight_at_once_are_two_by_two(model, dataset):
    rows = dataset.rows(0, np.arange(8))
    objective = PretrainingLoss(model)
    expected = step(objective, [pack(rows)], rows)
    parts = [pack(rows.take(np.arange(first, first + 2))) for first in range(0, 8, 2)]
    assert_same_step(step(objective, parts, rows), expected)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_is_eager(model, dataset, backend):
    """One graph, forward and backward, for every number of tokens, pairs and masked tokens.

    What `inductor` adds is C++ for it: half a minute of the compiler.
    """
    objective = PretrainingLoss(model)
    compiled = torch.compile(objective, dynamic=True, fullgraph=True, backend=backend)
    for first, count, stance in ((0, 16, "default"), (16, 9, "fail_on_recompile"), (25, 30, "fail_on_recompile")):
        rows = dataset.rows(0, np.arange(first, first + count))
        expected = step(objective, [pack(rows)], rows)
        with torch.compiler.set_stance(stance):
            total, gradients = step(compiled, [pack(rows)], rows)
        assert_same_step((total, {n.removeprefix("_orig_mod."): each for n, each in gradients.items()}), expected)


def test_gradients_of_embeddings_are_those_of_torch():
    """Rows of the embedding that are looked up often, once, and never."""
    places = torch.tensor([[3, 0, 3, 3, 1]])
    generator = torch.Generator().manual_seed(1)
    stock, ours = torch.nn.Embedding(5, 4), Embedding(5, 4)
    ours.load_state_dict(stock.state_dict())
    toward = torch.randn((1, 5, 4), generator=generator)
    for each in (stock, ours):
        each(places).backward(toward)
    assert torch.equal(ours(places), stock(places))
    torch.testing.assert_close(ours.weight.grad, stock.weight.grad, atol=1e-6, rtol=1e-6)
    torch.library.opcheck(sum_by_row, (toward[0], places[0], 5))


def test_the_loss_is_that_of_torch():
    """Sum and gradient where some labels are not asked for."""
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(7, 11, generator=generator)).requires_grad_()
    labels = torch.tensor([4, IGNORE_INDEX, 0, 10, IGNORE_INDEX, 2, 2])
    expected = cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    found, correct = sum_of_cross_entropy(logits, labels)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(3 * each, logits) for each in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)
    assert correct == (logits.argmax(-1) == labels).sum()


def test_static_masks_give_the_loss_of_dynamic_ones(model, tiny, tiny_recipe, dataset):
    drawing = open_dataset(tiny, tiny_recipe, 64)
    drawing.masks = []  # nothing is read from disk any more
    objective = PretrainingLoss(model)
    read, drawn = (each.samples(3, 16, seed=5) for each in (dataset, drawing))
    expected, found = (step(objective, [pack(rows)], rows) for rows in (read, drawn))
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_what_runs_on_it_stays_a_stock_model(model, dataset):
    batch = pad(dataset.rows(0, np.arange(8)))
    before = model(**batch).loss
    PretrainingLoss(model)
    assert list(model.state_dict()) == list(BertForPreTraining(model.config).state_dict())
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(**batch).loss, before)
