"""The time to a loss beside the Trainer."""

import json
import os
from itertools import groupby
from pathlib import Path

import pytest

from benchmarks import curves, quality
from benchmarks.children import MeasurementError

TINY = Path(__file__).with_name("tiny.toml")


LOST = float("nan")


class Learners:
    """Made-up sides: a step takes 0.1 s, of our AdamW 0.05 s; the loss falls from 10 linearly to the side's end."""

    def __init__(self, best, start, plain=8.0, shipped=4.0):
        """`best`, `start`: the end as a function of AdamW's settings and the steps. LOST: no loss is a number."""
        self.seen = []  # (side, settings, steps, warm-up)
        self.sides = {
            quality.BEST: self._side(quality.BEST, best),
            quality.AS_IT_COMES: self._side(quality.AS_IT_COMES, lambda *_: plain),
            quality.PUBLISHED_START: self._side(quality.PUBLISHED_START, start, seconds=0.05),
            quality.SHIPPED: self._side(quality.SHIPPED, lambda *_: shipped),
        }

    def _side(self, name, end, seconds=0.1):
        def learn(schedule):
            adamw, num_steps = schedule.adamw, schedule.num_steps
            self.seen.append((name, adamw, num_steps, schedule.warmup_steps))
            fall = (10 - end(adamw, num_steps)) / num_steps
            at = [*range(schedule.eval_every, num_steps, schedule.eval_every), num_steps]
            return [{"step": n, "seconds": n * seconds, "mlm_loss": 10 - n * fall, "mlm_accuracy": 0.1} for n in at]

        return learn

    def runs(self, file=None, about="this machine"):
        return quality.Runs(self.sides, 10.0, 9.7, {"about": about}, file)


RATES, [LIGHT, HEAVY] = quality.RATES, quality.DECAYS


def by_rate(*ends):
    """The end by the rate, whatever the length; a heavier decay makes it 0.1 worse."""
    return lambda adamw, steps: (
        dict(zip(RATES, ends, strict=True))[adamw.learning_rate] + 0.1 * (adamw.weight_decay == HEAVY)
    )


@pytest.fixture
def learners():
    return Learners(best=by_rate(7.0, 6.0, 6.5, 6.5), start=by_rate(5.0, 3.0, 4.0, 6.0))


def test_adamw_is_tuned_for_the_steps_of_the_trainer(learners):
    tries = quality.tune(learners.runs())
    pace, *seen = learners.seen
    assert pace == (quality.BEST, quality.AdamW(RATES[0], LIGHT), quality.PACE_STEPS, 30)
    settings = [quality.AdamW(rate, LIGHT) for rate in RATES] + [quality.AdamW(RATES[1], HEAVY)]
    assert seen == [(quality.PUBLISHED_START, each, 6000, 600) for each in settings]
    assert [run["mlm_loss"] for run in tries] == pytest.approx([5.0, 3.0, 4.0, 6.0, 3.1])
    assert not any(map(quality.is_whole, tries))
    assert quality.best(tries) is tries[1]


def test_the_best_settings_train_for_all_of_the_minutes(learners):
    runs = learners.runs()
    tries = [{"learning_rate": RATES[2], "weight_decay": HEAVY, "mlm_loss": 1.0, "diverged": False}]
    [theirs] = quality.train_whole(runs, quality.BEST, tries)
    [ours] = quality.train_whole(runs, quality.PUBLISHED_START, tries)
    for run, num_steps in ((theirs, 6000), (ours, 12000)):
        assert (run["learning_rate"], run["weight_decay"], run["steps"]) == (RATES[2], HEAVY, num_steps)
        assert run["warmup_steps"] == num_steps / 10 and quality.is_whole(run)


def test_a_side_with_its_own_settings_has_no_warm_up(learners):
    whole = learners.runs().run(quality.AS_IT_COMES, 1)
    assert (whole["learning_rate"], whole["weight_decay"], whole["warmup_steps"]) == (None, None, 0)
    assert whole["steps"] == 6000 and quality.is_whole(whole)


def test_the_shortest_run_has_steps_after_those_of_compilation(learners):
    run = quality.Runs(learners.sides, 1e-6, 9.7, {}, None).run(quality.SHIPPED, 1 / 32)
    assert run["steps"] == 40 > curves.COMPILING


@pytest.mark.parametrize(("num_steps", "steps"), [(60, 30), (345, 100), (1380, 138)])
def test_the_warm_up_is_a_tenth_but_at_least_a_hundred_steps(num_steps, steps):
    assert quality.warmup(num_steps) == steps


def curve(*losses):
    return [{"step": n, "seconds": float(n), "mlm_loss": loss, "mlm_accuracy": 0.0} for n, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([9.8, 7.0, 7.3, 6.8], False),
        ([9.8, 9.9, 9.5], False),
        ([9.8, 7.0, 12.0, 7.0], False),
        ([9.8, 7.0, 12.0], True),
        ([12.0, 11.0], True),
        ([9.8, float("nan")], True),
        ([float("nan")], True),
    ],
)
def test_a_run_whose_loss_ends_high_or_is_lost_has_diverged(losses, diverged):
    side = {"side": lambda schedule: curve(*losses)}
    run = quality.Runs(side, 1.0, 9.7, {}, None).run("side", 0)
    assert run["diverged"] is diverged
    assert json.loads(json.dumps(run, allow_nan=False)) == run


def test_our_trainer_that_gives_up_has_diverged_and_other_failures_are_errors():
    def fails(schedule):
        raise MeasurementError(message)

    run = quality.Runs({"side": fails}, 1.0, 9.7, {}, None).run
    message = "benchmarks.curves learn: TrainingFailed: step 40: the gradient is not finite (nan)"
    assert run("side", 0)["diverged"] and run("side", 0)["mlm_loss"] is None
    message = "benchmarks.curves learn: MemoryError"
    with pytest.raises(MeasurementError):
        run("side", 0, quality.AdamW(1e-3, 0.1))


def test_a_diverged_try_is_shown_but_not_chosen_and_a_diverged_run_is_repeated_at_the_next_lower_rate():
    learners = Learners(best=by_rate(7.0, LOST, LOST, LOST), start=by_rate(7.0, 6.0, LOST, 6.5))
    found = quality.compare(learners.runs(), "small")
    tuned = [run for run in found["runs"] if run["learning_rate"]]
    assert [(run["side"], run["steps_of"], run["learning_rate"], run["diverged"]) for run in tuned] == [
        (quality.BEST, quality.BEST, RATES[1], True),
        (quality.BEST, quality.BEST, RATES[0], False),
        (quality.PUBLISHED_START, quality.BEST, RATES[0], False),
        (quality.PUBLISHED_START, quality.BEST, RATES[1], False),
        (quality.PUBLISHED_START, quality.BEST, RATES[2], True),
        (quality.PUBLISHED_START, quality.BEST, RATES[3], False),
        (quality.PUBLISHED_START, quality.BEST, RATES[1], False),
        (quality.PUBLISHED_START, quality.PUBLISHED_START, RATES[1], False),
    ]
    assert found["mlm_loss"] == pytest.approx(7.0)
    assert quality.table(found | TEXT).count("yes") == 2
    lost = by_rate(*[LOST] * len(RATES))
    with pytest.raises(SystemExit, match="every rate diverged; remedy: a lower one in RATES"):
        quality.compare(Learners(best=lost, start=lost).runs(), "small")


TEXT = {
    "machine": {"cpu": "CPU", "cores": 1, "python": "3", "versions": {}, "bf16_units": []},
    "text": {"name": "text", "documents": 7, "words": 1e6, "vocab_size": 8},
}


def test_quality_compares_with_the_end_of_the_best_trainer(learners, tmp_path):
    found = quality.compare(learners.runs(), "small")
    assert found["mlm_loss"] == pytest.approx(6.0)
    ends = {row["peer_name"]: (row["peer"], row["ours"], row["peer_reached"]) for row in found["rows"]}
    at = 18.8 * (10 - 6) / (10 - 4) / 60  # seconds of the shortest schedule, which ends at 4; a linear fall from 10
    assert ends[quality.BEST] == (pytest.approx(10.0), pytest.approx(at), True)
    assert ends[quality.AS_IT_COMES] == (10.0, pytest.approx(at), False)
    assert ends[quality.PUBLISHED_START] == (pytest.approx(10 * 4 / 7), pytest.approx(at), True)
    shares = [run["share"] for run in found["runs"] if run["side"] == quality.SHIPPED]
    assert shares == [1 / 32, 1], "no other shorter schedule is needed"
    quality.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_repeated(learners, tmp_path):
    file = tmp_path / "runs.jsonl"
    whole = quality.compare(learners.runs(file=file), "small")
    assert len(learners.seen) == len(file.read_text().splitlines()) == 5 + 2 + 2 + 2 + 3
    learners.seen.clear()
    assert quality.compare(learners.runs(file=file), "small") == whole and not learners.seen
    stopped = file.read_text().splitlines()[:3]
    file.write_text("\n".join(stopped) + "\n")
    assert quality.compare(learners.runs(file=file), "small") == whole
    assert learners.seen[0] == (quality.PUBLISHED_START, quality.AdamW(RATES[2], LIGHT), 6000, 600)
    assert len(learners.seen) == 11
    learners.seen.clear()
    quality.compare(learners.runs(file=file, about="another machine"), "small")
    assert len(learners.seen) == 14


def test_a_side_that_never_reaches_the_loss_counts_with_all_of_its_minutes():
    ends_at = [{"seconds": 60.0, "mlm_loss": 7.0}, {"seconds": 600.0, "mlm_loss": 6.5}]
    row = quality._row("small", "slow", 6.0, 30.0, [{"curve": ends_at, "seconds": 600.0}])
    assert row.keys() >= {"name", "ours", "peer", "peer_name", "unit", "ratio"}
    assert (row["ours"], row["peer"], row["ratio"], row["peer_reached"]) == (0.5, 10.0, 20.0, False)


def test_the_trainer_learns_as_our_adamw_does(tiny, tiny_recipe, tmp_path, training_in_a_fork):
    """The two sides differ only in speed: with the same weights, rows, masks and settings, in float32, the held-out
    losses are equal. (Any setting of the optimizer changed by a tenth moves them by 3e-5 or more.) Without warm-up,
    because the Trainer's is one step later: its first step has rate 0.
    """
    still = tiny_recipe.model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    settings = {"adam_beta2": 0.98, "max_grad_norm": 0.7}
    section = tiny_recipe.pretrain.model_copy(update=settings)
    recipe = tiny_recipe.model_copy(update={"model": still, "pretrain": section})
    for kind, artifact in tiny.items():
        (tmp_path / kind).symlink_to(artifact.path)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    schedule = quality.Schedule(num_steps=12, eval_every=4, adamw=quality.AdamW(5e-3, 0.5))
    theirs = quality.sides(tmp_path, recipe, [min(os.sched_getaffinity(0))], "float32")[quality.BEST](schedule)
    start = quality.published_start(recipe, schedule).model_dump(mode="json")
    found = curves.learn(str(tmp_path), start, schedule.num_steps, schedule.eval_every, quality.HELDOUT_PAIRS)["curve"]
    assert [point["step"] for point in found] == [point["step"] for point in theirs] == [4, 8, 12]
    losses = [[point["mlm_loss"] for point in curve] for curve in (found, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][0] - losses[0][-1] > 0.1
    assert [point["mlm_accuracy"] for point in found] == [point["mlm_accuracy"] for point in theirs]


@pytest.mark.slow
def test_quality_of_all_sides_on_a_tiny_recipe(run_python, tmp_path):
    optimizer = '[pretrain]\noptimizer = "muon"\n\n[[pretrain.phases]]'
    fast = TINY.read_text().replace("[[pretrain.phases]]", optimizer) + "muon_learning_rate = 1e-2\n"
    (tmp_path / "tiny.toml").write_text(fast.replace("[model]", "[model]\nstructured_attention_layers = 1"))
    picture, runs = tmp_path / "curves.png", tmp_path / "runs.jsonl"
    options = ["--recipe", "tiny", "--minutes", "0.1", "--runs", str(runs), "--picture", str(picture), "--json"]
    code = (
        "import sys; from benchmarks import quality; quality.SHORTER = (1 / 2,); quality.PACE_STEPS = 30; "
        "quality.RATES = (3e-3, 1e-2); quality.DECAYS = (0.01,); "
        f"sys.argv = ['quality', *{options}]; quality.main()"
    )
    environment = {"BERT_PIPELINE_HOME": str(tmp_path), "BERT_PIPELINE_RECIPES": str(tmp_path)}
    finished = run_python("-c", code, **environment)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert [row["peer_name"] for row in found["rows"]] == [quality.BEST, quality.AS_IT_COMES, quality.PUBLISHED_START]
    shares = {name: [run["share"] for run in runs] for name, runs in groupby(found["runs"], lambda run: run["side"])}
    assert shares == {
        quality.BEST: [1], quality.AS_IT_COMES: [1], quality.PUBLISHED_START: [1, 1, 1], quality.SHIPPED: [1 / 2, 1]
    }  # fmt: skip
    ends = {run["side"]: run["mlm_loss"] for run in found["runs"] if quality.is_whole(run)}
    assert ends[quality.SHIPPED] < ends[quality.AS_IT_COMES]
    assert quality.BEST in quality.table(found) and picture.read_bytes().startswith(b"\x89PNG")
    kept = runs.read_bytes()
    again = run_python("-c", code, **environment)
    assert json.loads(again.stdout) == found and runs.read_bytes() == kept, again.stderr
