import pytest

from bert_pipeline.recipe import PhaseRecipe, PretrainRecipe
from bert_pipeline.training.model.model import build_model
from bert_pipeline.training.model.optim import build_optimizer, learning_rate


def phase(**changed):
    return PhaseRecipe(**{"max_seq_length": 128, "num_steps": 100} | changed)


def test_warm_up_and_decay():
    phases = (phase(learning_rate=1.0, warmup_steps=10),)
    rates = [learning_rate(phases, step) for step in range(100)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert rates[10:] == pytest.approx([n / 90 for n in range(90, 0, -1)])


def test_a_phase_that_continues_shares_one_schedule():
    phases = (
        phase(learning_rate=1.0, warmup_steps=10, num_steps=90),
        phase(num_steps=10, learning_rate_handover="continue"),
    )
    single = (phase(learning_rate=1.0, warmup_steps=10),)
    assert [learning_rate(phases, s) for s in range(100)] == [learning_rate(single, s) for s in range(100)]


def test_a_phase_that_restarts_has_its_own():
    second = phase(learning_rate=0.5, warmup_steps=5, num_steps=20, learning_rate_handover="restart")
    third = phase(num_steps=10, learning_rate_handover="continue")
    phases = (phase(learning_rate=1.0, warmup_steps=0), second, third)
    assert learning_rate(phases, 99) == pytest.approx(0.01)
    assert learning_rate(phases, 100) == pytest.approx(0.1)
    assert learning_rate(phases, 105) == pytest.approx(0.5)
    assert learning_rate(phases, 129) == pytest.approx(0.5 / 25)


def test_bert_base_as_published():
    phases = PretrainRecipe().phases
    assert learning_rate(phases, 9_999) == pytest.approx(1e-4)
    assert learning_rate(phases, 0) == pytest.approx(1e-8)
    assert learning_rate(phases, 999_999) == pytest.approx(1e-4 / 990_000)


def test_no_decay_on_biases_and_layer_norm(tiny_recipe):
    model = build_model(tiny_recipe.model, 800, seed=1)
    optimizer = build_optimizer(tiny_recipe.pretrain, model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        bare = name.endswith("bias") or "LayerNorm" in name
        assert decays[id(parameter)] == (0.0 if bare else 0.01), name
