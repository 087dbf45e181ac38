"""A budget of minutes: the schedule that fits it, decided once per run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.runs import measure_pace_in_a_fork

from bert_pipeline.formats.metrics import read_rows
from bert_pipeline.lineage import make_stage
from bert_pipeline.recipe import PretrainRecipe
from bert_pipeline.training.job import Job
from bert_pipeline.training.launch import build as launch
from bert_pipeline.training.launch.budget import (
    BudgetError,
    Pace,
    decide_schedule,
    fit_to_budget,
    step_seconds,
    training_seconds,
)
from bert_pipeline.training.model.optim import learning_rate


def section_of(minutes, shares, handovers, warmup=0.25, **more):
    phases = [
        {"max_seq_length": 32 * (n + 1), "budget_fraction": share, "global_batch_size": 2 ** (3 + n)}
        | ({"learning_rate_handover": handover} if n else {})
        | ({} if handover == "continue" and n else {"learning_rate": 1e-3, "warmup_fraction": warmup})
        for n, (share, handover) in enumerate(zip(shares, handovers, strict=True))
    ]
    return PretrainRecipe.model_validate_json(json.dumps({"phases": phases, "budget_minutes": minutes} | more))


@st.composite
def budgets(draw):
    weights = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    handovers = [draw(st.sampled_from(["continue", "restart"])) for _ in weights]
    shares = [weight / sum(weights) for weight in weights]
    fraction = draw(st.floats(0, 1))
    section = section_of(draw(st.floats(1, 10_000)), shares, handovers, fraction)
    seconds = st.floats(1e-6, 1e-3)
    pairs = {str(phase.max_seq_length): draw(seconds) for phase in section.phases}
    return section, Pace(4096, pairs, draw(seconds), draw(seconds), draw(st.floats(0, 5)))


@given(budgets())
def test_the_schedule_fills_the_budget_and_no_more(given_):
    section, pace = given_
    fitted = fit_to_budget(section, pace)
    assert PretrainRecipe.model_validate_json(fitted.model_dump_json()) == fitted, "a plain recipe in steps"
    seconds, budget = training_seconds(fitted, pace), 60 * section.budget_minutes
    assert seconds <= budget * (1 + 1e-9)
    longest = sum(step_seconds(section, n, pace) for n in range(len(section.phases)))
    assert seconds + longest >= budget * (1 - 1e-9), "one more step of each phase would be too much"
    steps = budget - (training_seconds(fitted, pace) - sum_of_steps(fitted, pace))
    for n, phase in enumerate(fitted.phases):
        taken = phase.num_steps * step_seconds(section, n, pace)
        assert abs(taken - section.phases[n].budget_fraction * steps) <= step_seconds(section, n, pace) * (1 + 1e-6)


def sum_of_steps(section, pace):
    return sum(phase.num_steps * step_seconds(section, n, pace) for n, phase in enumerate(section.phases))


@given(budgets())
def test_each_schedule_rises_for_its_share_and_ends_near_zero(given_):
    section, pace = given_
    fitted = fit_to_budget(section, pace)
    begins = [n for n, p in enumerate(fitted.phases) if n == 0 or p.learning_rate_handover == "restart"]
    for begin, end in zip(begins, [*begins[1:], len(fitted.phases)], strict=True):
        length = sum(phase.num_steps for phase in fitted.phases[begin:end])
        first = sum(phase.num_steps for phase in fitted.phases[:begin])
        warmup = fitted.phases[begin].warmup_steps
        assert warmup == round(section.phases[begin].warmup_fraction * length)
        peak = first + min(max(warmup - 1, 0), length - 1)
        assert learning_rate(fitted.phases, peak) == pytest.approx(1e-3, rel=2 / length)
        if warmup < length:
            assert learning_rate(fitted.phases, first + length - 1) <= 1e-3 / (length - warmup) * (1 + 1e-9)


def test_measurements_and_checkpoints_are_part_of_the_budget():
    plain = section_of(10, [1.0], [None])
    pace = Pace(4096, {"32": 1e-3}, 1e-3, 0.0, 0.0)
    busy = section_of(10, [1.0], [None], heldout_pairs=1000, eval_every=100, checkpoint_every=100)
    costly = Pace(4096, {"32": 1e-3}, 1e-3, 1e-3, 1.0)  # a measurement and a checkpoint take a second each
    assert fit_to_budget(plain, pace).num_steps == int(600 / 0.009)
    # 9 ms a step, 20 ms of what comes every 100 steps; two measurements and a checkpoint besides
    assert fit_to_budget(busy, costly).num_steps == int((600 - 3) / 0.029)


def test_a_budget_without_room_for_a_step_is_refused():
    pace = Pace(4096, {"32": 10.0, "64": 1.0}, 1.0, 0.0, 0.0)
    with pytest.raises(BudgetError, match=r"budget_minutes = 1 leaves 60.0 s for steps that take 81, 17 s .* remedy"):
        fit_to_budget(section_of(1, [0.5, 0.5], [None, "continue"]), pace)


def test_a_recipe_in_steps_is_left_as_it_is(tiny_recipe):
    assert fit_to_budget(tiny_recipe.pretrain, Pace(1, {}, 0, 0, 0)) is tiny_recipe.pretrain


def in_minutes(recipe, minutes):
    often = {"log_every": 10, "eval_every": 10_000, "checkpoint_every": 50, "heldout_pairs": 40}
    section = section_of(minutes, [0.5, 0.5], [None, "continue"], **often)
    return recipe.model_copy(update={"pretrain": section})


def test_a_resumed_run_keeps_its_schedule(tiny, tiny_recipe, tmp_path, monkeypatch, training_in_a_fork):
    def interrupt(row):
        if row["step"] >= 1:
            raise KeyboardInterrupt

    recipe, out = in_minutes(tiny_recipe, 0.04), tmp_path / "out"
    monkeypatch.setenv("BERT_PIPELINE_PER_DEVICE_TOKENS", "auto")
    monkeypatch.setattr("bert_pipeline.training.launch.budget.measure_pace", measure_pace_in_a_fork)
    with pytest.raises(KeyboardInterrupt):
        make_stage("pretrained_checkpoint", recipe, tiny, out, interrupt)
    assert list(out.with_name("out.partial").glob("work/checkpoints/step-*")), (
        "it resumes, and does not start from scratch"
    )
    schedule = tmp_path / "out.partial" / "work" / "schedule.json"
    kept = json.loads(schedule.read_text())
    before = schedule.stat().st_mtime_ns

    def no_second_probe(*_):
        raise AssertionError("a run is probed once")

    monkeypatch.setattr("bert_pipeline.training.launch.budget.measure_pace", no_second_probe)
    seen = []

    def on_row(row):
        seen.append(row)
        assert schedule.stat().st_mtime_ns == before

    finished = make_stage("pretrained_checkpoint", recipe, tiny, out, on_row)
    steps = [phase["num_steps"] for phase in kept["section"]["phases"]]
    assert min(steps) > 0 and finished.facts["num_steps"] == sum(steps) == read_rows(out / "metrics.jsonl")[-1]["step"]
    assert list(finished.facts["num_steps_by_phase"].values()) == steps
    assert finished.facts["per_device_tokens"] == kept["pace"]["per_device_tokens"]
    assert finished.record["origin"]["section"]["budget_minutes"] == 0.04, "the fingerprint is that of the recipe"
    rates = {row["step"]: row["learning_rate"] for row in seen if "learning_rate" in row}
    fitted = PretrainRecipe.model_validate_json(json.dumps(kept["section"]))
    assert all(rate == learning_rate(fitted.phases, step - 1) for step, rate in rates.items())


def test_a_schedule_of_another_recipe_is_not_taken(tiny_recipe, tmp_path, monkeypatch):
    pace = Pace(4096, {"32": 1e-3, "64": 1e-3}, 1e-3, 0.0, 0.0)
    monkeypatch.setattr("bert_pipeline.training.launch.budget.measure_pace", lambda *_: pace)

    def decided(minutes):
        paths = dict.fromkeys(("tokenizer", "nsp_dataset", "masked_dataset", "out"), tmp_path)
        sections = {"section": in_minutes(tiny_recipe, minutes).pretrain, "model": tiny_recipe.model}
        job = Job(**sections, masking=tiny_recipe.masking, **paths, per_device_tokens="auto")
        return decide_schedule(job, tmp_path, {}).section

    first, second = decided(1), decided(2)
    assert first != second
    assert decided(1) == first


def test_per_device_tokens_from_the_environment(monkeypatch, tmp_path):
    config = tmp_path / "gpu.yaml"
    monkeypatch.delenv("BERT_PIPELINE_PER_DEVICE_TOKENS", raising=False)
    assert launch.per_device_tokens() == 4096
    config.write_text("use_cpu: false\n")
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(config))
    assert launch.per_device_tokens() == "auto"
    monkeypatch.setenv("BERT_PIPELINE_PER_DEVICE_TOKENS", "512")
    assert launch.per_device_tokens() == 512
    for nonsense in ("many", "0", "-1"):
        monkeypatch.setenv("BERT_PIPELINE_PER_DEVICE_TOKENS", nonsense)
        with pytest.raises(ValueError, match=f"TOKENS is '{nonsense}'; remedy: set a number of tokens, or auto"):
            launch.per_device_tokens()
