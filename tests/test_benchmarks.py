"""The benchmarks on a tiny text. Tests with peers need a package index and minutes, so they are marked slow."""

import json
import os
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import curves, evaluation, ours, pretraining, quality, rows, scaling, scripts, text, training
from benchmarks.children import MeasurementError, measure
from benchmarks.peers import environments, google, tokenizers_batch, transformers_trainer
from benchmarks.peers.environments import PeerError
from bert_pipeline.recipe_files import load_recipe, recipe_files

ROW_KEYS = {"name", "ours", "peer", "peer_name", "unit", "ratio"}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A prepared text of the tiny artifacts, in the layout of benchmarks.text.prepare."""
    folder = tmp_path_factory.mktemp("text")
    for kind, artifact in tiny.items():
        (folder / kind).symlink_to(artifact.path)
    settings = {"corpus": {"text_fields": ["text"], "documents_per_shard": 100}, "tokenizer": {"vocab_size": 800}}
    (folder / "settings.json").write_text(json.dumps(settings))
    text.write_sentences(folder / "raw_corpus", folder / "sentences.txt", megabytes=0.05)
    return folder


def compare(folder, ids, method="encode_batch", parts=3):
    return [tokenizers_batch.encode_batch(str(folder), str(ids), method, part, parts) for part in range(parts)]


def test_all_rounds_together_compare_every_line(folder, tmp_path):
    encoded = ours.encode(str(folder), str(tmp_path))
    answers = compare(folder, tmp_path)
    assert sum(answer["tokens"] for answer in answers) == encoded["tokens"] > 10_000
    assert [answer["difference"] for answer in answers] == [None] * 3
    assert all(answer["seconds"] > 0 for answer in [encoded, *answers])


def test_one_different_id_is_reported(folder, tmp_path):
    ours.encode(str(folder), str(tmp_path))
    path = max(tmp_path.iterdir())
    with np.load(path) as saved:
        ids, offsets = saved["ids"], saved["offsets"]
    line = len(offsets) // 2
    ids[offsets[line]] += 1
    np.savez(path, ids=ids, offsets=offsets)
    [difference] = filter(None, (answer["difference"] for answer in compare(folder, tmp_path, "encode_batch_fast")))
    assert f"shard {int(path.stem[-5:])}, line {line}: " in difference
    sentence = ours.sentences_by_shard(folder / "raw_corpus")[-1][line].as_py()
    assert repr(sentence) in difference


def test_a_missing_line_is_an_error(folder, tmp_path):
    ours.encode(str(folder), str(tmp_path))
    path = min(tmp_path.iterdir())
    with np.load(path) as saved:
        ids, offsets = saved["ids"], saved["offsets"]
    np.savez(path, ids=ids, offsets=offsets[:-1])
    with pytest.raises(ValueError, match=r"shard 0: .* lines, but ours encoded"):
        compare(folder, tmp_path)


def test_tokens_of_pairs_and_of_batches_are_counted(folder, tiny, monkeypatch):
    monkeypatch.setattr(ours, "SECONDS", 1e-9)  # one pass, one batch
    tokens_of_two_passes = tiny["nsp_dataset"].facts["len_32"]["train_tokens"]
    answer = ours.pairs_and_masks(str(folder), 32)
    assert answer["tokens"] == pytest.approx(tokens_of_two_passes / 2, rel=0.05)
    assert answer["pairs_and_masks_seconds"] > 0
    answer = ours.loader(str(folder), 32, batch_size=16)
    assert 16 * 8 < answer["tokens"] <= 16 * 32 and answer["seconds"] > 0


def test_the_peers_read_the_sentences_of_the_first_documents(folder):
    written = (folder / "sentences.txt").read_text(encoding="utf-8")
    assert not written.endswith("\n\n"), "transformers' reader makes an empty document of a last blank line"
    blocks = [block.strip("\n").split("\n") for block in written.split("\n\n")]
    table = pa.concat_arrays(ours.sentences_by_shard(folder / "raw_corpus")).to_pylist()
    assert len(blocks) > 10
    assert [line for block in blocks for line in block] == table[: sum(map(len, blocks))]


def test_the_google_peer_makes_rows_within_the_length(folder):
    rng = google.Draws(1)
    documents = [[[rng.randint(5, 799) for _ in range(9)] for _ in range(12)] for _ in range(20)]
    made = google.pairs_and_masks(documents, 128, 800, rng)
    assert {label for _, _, label, _ in made} == {0, 1}
    for row, length_a, _, masks in made:
        assert len(row) <= 128 and row[0] == google.CLS_ID and row[length_a + 1] == row[-1] == google.SEP_ID
        assert 1 <= len(masks) <= 20
        assert all(row[position] not in (google.CLS_ID, google.SEP_ID) for position, _ in masks)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_text_is_taken_from_a_file_up_to_its_megabytes(tmp_path, suffix):
    source = tmp_path / f"texts{suffix}"
    records = [f"Document number {number} says little." for number in range(100)]
    if suffix == ".txt":
        source.write_text("\n\n".join(records))
    else:
        lines = [json.dumps({"id": number, "title": f"T{number}", "text": each}) for number, each in enumerate(records)]
        source.write_text("\n".join(lines))
    fields = text.choose_fields(str(source), None)
    assert fields == (("text",) if suffix == ".txt" else ("title", "text"))
    taken = text.take(str(source), fields, megabytes=0.001, folder=str(tmp_path / "taken"))
    copied = [json.loads(line) for line in (tmp_path / "taken" / "text.jsonl").read_text().splitlines()]
    assert taken["documents"] == len(copied) < 100 and 0.001 <= taken["megabytes"] < 0.0011
    assert [each["text"].strip() for each in copied] == records[: len(copied)]


def test_a_row_has_the_best_rates_and_their_ratio():
    def answers(*seconds):
        return [{"tokens": 6_000_000, "seconds": each, "process_seconds": each + 1} for each in seconds]

    row = rows.row("encode", answers(3.0, 2.0), answers(6.0, 12.0), "a library", max_seq_length=128)
    assert row.keys() >= ROW_KEYS
    assert (row["ours"], row["peer"], row["ratio"], row["unit"]) == (3.0, 1.0, 3.0, "M tokens/s")
    assert row["measured"]["peer"]["tokens"] == [6_000_000] * 2 and row["measured"]["ours"]["seconds"] == [3.0, 2.0]


def test_the_worst_ratio_of_all_texts_comes_first():
    def text(name, **ratios):
        rows_of_text = [{"name": each, "peer_name": "peer", "ratio": ratio} for each, ratio in ratios.items()]
        memory = {
            "megabytes_whole": 60.0,
            "megabytes_quarter": 15.0,
            "peak_mib_whole": 300.0,
            "peak_mib_quarter": 290.0,
        }
        about = {"name": name, "documents": 7, "megabytes": 1.0, "vocab_size": 8, "disk": {}}
        for row in rows_of_text:
            row |= {"ours": row["ratio"], "peer": 1.0 if row["ratio"] else None, "reason": "no peer"}
            row["measured"] = {"ours": {"seconds": [1.0]}, "peer": {"seconds": [2.0]}}
        return about | {"rows": rows_of_text, "memory": memory | {"growth_fraction": 0.03}}

    texts = [text("a.txt", encode=50.0, loader=20.0, pairs=None), text("b.txt", encode=30.0, loader=40.0, pairs=10.0)]
    found = rows.extremes(texts)
    shown = [(row["name"], row["worst"]["ratio"], row["worst"]["text"], row["best"]["text"]) for row in found]
    assert shown == [
        ("pairs", 10.0, "b.txt", "b.txt"),
        ("loader", 20.0, "a.txt", "b.txt"),
        ("encode", 30.0, "b.txt", "a.txt"),
    ]
    result = {"machine": {"cpu": "CPU", "cores": 1, "python": "3"}, "extremes": found, "first_compilation_seconds": 9.0}
    table = rows.table(result | {"texts": texts})
    assert table.index("10.0x") < table.index("a.txt: 7 documents") < table.index("no peer") < table.index("b.txt: 7")
    assert "worst" not in rows.table(result | {"texts": texts[:1]})


def test_generated_text_is_the_same_each_time_and_not_ascii(run_python):
    for name in scripts.SCRIPTS:
        documents = list(islice(scripts.SCRIPTS[name].documents(), 3))
        assert documents == list(islice(scripts.SCRIPTS[name].documents(), 3))
        assert all(document == document.strip() and "\n\n" not in document for document in documents)
        assert sum(map(str.isascii, "".join(documents))) < len("".join(documents)) / 2
    written = run_python("-m", "benchmarks.scripts", "korean", "--megabytes", "0.01", PYTHONIOENCODING="utf-8").stdout
    first = next(scripts.SCRIPTS["korean"].documents())
    assert written.startswith(f"{first}\n\n") and 10_000 < len(written.encode()) < 15_000


def test_a_failed_peer_has_a_row_with_the_reason_and_a_failure_of_ours_raises():
    def fails(number):
        raise PeerError("pip cannot install it")

    def works(number):
        return {"tokens": 1_000_000, "seconds": 1.0, "process_seconds": 1.5}

    answers = rows.take_turns({"ours": works}, {"theirs": fails}, rounds=2)
    row = rows.row("whole-way", answers["ours"], answers["theirs"], "theirs")
    assert (row["ours"], row["peer"], row["ratio"], row["reason"]) == (1.0, None, None, "pip cannot install it")
    assert json.loads(json.dumps(row)) == row
    with pytest.raises(PeerError):
        rows.take_turns({"ours": fails}, {"theirs": works}, rounds=2)


def test_a_failed_installation_gives_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerError, match=r"pip cannot install transformers: ERROR: .*transformers==4"):
        environments.environment("transformers")
    assert not (tmp_path / "peers" / "transformers" / "finished.txt").exists()


def test_a_measurement_answers_or_raises_the_last_line_of_stderr(tmp_path):
    core = min(os.sched_getaffinity(0))
    arguments = {"text": None, "fields": ["text"], "megabytes": 0.01, "folder": tmp_path / "sample"}
    answer = measure("benchmarks.text", "take", cores={core}, **arguments)
    assert answer["documents"] > 1 and answer["process_seconds"] > 0
    with pytest.raises(MeasurementError, match=r"benchmarks.text take: FileExistsError: .*sample"):
        measure("benchmarks.text", "take", cores={core}, **arguments)


TRAINED = """
[corpus]
source = "sample"

[tokenizer]
vocab_size = 500

[model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 128
hidden_dropout_prob = 0.0
attention_probs_dropout_prob = 0.0

[[pretrain.phases]]
max_seq_length = 64
num_steps = 1000
global_batch_size = 8
learning_rate = 1e-2
warmup_steps = 4
"""


@pytest.fixture(scope="module")
def trained(run_python, tmp_path_factory):
    """The whole command at a tiny size; peers with full rows get invalid arguments, so that they fail."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.toml").write_text(TRAINED)
    code = (
        "import sys; from benchmarks import training; training.ROUNDS['cpu'] = 1; training.FLOPS['cpu'] = 1.0; "
        "training.PEER_SETTINGS['cpu'] = {'whole batches': training.PEER_SETTINGS['cpu']['whole batches']}; "
        "run = training.Bench.run; training.Bench.run = lambda bench, *what, **arguments: run(bench, *what, "
        "**(arguments | ({'places': 'none'} if arguments.get('full_length') else {}))); "
        "sys.argv = ['training', '--recipe', 'tiny', '--precision', 'float32', '--megabytes', '0.3', '--json']; "
        "training.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(home), BERT_PIPELINE_RECIPES=str(home))
    assert finished.returncode == 0, finished.stderr
    assert "WARNING: using the generated sample" in finished.stderr
    assert not list(home.glob("benchmark-*")), "nothing is left behind"
    return json.loads(finished.stdout)


def test_training_has_a_row_for_each_peer(trained):
    """This model has no positions for 512 tokens, so there are only rows for 128."""
    assert [row["name"] for row in trained["rows"]] == ["tiny-128"] * 3
    works, fails, as_it_comes = trained["rows"]
    assert as_it_comes["peer_name"].endswith("Trainer, as it comes") and as_it_comes["ratio"] is None
    assert works.keys() >= ROW_KEYS and fails.keys() >= ROW_KEYS
    assert works["unit"] == "tokens/s" and works["ratio"] == works["ours"] / works["peer"]
    assert works["peer_name"].endswith("Trainer, padded to the longest row, whole batches")
    assert [len(works["measured"][side]["seconds"]) for side in ("ours", "peer")] == [1, 1]
    assert 0 < works["model_flops_utilization"]["peer"] < 1 and 0 < works["model_flops_utilization"]["ours"] < 1
    assert works["fill"] == works["mean_length"] / 128 and 0.2 < works["fill"] < 1
    assert (fails["ours"], fails["peer"], fails["ratio"]) == (works["ours"], None, None)
    assert "transformers_trainer trainer: TypeError: '>' not supported" in fails["reason"]
    shown = training.table(trained)
    assert "tiny-128" in shown and fails["reason"] in shown


def test_both_sides_trained_on_the_same_pairs_under_the_same_masks(trained):
    """With the same weights and without dropout, the first loss depends only on pairs and masks."""
    row = trained["rows"][0]
    assert row["first_loss"]["peer"] == pytest.approx(row["first_loss"]["ours"], abs=2e-5)
    assert len({*row["measured"]["ours"]["tokens"], *row["measured"]["peer"]["tokens"]}) == 1


@dataclass(frozen=True)
class Stopwatch(training.Bench):
    """Returns invented times: the Trainer is fastest with compiled micro-batches and fails with compiled batches."""

    def run(self, module, task, **arguments):
        seconds = 1.0
        if task == "trainer":
            if arguments["compiled"] and arguments["places"] > 4096:
                raise MeasurementError("no compiler")
            seconds = (4.0 - arguments["compiled"]) * (1 + arguments["full_length"])
        clocked = {"seconds": seconds, "process_seconds": seconds + 1}
        return {"tokens": 600, "first_loss": 6.0, "data_wait_fraction": 0.0, "reported_utilization": 0.5} | clocked


def test_the_peer_runs_with_its_fastest_settings(tmp_path):
    bench = Stopwatch(tmp_path, load_recipe(recipe_files()["small"]), "cpu", "float32", [0])
    stretch = {"max_seq_length": 128, "warm_up": 1, "num_steps": 4, "global_batch_size": 8, "tokens": 600}
    stretch |= {"flops": 6e9, "mean_length": 64.0, "fill": 0.5}
    made = training.compare(bench, stretch, peak=1e10)
    assert [row["ratio"] for row in made] == [3.0, 6.0, 8.0]
    assert [row["peer_name"].split("Trainer, ")[1] for row in made] == [
        "padded to the longest row, accumulating 4,096 places, compiled",
        "padded to the full length, accumulating 4,096 places, compiled",
        "as it comes",
    ]
    rounds = training.ROUNDS["cpu"]
    assert all(len(row["measured"][side]["seconds"]) == rounds for row in made for side in ("ours", "peer"))
    assert made[0]["model_flops_utilization"] == {"ours": 0.6, "peer": pytest.approx(0.2)}
    with pytest.raises(SystemExit, match="trained on other pairs"):
        training.compare(bench, stretch | {"tokens": 601}, peak=1e10)


@pytest.mark.parametrize("width", [None, 32])
def test_the_trainer_is_given_the_pairs_of_our_steps(tiny, width):
    from bert_pipeline.training.batches.dataset import PairDataset
    from bert_pipeline.training.batches.packing import pack

    paths = (tiny[kind].path for kind in ("nsp_dataset", "masked_dataset"))
    rows = PairDataset(*paths, 32, "train").samples(5, 16, seed=1)
    ours = pack(rows)
    given = transformers_trainer.collate(transformers_trainer.in_standard_view(rows), width)
    seen = given["attention_mask"].bool()
    assert given["input_ids"].shape == (16, width or rows.lengths.max())
    assert seen.sum(1).tolist() == rows.lengths.tolist()
    assert given["input_ids"][seen].tolist() == ours["input_ids"][0].tolist()
    assert given["token_type_ids"][seen].tolist() == ours["token_type_ids"][0].tolist()
    asked = given["labels"][seen] != -100
    assert asked.nonzero().flatten().tolist() == ours["output_positions"][ours["masked"]].tolist()
    assert given["labels"][seen][asked].tolist() == ours["masked_labels"].tolist()
    assert not (given["labels"][~seen] != -100).any() and not given["input_ids"][~seen].any()
    assert given["next_sentence_label"].tolist() == ours["next_sentence_label"].tolist()


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_every_recipe_can_be_cut_down(name):
    recipe = load_recipe(recipe_files()[name])
    cut = pretraining.cut_down(recipe, {"path": "text.jsonl"}, [8, recipe.model.max_position_embeddings])
    assert cut.pretrain.budget_minutes is None and not cut.pretrain.init_from and cut.nsp.dupe_factor == 1
    for phase in cut.pretrain.phases:
        assert phase.global_batch_size == recipe.pretrain.phases[0].global_batch_size and phase.learning_rate


def test_text_is_spread_over_the_whole_file(tmp_path):
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Document number {number:04d}." for number in range(1000)))
    taken = text.take(str(tmp_path / "texts.txt"), ("text",), 0.002, str(tmp_path / "taken"), among=100.0)
    numbers = [int(line.split()[-1][:4]) for line in (tmp_path / "taken" / "text.jsonl").read_text().splitlines()]
    assert taken["documents"] == len(numbers) < 150
    assert set(np.diff(numbers)) == {10} and numbers[0] == 0 and numbers[-1] >= 900


@pytest.mark.slow
def test_the_whole_benchmark_on_a_small_sample(run_python, tmp_path):
    """Needs a package index; a row without a peer shows the reason."""
    code = (
        "import sys; from benchmarks import data; data.ROUNDS = data.SCALE_ROUNDS = 1; data.SCALE_MEGABYTES = 1.0; "
        "data.PEER_MEGABYTES = 0.2; sys.argv = ['data', '--megabytes', '0.5', '--json']; data.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    [result] = json.loads(finished.stdout)["texts"]
    assert {row["name"] for row in result["rows"]} == {
        "encode",
        "pairs-and-masks",
        "whole-way",
        "whole-way-from-raw-text",
        "whole-way-two-workers",
        "loader",
    }
    for row in result["rows"]:
        assert row.keys() >= ROW_KEYS
        if len(os.sched_getaffinity(0)) > 1:
            assert row["ratio"], row["reason"]
    assert result["memory"].keys() >= {"peak_mib_quarter", "peak_mib_whole", "growth_fraction"}
    assert 2.0 < result["disk"]["128"]["nsp_dataset"] < 2.6 and 0.3 < result["disk"]["128"]["masked_dataset"] < 1.0
    assert not list(tmp_path.glob("benchmark-*")), "nothing is left behind but the peers"


def test_the_clock_of_a_curve_leaves_compilation_out():
    seconds = [9.0] * curves.COMPILING + [0.5] * 20
    points = [{"step": 10, "mlm_loss": 6.0}, {"step": 40, "mlm_loss": 4.0}]
    assert [point["seconds"] for point in curves.with_seconds(seconds, points)] == [5.0, 20.0]


def test_the_time_to_a_loss_is_that_of_the_first_curve_that_reaches_it():
    slow = [{"seconds": 0.0, "mlm_loss": 7.0}, {"seconds": 100.0, "mlm_loss": 5.0}]
    fast = [{"seconds": 10.0, "mlm_loss": 6.5}, {"seconds": 30.0, "mlm_loss": 5.5}]
    assert curves.seconds_to(6.0, [slow]) == pytest.approx(50)
    assert curves.seconds_to(6.0, [slow, fast]) == pytest.approx(20)
    assert curves.seconds_to(5.2, [slow, fast]) == pytest.approx(90)
    assert curves.seconds_to(4.9, [slow, fast]) is None


LOST = float("nan")


class Learners:
    """Made-up sides: each takes 0.1 s a step, and its loss falls from 10 linearly to the end given for it."""

    def __init__(self, best, start, plain=8.0, shipped=4.0):
        """`best`, `start`: the end as a function of rate and steps. LOST: no loss is a number."""
        self.seen = []  # (side, rate, steps, warm-up)
        self.sides = {
            quality.BEST: self._side(quality.BEST, best, quality.RATES),
            quality.AS_IT_COMES: self._side(quality.AS_IT_COMES, lambda *_: plain),
            quality.PUBLISHED_START: self._side(quality.PUBLISHED_START, start, quality.RATES),
            quality.SHIPPED: self._side(quality.SHIPPED, lambda *_: shipped),
        }

    def _side(self, name, end, rates=(None,)):
        def learn(schedule):
            rate, num_steps = schedule.learning_rate, schedule.num_steps
            self.seen.append((name, rate, num_steps, schedule.warmup_steps))
            fall = (10 - end(rate, num_steps)) / num_steps
            at = [*range(schedule.eval_every, num_steps, schedule.eval_every), num_steps]
            return [{"step": n, "seconds": n / 10, "mlm_loss": 10 - n * fall, "mlm_accuracy": 0.1} for n in at]

        return quality.Side(learn, rates)

    def runs(self, file=None, about="this machine"):
        return quality.Runs(self.sides, 10.0, 9.7, {"about": about}, file)


def by_rate(*ends):
    """The end by the rate, whatever the length."""
    return lambda rate, steps: dict(zip(quality.RATES, ends, strict=True))[rate]


@pytest.fixture
def learners():
    return Learners(best=by_rate(7.0, 6.0, 6.5), start=by_rate(5.0, 4.0, 3.0))


def test_the_rate_with_the_best_try_trains_for_all_of_the_minutes(learners):
    found = quality.train_whole(learners.runs(), quality.BEST)
    pace, *tries, whole = learners.seen
    assert pace[2] == quality.PACE_STEPS
    assert tries == [(quality.BEST, rate, 1500, 150) for rate in quality.RATES], "under schedules that end there"
    assert whole == (quality.BEST, quality.RATES[1], 6000, 600)
    assert [(run["share"], run["mlm_loss"]) for run in found] == [(0.25, 7.0), (0.25, 6.0), (0.25, 6.5), (1, 6.0)]
    assert [quality.is_whole(run) for run in found] == [False, False, False, True]


def test_a_side_with_its_own_rate_is_not_tuned(learners):
    [whole] = quality.train_whole(learners.runs(), quality.AS_IT_COMES)
    assert (whole["learning_rate"], whole["warmup_steps"], whole["steps"]) == (None, 0, 6000)


def test_the_shortest_run_has_steps_after_those_of_compilation(learners):
    run = quality.Runs(learners.sides, 1e-6, 9.7, {}, None).run(quality.BEST, quality.TRY, quality.RATES[0])
    assert run["steps"] == 40 > curves.COMPILING and run["warmup_steps"] == 20


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
    side = quality.Side(lambda schedule: curve(*losses))
    run = quality.Runs({"side": side}, 1.0, 9.7, {}, None).run("side", 0, None)
    assert run["diverged"] is diverged
    assert json.loads(json.dumps(run, allow_nan=False)) == run


def test_our_trainer_that_gives_up_has_diverged_and_other_failures_are_errors():
    def fails(schedule):
        raise MeasurementError(message)

    run = quality.Runs({"side": quality.Side(fails)}, 1.0, 9.7, {}, None).run
    message = "benchmarks.curves learn: TrainingFailed: step 40: the gradient is not finite (nan)"
    assert run("side", 0, None)["diverged"] and run("side", 0, None)["mlm_loss"] is None
    message = "benchmarks.curves learn: MemoryError"
    with pytest.raises(MeasurementError):
        run("side", 0, 1e-3)


def test_a_diverged_try_is_shown_but_not_chosen_and_a_diverged_run_is_repeated_at_the_next_lower_rate():
    lost_when_long = {3e-4: 7.0, 7.5e-4: 6.0, 1.5e-3: LOST}, {3e-4: 7.0, 7.5e-4: LOST, 1.5e-3: LOST}
    learners = Learners(best=lambda rate, steps: lost_when_long[steps == 6000][rate], start=by_rate(5.0, 5.0, 5.0))
    found = quality.compare(learners.runs(), "small")
    tuned = [run for run in found["runs"] if run["side"] == quality.BEST]
    assert [(run["share"], run["learning_rate"], run["diverged"]) for run in tuned] == [
        (0.25, 3e-4, False),
        (0.25, 7.5e-4, False),
        (0.25, 1.5e-3, True),
        (1, 7.5e-4, True),
        (1, 3e-4, False),
    ]
    assert found["mlm_loss"] == 7.0
    assert quality.table(found | TEXT).count("yes") == 2
    with pytest.raises(SystemExit, match="every rate diverged; remedy: a lower one in RATES"):
        lost = by_rate(LOST, LOST, LOST)
        quality.train_whole(Learners(best=lost, start=lost).runs(), quality.BEST)


TEXT = {
    "machine": {"cpu": "CPU", "cores": 1, "python": "3", "versions": {}, "bf16_units": []},
    "text": {"name": "text", "documents": 7, "words": 1e6, "vocab_size": 8},
}


def test_quality_compares_with_the_end_of_the_best_trainer(learners, tmp_path):
    found = quality.compare(learners.runs(), "small")
    assert found["mlm_loss"] == 6.0
    ends = {row["peer_name"]: (row["peer"], row["ours"], row["peer_reached"]) for row in found["rows"]}
    at = 18.8 * (10 - 6) / (10 - 4) / 60  # seconds of the shortest schedule, which ends at 4; a linear fall from 10
    assert ends[quality.BEST] == (10.0, pytest.approx(at), True)
    assert ends[quality.AS_IT_COMES] == (10.0, pytest.approx(at), False)
    assert ends[quality.PUBLISHED_START] == (pytest.approx(10 * 4 / 7), pytest.approx(at), True)
    shares = [run["share"] for run in found["runs"] if run["side"] == quality.SHIPPED]
    assert shares == [1 / 32, 1], "no other shorter schedule is needed"
    quality.draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_repeated(learners, tmp_path):
    file = tmp_path / "runs.jsonl"
    whole = quality.compare(learners.runs(file=file), "small")
    assert len(learners.seen) == len(file.read_text().splitlines()) == 5 + 2 + 5 + 3
    learners.seen.clear()
    assert quality.compare(learners.runs(file=file), "small") == whole and not learners.seen
    stopped = file.read_text().splitlines()[:3]
    file.write_text("\n".join(stopped) + "\n")
    assert quality.compare(learners.runs(file=file), "small") == whole
    assert learners.seen[0] == (quality.BEST, quality.RATES[2], 1500, 150) and len(learners.seen) == 12
    learners.seen.clear()
    quality.compare(learners.runs(file=file, about="another machine"), "small")
    assert len(learners.seen) == 15


def test_a_side_that_never_reaches_the_loss_counts_with_all_of_its_minutes():
    ends_at = [{"seconds": 60.0, "mlm_loss": 7.0}, {"seconds": 600.0, "mlm_loss": 6.5}]
    row = quality._row("small", "slow", 6.0, 30.0, [{"curve": ends_at, "seconds": 600.0}])
    assert row.keys() >= ROW_KEYS
    assert (row["ours"], row["peer"], row["ratio"], row["peer_reached"]) == (0.5, 10.0, 20.0, False)


def test_the_trainer_learns_as_our_adamw_does(tiny, tiny_recipe, tmp_path, training_in_a_fork):
    """The two sides differ only in speed: with the same weights, rows, masks and settings, in float32, the held-out
    losses are equal. (Any setting of the optimizer changed by a tenth moves them by 3e-5 or more.) Without warm-up,
    because the Trainer's is one step later: its first step has rate 0.
    """
    still = tiny_recipe.model.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    settings = {"adam_beta2": 0.98, "weight_decay": 0.5, "max_grad_norm": 0.7}
    section = tiny_recipe.pretrain.model_copy(update=settings)
    recipe = tiny_recipe.model_copy(update={"model": still, "pretrain": section})
    for kind, artifact in tiny.items():
        (tmp_path / kind).symlink_to(artifact.path)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    schedule = quality.Schedule(num_steps=12, eval_every=4, learning_rate=5e-3)
    theirs = quality.sides(tmp_path, recipe, [min(os.sched_getaffinity(0))], "float32")[quality.BEST].learn(schedule)
    start = quality.published_start(recipe, schedule).model_dump(mode="json")
    found = curves.learn(str(tmp_path), start, schedule.num_steps, schedule.eval_every, quality.HELDOUT_PAIRS)["curve"]
    assert [point["step"] for point in found] == [point["step"] for point in theirs] == [4, 8, 12]
    losses = [[point["mlm_loss"] for point in curve] for curve in (found, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][0] - losses[0][-1] > 0.1
    assert [point["mlm_accuracy"] for point in found] == [point["mlm_accuracy"] for point in theirs]


@pytest.mark.parametrize("num_steps", [10, 1300])
def test_a_shortened_recipe_keeps_the_shares_of_its_phases(num_steps):
    recipe = load_recipe(recipe_files()["small"])
    shorter = curves.shortened(recipe, num_steps).pretrain
    assert shorter.num_steps == pytest.approx(num_steps, abs=len(shorter.phases))
    for before, after in zip(recipe.pretrain.phases, shorter.phases, strict=True):
        assert after.num_steps / shorter.num_steps == pytest.approx(
            before.num_steps / recipe.pretrain.num_steps, abs=0.1
        )


@pytest.mark.slow
def test_quality_of_all_sides_on_a_tiny_recipe(run_python, tmp_path):
    optimizer = '[pretrain]\noptimizer = "muon"\n\n[[pretrain.phases]]'
    fast = TRAINED.replace("[[pretrain.phases]]", optimizer) + "muon_learning_rate = 1e-2\n"
    (tmp_path / "tiny.toml").write_text(fast.replace("[model]", "[model]\nstructured_attention_layers = 1"))
    picture, runs = tmp_path / "curves.png", tmp_path / "runs.jsonl"
    options = ["--recipe", "tiny", "--minutes", "0.1", "--runs", str(runs), "--picture", str(picture), "--json"]
    code = (
        "import sys; from benchmarks import quality; quality.SHORTER = (1 / 2,); quality.PACE_STEPS = 30; "
        "quality.RATES = (3e-3, 1e-2); "
        f"sys.argv = ['quality', *{options}]; quality.main()"
    )
    environment = {"BERT_PIPELINE_HOME": str(tmp_path), "BERT_PIPELINE_RECIPES": str(tmp_path)}
    finished = run_python("-c", code, **environment)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert [row["peer_name"] for row in found["rows"]] == [quality.BEST, quality.AS_IT_COMES, quality.PUBLISHED_START]
    tuned, own_rate = [quality.TRY, quality.TRY, 1], [1]
    shares = {name: [run["share"] for run in runs] for name, runs in groupby(found["runs"], lambda run: run["side"])}
    assert shares == {
        quality.BEST: tuned, quality.AS_IT_COMES: own_rate, quality.PUBLISHED_START: tuned, quality.SHIPPED: [1 / 2, 1]
    }  # fmt: skip
    ends = {run["side"]: run["mlm_loss"] for run in found["runs"] if quality.is_whole(run)}
    assert ends[quality.SHIPPED] < ends[quality.AS_IT_COMES]
    assert quality.BEST in quality.table(found) and picture.read_bytes().startswith(b"\x89PNG")
    kept = runs.read_bytes()
    again = run_python("-c", code, **environment)
    assert json.loads(again.stdout) == found and runs.read_bytes() == kept, again.stderr


def test_scaling_fits_the_relation_that_made_the_losses(tmp_path):
    made = scaling.Relation(1.5, 0.8, 0.4, 5.0, 0.35)
    grid = [(weights, tokens) for weights in (2e6, 3e6, 1e7) for tokens in (2e6, 4e6, 1.2e7, 5e7)]
    runs = [{"weights": w, "tokens": t, "mlm_loss": made.loss(w, t)} for w, t in grid]
    found, error = scaling.fit(runs)
    assert error < 1e-3
    assert found.loss(5e6, 2e7) == pytest.approx(made.loss(5e6, 2e7), rel=1e-3)
    with pytest.raises(ValueError, match="4 runs; remedy: at least 5"):
        scaling.fit(runs[:4])
    widths = {2e6: 192, 3e6: 256, 1e7: 384}
    scaling.draw(
        [run | {"width": widths[run["weights"]]} for run in runs],
        found,
        load_recipe(recipe_files()["small"]),
        tmp_path / "losses.png",
    )
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_fine_tuning_of_all_sides_on_the_generated_task(run_python, tmp_path):
    code = (
        "import sys; from benchmarks import evaluation; evaluation.MIN_STEPS = 20; evaluation.MIN_EPOCHS = 1; "
        "evaluation.WARM_UP = 2; "
        "sys.argv = ['evaluation', '--task', 'sample-chem', '--rounds', '1', '--json']; evaluation.main()"
    )
    finished = run_python("-c", code, BERT_PIPELINE_HOME=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    names = ["sample-chem, training"] * 2 + ["sample-chem, prediction"] * 2
    assert [row["name"] for row in found["rows"]] == names
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert evaluation.BEFORE in evaluation.table(found)
