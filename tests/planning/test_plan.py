"""The plan compared with the artifacts built afterwards; its counts with the model and PyTorch's counter."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from bert_pipeline.cli import main
from bert_pipeline.data.corpus.shard import Pile
from bert_pipeline.data.sources.records import Document
from bert_pipeline.lineage import make_stage
from bert_pipeline.planning import survey
from bert_pipeline.planning.hardware import HARDWARE
from bert_pipeline.planning.plan import DoesNotFit, Estimate, assert_fits, largest_shard, make_plan
from bert_pipeline.planning.survey import Survey, read_source
from bert_pipeline.planning.table import show
from bert_pipeline.planning.trial import Trial
from bert_pipeline.recipe import CorpusRecipe, ModelRecipe, Recipe
from bert_pipeline.recipe_files import load_recipe, recipe_files
from bert_pipeline.training.batches.dataset import Load
from bert_pipeline.training.launch.budget import Pace, measure_pace
from bert_pipeline.training.model.flops import num_parameters, training_flops
from bert_pipeline.training.model.loss import PretrainingLoss
from bert_pipeline.training.model.model import build_model

DATA_STAGES = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")


@pytest.fixture(scope="module", autouse=True)
def one_probe():
    """Pairs of each length are timed once for all plans of this module: a probe takes ten seconds."""
    found = {}

    def measured(job, *where):
        lengths = tuple(phase.max_seq_length for phase in job.section.phases)
        found[lengths] = found.get(lengths) or measure_pace(job, *where)
        return found[lengths]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_pipeline.planning.trial.measure_pace", measured)
        yield


def close(expected: float, tolerance: float = 0.1):
    return pytest.approx(expected, rel=tolerance)


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assert_plan_holds(recipe: Recipe, plan: dict, folder: Path) -> None:
    made: dict = {}
    for kind in DATA_STAGES:
        made[kind] = make_stage(kind, recipe, made, folder / kind)
        if kind != "tokenizer":
            assert plan["disk"]["artifacts"][kind] == close(num_bytes(folder / kind)), kind
    corpus, pairs = made["raw_corpus"].facts, made["nsp_dataset"].facts
    for split in ("train", "heldout"):
        assert plan["text"][f"{split}_documents"] == close(corpus[f"{split}_documents"])
    assert plan["text"]["words"] == close(corpus["train_words"] + corpus["heldout_words"])
    for length in recipe.max_seq_lengths:
        for name in ("train_pairs", "train_tokens", "heldout_pairs", "heldout_tokens"):
            assert plan["pairs"][f"len_{length}"][name] == close(pairs[f"len_{length}"][name]), name


def packaged(name: str) -> Recipe:
    return load_recipe(recipe_files()[name])


def test_the_plan_of_demo_holds(tmp_path):
    recipe = packaged("demo")
    plan = make_plan(recipe, tmp_path, time_training=False)
    assert plan["survey"]["share_read"] == 1
    assert_plan_holds(recipe, plan, tmp_path)
    assert plan["text"]["train_documents"] + plan["text"]["heldout_documents"] == 6000  # counted, not estimated
    assert plan["seconds"]["pretrained_checkpoint"] is None
    assert max(map(len, show(plan).splitlines())) <= 100


@pytest.mark.slow
def test_the_plan_of_small_holds(tmp_path):
    if not os.environ.get("BERT_PIPELINE_DATA"):
        pytest.skip("BERT_PIPELINE_DATA is not set")
    recipe = packaged("small")
    assert_plan_holds(recipe, make_plan(recipe, tmp_path, time_training=False), tmp_path)


@pytest.mark.slow
def test_crammed_reads_all_of_its_text(tmp_path):
    if not os.environ.get("BERT_PIPELINE_DATA"):
        pytest.skip("BERT_PIPELINE_DATA is not set")
    plan = make_plan(packaged("crammed"), tmp_path, time_training=False)
    assert plan["text"]["rejected_documents"] == 0 and plan["text"]["train_documents"] > 50_000


@pytest.fixture
def text_recipe(tmp_path):
    """Documents that grow longer from first to last."""
    path = tmp_path / "text.jsonl"
    sentence = "Patients with angina received atenolol in group {}. "
    path.write_text("".join(json.dumps({"text": sentence.format(n) * (1 + n // 100)}) + "\n" for n in range(2000)))
    section = CorpusRecipe(path=str(path), heldout_fraction=0.1)
    return Recipe.model_validate_json(
        json.dumps(
            {
                "name": "text",
                "corpus": section.model_dump(mode="json"),
                "tokenizer": {"vocab_size": 100},
                "nsp": {"dupe_factor": 3},
                "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
                "pretrain": {
                    "phases": [{"max_seq_length": 32, "num_steps": 10, "learning_rate": 1e-3, "warmup_steps": 1}]
                },
            }
        )
    )


def test_a_sample_stands_for_the_whole(text_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE_CHARACTERS", 150_000)
    found = read_source(text_recipe.corpus)
    assert sum(found.documents.values()) == 2000 and not found.is_whole
    assert 140_000 < found.sample_characters <= 150_000
    mean = sum(found.characters.values()) / 2000
    assert found.sample_characters / len(found.sample) == close(mean, 0.2)  # in the head of the file it is a fifth


def test_the_plan_holds_where_the_sample_is_a_part(tmp_path, monkeypatch):
    recipe = packaged("demo")
    recipe = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"sample_documents": 2000})})
    monkeypatch.setattr(survey, "SAMPLE_CHARACTERS", 600_000)
    plan = make_plan(recipe, tmp_path, time_training=False)
    assert plan["survey"]["sample_documents"] < 1000
    assert_plan_holds(recipe, plan, tmp_path)


def test_what_was_not_read_is_assumed_to_be_like_the_rest(tmp_path, monkeypatch):
    for number in range(40):
        lines = [json.dumps({"text": f"Text {n} of file {number}, of some length."}) for n in range(500)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))
    clock = iter(range(10**9))
    monkeypatch.setattr(survey.time, "monotonic", lambda: next(clock) / 1000)  # a millisecond a look
    found = read_source(CorpusRecipe(path=str(tmp_path)))
    assert 0 < found.share_read < 1 and sum(found.documents.values()) < 20_000
    assert sum(found.documents.values()) / found.share_read == close(20_000, 0.05)


@given(st.integers(2, 2000), st.integers(2, 300))
def test_the_largest_shard_is_foreseen(num_documents, documents_per_shard):
    section = CorpusRecipe(source="sample", documents_per_shard=documents_per_shard)
    pile = Pile(documents_per_shard)
    sizes = [len(pile.add(Document(str(n), ("x" * 10,), ""))) for n in range(num_documents)] + [len(pile.documents)]
    found = Survey(share_read=1.0, documents={"train": num_documents}, characters={"train": 10 * num_documents})
    assert largest_shard(section, found) == pytest.approx(10 * max(sizes))


def test_a_recipe_that_does_not_fit_on_disk_is_refused(small_disk, monkeypatch, capsys, tiny_recipe, tmp_path):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(small_disk))
    recipe = tmp_path / "tiny.toml"
    text = (Path(__file__).parents[1] / "orchestration" / "recipes" / "tiny.toml").read_text()
    text = text.replace("dupe_factor = 1", "dupe_factor = 100").replace("max_seq_length = 64", "max_seq_length = 32")
    recipe.write_text(text)
    assert main(["plan", str(recipe)]) == 1
    told = capsys.readouterr()
    assert "does NOT fit" in told.out
    last = told.err.splitlines()[-1]
    assert f"in {small_disk} (BERT_PIPELINE_HOME); remedy: free " in last and "lower nsp.dupe_factor (100)" in last
    assert not list(small_disk.iterdir())


def test_the_refusal_counts_bytes():
    disk = {"artifacts": {"raw_corpus": 10, "nsp_dataset": 90}, "needed": 100, "free": 60, "place": "here"}
    with pytest.raises(
        DoesNotFit, match=r"needs 100 bytes, most of them for nsp_dataset, but only 60 are free .* free 40"
    ):
        assert_fits({"recipe": "r", "dupe_factor": 5, "disk": disk})
    assert_fits({"recipe": "r", "dupe_factor": 5, "disk": disk | {"free": 100}})


def test_the_plan_as_json(text_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path / "home"))
    (tmp_path / "mine.toml").write_text(
        f'corpus = {{ path = "{text_recipe.corpus.path}", heldout_fraction = 0.1 }}\n'
        "tokenizer = { vocab_size = 100 }\nnsp = { dupe_factor = 1 }\n"
        "model = { hidden_size = 16, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 16 }\n"
        "[[pretrain.phases]]\nmax_seq_length = 32\nnum_steps = 20\nglobal_batch_size = 4\n"
        "learning_rate = 1e-3\nwarmup_steps = 1\n"
    )
    arguments = ["plan", str(tmp_path / "mine.toml"), "--hardware", "L4", "--workers", "3", "--json"]
    assert main(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() >= {"recipe", "survey", "text", "pairs", "disk", "memory", "seconds", "training", "hardware"}
    assert list(plan["hardware"]) == ["L4"] and plan["workers"] == 3
    assert all(seconds is not None and seconds >= 0 for seconds in plan["seconds"].values())
    assert plan["seconds"]["pretrained_checkpoint"] > 0 and plan["seconds"]["evaluations"] == 0  # without tasks
    assert plan["disk"]["needed"] == sum(plan["disk"]["artifacts"].values()) + plan["disk"]["checkpoints"]
    [phase] = plan["training"]["phases"]
    assert phase["passes"] == close(20 * 4 / plan["pairs"]["len_32"]["train_pairs"], 1e-3)
    hours = plan["training"]["flops"] / 121e12 / plan["assumed_utilization"] / 3600
    assert plan["hardware"]["L4"]["hours"] == close(hours, 1e-9)
    assert not (tmp_path / "home").exists()


def evaluation_seconds(recipe: Recipe, baseline: bool = True, **settings) -> float:
    """Of sample-chem, on a machine that takes a second for a pair of pretraining."""
    tasks = {"tasks": [{"name": "sample-chem"} | settings]}
    section = recipe.evaluation.model_validate_json(json.dumps(tasks | {"baseline": baseline}))
    found = Survey(share_read=1.0, documents={"train": 9, "heldout": 1}, characters={"train": 900, "heldout": 100})
    length = recipe.pretrain.phases[-1].max_seq_length
    loads = {length: Load(tokens=32, squared_lengths=32 * 32, masked=5, pairs=1)}
    trial = Trial(10, 1000, 150, 200, 1.0, {}, {"heldout_pieces_per_word": 1.5}, 900, 1.0, 1.0, 1, loads)
    pace = Pace(4096, {str(length): 1.0}, 0.1, 0.3, 0.0)
    return Estimate(recipe.model_copy(update={"evaluation": section}), found, trial, pace)._evaluation_seconds()


def test_evaluations_take_the_runs_of_their_protocol(tiny_recipe):
    one = evaluation_seconds(tiny_recipe, num_epochs=1)  # a run, and one from random weights
    three = evaluation_seconds(tiny_recipe, num_epochs=3)
    an_epoch = (three - one) / 4
    measuring = one / 2 - an_epoch
    assert an_epoch > 0 and measuring > 0
    assert evaluation_seconds(tiny_recipe, num_epochs=1, seeds=[1, 2, 3]) == close(3 * one, 1e-9)
    assert evaluation_seconds(tiny_recipe, baseline=False, num_epochs=1) == close(one / 2, 1e-9)
    grid = {"learning_rate": [1e-4, 1e-3], "num_epochs": [2, 4], "seeds": [1, 2]}
    # Four settings of three epochs on average, one more seed of the best, and two from random weights.
    expected = (4 * 3 + 3 * 4) * an_epoch + (4 + 3) * measuring
    assert evaluation_seconds(tiny_recipe, **grid) == close(expected, 1e-9)


def with_budget(recipe: Recipe, minutes: float) -> Recipe:
    phase = {"max_seq_length": 32, "budget_fraction": 1.0, "learning_rate": 1e-3, "warmup_fraction": 0.1}
    pretrain = {"budget_minutes": minutes, "phases": [phase | {"global_batch_size": 8}]}
    return Recipe.model_validate_json(json.dumps(recipe.model_dump(mode="json") | {"pretrain": pretrain}))


def test_a_budget_becomes_steps_where_its_speed_is_measured(text_recipe, tmp_path):
    unknown = make_plan(with_budget(text_recipe, 2.0), tmp_path, time_training=False)
    assert unknown["training"]["steps"] == 0 and "steps by the budget of minutes" in show(unknown)
    plan = make_plan(with_budget(text_recipe, 2.0), tmp_path)
    assert plan["training"]["steps"] > 100
    assert plan["seconds"]["pretrained_checkpoint"] == pytest.approx(120, rel=0.05)
    assert plan["training"]["per_device_tokens"] == 4096


def test_a_budget_that_is_too_small_is_reported_and_the_rest_planned(text_recipe, tmp_path, caplog):
    plan = make_plan(with_budget(text_recipe, 1e-6), tmp_path)
    assert "cannot be trained on this machine: pretrain.budget_minutes = 1e-06 leaves" in caplog.text
    assert plan["seconds"]["pretrained_checkpoint"] is None and plan["disk"]["needed"] > 0


def test_float32_on_a_processor_with_units_for_bfloat16_is_pointed_out(text_recipe, tmp_path, monkeypatch):
    for has_units, config, expected in ((True, "cpu", True), (True, "cpu_bf16", False), (False, "cpu", False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_units: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", config)
        plan = make_plan(text_recipe, tmp_path, time_training=False)
        assert plan["training"]["leaves_bf16_units_idle"] is expected
        assert ("bfloat16 is faster: BERT_PIPELINE_ACCELERATE_CONFIG=cpu_bf16" in show(plan)) is expected


def test_unknown_hardware_and_missing_text_are_refused(capsys):
    assert main(["plan", "demo", "--hardware", "H20"]) == 1
    told = capsys.readouterr().err
    assert "did you mean H200?" in told and all(name in told for name in HARDWARE)
    assert main(["plan", "pubmedbert"]) == 1
    assert "bert-pipeline download-pubmed" in capsys.readouterr().err


MODEL = ModelRecipe(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=80, max_position_embeddings=64
)


def test_weights_are_counted_exactly():
    model = build_model(MODEL, 1000, seed=1)
    assert num_parameters(MODEL, 1000) == sum(parameter.numel() for parameter in model.parameters())


def test_operations_are_those_that_pytorch_counts():
    """Exactly: packed pairs have no padding, and both count matrix products only. A tenth of each pair is output."""
    loss = PretrainingLoss(build_model(MODEL, 1000, seed=1)).train()  # dropout takes attention's path of products
    lengths = torch.tensor([40, 20, 30, 60])
    tokens, masked = int(lengths.sum()), int(lengths.sum()) // 10 - len(lengths)
    output_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (lengths // 10).cumsum(0)]).int()
    is_first = torch.isin(torch.arange(tokens // 10), output_offsets)
    with FlopCounterMode(display=False) as counter:
        sums = loss(
            input_ids=torch.randint(5, 1000, (1, tokens)),
            token_type_ids=torch.zeros(1, tokens, dtype=torch.int64),
            position_ids=torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int(),
            output_positions=torch.randperm(tokens)[: tokens // 10],
            output_offsets=output_offsets,
            masked=torch.arange(tokens // 10)[~is_first],
            masked_labels=torch.randint(5, 1000, (masked,)),
            next_sentence_label=torch.randint(0, 2, (len(lengths),)),
        )
        (sums.mlm_loss + sums.nsp_loss).backward()
    load = Load(tokens=tokens, squared_lengths=int((lengths**2).sum()), masked=masked, pairs=len(lengths))
    assert training_flops(MODEL, 1000, load) == counter.get_total_flops()
