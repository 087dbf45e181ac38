"""The runs of a task: settings, worker processes, failures and interruptions."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import commands, eventually

from bert_pipeline.evaluation.evaluate import best_on_dev
from bert_pipeline.evaluation.finetuning import worker, workers
from bert_pipeline.evaluation.finetuning.inputs import encode_task
from bert_pipeline.evaluation.finetuning.job import FinetuningJob, model_fingerprint
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting, protocol
from bert_pipeline.evaluation.finetuning.runs import make_run
from bert_pipeline.evaluation.finetuning.workers import RunFailed, Workers
from bert_pipeline.evaluation.scoring.predictions import read_predictions, write_predictions
from bert_pipeline.evaluation.scoring.scores import gold_labels, scores
from bert_pipeline.evaluation.tasks.readers import Sentence, Text
from bert_pipeline.evaluation.tasks.task import find_task
from bert_pipeline.recipe import TaskRecipe
from bert_pipeline.store.artifact import Artifact, ArtifactError

ROOT = Path(__file__).parents[3]
SHORT = Setting(3e-3, 32, 1)
ENDLESS = Setting(1e-3, 1, 100)
"""16,000 steps, which take minutes: such a run never ends by itself in a test."""


@pytest.fixture
def job(model_dir, small_tasks, small_task, tmp_path):
    task, _ = small_task("small-relation")
    return FinetuningJob(
        model_dir=model_dir,
        task=task,
        data=small_tasks / task.name,
        other_data=False,
        protocol=protocol(task, TaskRecipe(name=task.name), 64),
        runs=tmp_path / "runs",
        fingerprints={"model": model_fingerprint(model_dir)},
    )


def make(job, *runs) -> dict[Run, Artifact]:
    made = {}
    with Workers(job, len(runs), 160) as pool:
        pool.make(runs, made.__setitem__)
    return made


def processes_of() -> list[int]:
    """The workers that this process started."""
    return [number for number, command in commands(parent=os.getpid()).items() if worker.__name__ in command]


def test_the_grid_has_every_combination_in_order():
    how = protocol_with(learning_rate=(1e-5, 3e-5), batch_size=(16, 32), num_epochs=10)
    assert how.settings == [(1e-5, 16, 10), (1e-5, 32, 10), (3e-5, 16, 10), (3e-5, 32, 10)]


def protocol_with(**values):
    return protocol(find_task("sample-chem"), TaskRecipe(name="sample-chem", **values))


def test_the_first_of_the_best_settings_on_dev_is_chosen(tmp_path):
    def scored(dev: float, test: float) -> Artifact:
        return Artifact(tmp_path, {"facts": {"dev": {"score": dev}, "test": {"score": test}}})

    settings = [Setting(rate, 16, 10) for rate in (1e-5, 3e-5, 5e-5, 7e-5)]
    tried = zip(settings, [scored(0.5, 0.9), scored(0.7, 0.1), scored(0.7, 0.8), scored(0.6, 1.0)], strict=True)
    assert best_on_dev([*tried]) == settings[1]


def test_names_tell_runs_apart():
    runs = [Run(e, Setting(r, b, n), s) for e in ("pretrained", "random_init") for r in (1e-5, 1.5e-5)
            for b in (16, 32) for n in (10, 100) for s in (1, 11)]  # fmt: skip
    assert len({run.name for run in runs}) == len(runs)
    assert Run("pretrained", Setting(5e-5, 32, 10), 1).name == "pretrained-lr5e-05-bs32-ep10-seed1"


def test_one_worker_and_two_give_the_same_and_finished_runs_are_not_repeated(job, small_task, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = [Run("pretrained", SHORT, 1), Run("random_init", SHORT, 1), Run("pretrained", SHORT, 2)]
    contents = []
    for width in ("1", "2"):
        monkeypatch.setenv("BERT_PIPELINE_WORKERS", width)
        here = job.model_copy(update={"runs": tmp_path / width})
        made = make(here, *runs)
        assert set(made) == set(runs)
        contents.append(
            [(made[run].facts, [(made[run].path / f"{s}.tsv").read_bytes() for s in ("dev", "test")]) for run in runs]
        )
    assert contents[0] == contents[1]
    assert len({str(facts["epoch_losses"]) for facts, _ in contents[0]}) == 3
    assert all(facts["threads"] == 1 for facts, _ in contents[0])
    assert sorted(path.name for path in (tmp_path / "2").iterdir() if path.is_dir()) == sorted(r.name for r in runs)
    assert sorted(path.name for path in made[runs[0]].path.iterdir()) == ["dev.tsv", "record.json", "test.tsv"]

    _, data = small_task("small-relation")
    for split in ("dev", "test"):
        gold, predicted = read_predictions(made[runs[0]].path / f"{split}.tsv", job.task)
        assert gold == gold_labels(data.splits[split])
        assert scores(job.task, gold, predicted) == made[runs[0]].facts[split]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "2").rglob("*")}
    monkeypatch.setattr(workers.subprocess, "Popen", None)  # no process is started
    again = make(here, *runs)
    assert {run: each.fingerprint for run, each in again.items()} == {r: m.fingerprint for r, m in made.items()}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "2").rglob("*")} == before
    with pytest.raises(ArtifactError, match=r"is a run of another model.*remedy"):
        make(here.model_copy(update={"fingerprints": {"model": "another"}}), *runs)
    monkeypatch.setattr("bert_pipeline.evaluation.finetuning.job.CODE_VERSION", "another")
    with pytest.raises(ArtifactError, match=r"or another version of bert-pipeline; remedy"):
        make(here, *runs)


def test_an_interrupted_run_resumes_and_leaves_no_temporary_files(job, small_task, monkeypatch, tmp_path):
    from bert_pipeline.evaluation.finetuning import finetune

    _, data = small_task("small-relation")
    inputs = encode_task(job.model_dir, job.task, data, 64)
    run = Run("pretrained", SHORT, 1)
    monkeypatch.setattr(finetune, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    steps: list[int] = []

    def stop_at_three(step: int, of: int) -> None:
        steps.append(step)
        if steps == [0, 1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_run(job, run, data, inputs, stop_at_three)
    assert not (job.runs / run.name).exists() and job.finished(run) is None
    found = make_run(job, run, data, inputs, stop_at_three)
    assert steps == [0, 1, 2, 3, 3, 4, 5]
    undisturbed = job.model_copy(update={"runs": tmp_path / "undisturbed"})
    assert make_run(undisturbed, run, data, inputs, lambda step, of: None).facts == found.facts
    assert {path.name for path in job.runs.iterdir()} == {run.name, f"{run.name}.lock"}
    assert {path.name for path in found.path.iterdir()} == {"dev.tsv", "record.json", "test.tsv"}


def test_a_failing_run_stops_the_others_and_names_the_reason(job, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_WORKERS", "2")
    endless, failing = Run("pretrained", ENDLESS, 1), Run("pretrained", Setting(1e38, 16, 1), 1)
    name = r"small-relation, pretrained-lr1e\+38-bs16-ep1-seed1"
    with pytest.raises(RunFailed, match=name + ": pretrained, seed 1: the training loss is .*remedy: a learning_rate"):
        make(job, endless, failing)
    assert not processes_of()


def test_a_worker_that_cannot_start_names_the_reason(job):
    with pytest.raises(RunFailed, match=r"small-relation, .*: max_seq_length is 99, but .* has 64 positions; remedy"):
        make(
            job.model_copy(update={"protocol": job.protocol.model_copy(update={"max_seq_length": 99})}),
            Run("pretrained", SHORT, 1),
        )


def test_a_killed_worker_is_an_error_not_a_hang(job, monkeypatch):
    real = workers.Progress.advance

    def kill(self, *args, **more):
        real(self, *args, **more)
        for process in processes_of():  # none when a message sent before the kill is counted
            os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(workers.Progress, "advance", kill)
    with pytest.raises(RunFailed, match=r"small-relation, pretrained.*: its process was killed by signal 9; remedy"):
        make(job, Run("pretrained", ENDLESS, 1))
    assert not processes_of()


def test_an_interrupt_leaves_no_process(job, monkeypatch):
    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.Progress, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(job, Run("pretrained", ENDLESS, 1))
    assert not processes_of()


PARENT = """
import pathlib, sys
from bert_pipeline.evaluation.finetuning import workers
from bert_pipeline.evaluation.finetuning.job import FinetuningJob
from bert_pipeline.evaluation.finetuning.protocol import Run, Setting

real = workers.Progress.advance
def advance(self, *args, **more):
    real(self, *args, **more)
    print("a step", flush=True)
workers.Progress.advance = advance
job = FinetuningJob.model_validate_json(sys.argv[1])
with workers.Workers(job, 1, 160) as pool:
    pool.make([Run("pretrained", Setting(1e-3, 1, 100), 1)], print)
"""


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_the_workers_end_with_the_process_that_started_them(job, how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, job.model_dump_json()], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "a step\n"
    [worker] = commands(parent=parent.pid)
    parent.send_signal(how)
    parent.wait()
    try:
        eventually(lambda: worker not in commands())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_predictions_survive_writing_and_reading(small_task, tmp_path):
    separators = Sentence("1", ("a\u2028b", "c\rd", "\x85", '"'), ("O", "B", "I", "O"))
    cases = {
        "small-ner": ([separators, Sentence("2", ("x",), ("O",))], [("B", "O", "O", "I"), ("O",)]),
        "small-similarity": ([Text("7", ("a", "b"), 3.2), Text("8", ("a", "b"), 0.0)], [0.1 + 0.2, -1e-17]),
        "small-documents": (
            [Text("7", ("a",), frozenset()), Text("8", ("a",), frozenset({"invasion", "angiogenesis"}))],
            [frozenset({"angiogenesis", "invasion"}), frozenset()],
        ),
        "small-qa": ([Text("7", ("a", "b"), "yes")], ["maybe"]),
    }
    for name, (examples, predicted) in cases.items():
        path = tmp_path / f"{name}.tsv"
        write_predictions(path, examples, predicted)
        task, _ = small_task(name)
        assert read_predictions(path, task) == (gold_labels(examples), predicted)
    assert (tmp_path / "small-documents.tsv").read_text() == (
        "id\tgold\tpredicted\n7\t\tangiogenesis,invasion\n8\tangiogenesis,invasion\t\n"
    )
    assert "\tO\tB\n" in (tmp_path / "small-ner.tsv").read_text()


def test_the_fingerprint_covers_weights_config_and_tokenizer(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    assert model_fingerprint(tmp_path / "model") == model_fingerprint(model_dir)
    (tmp_path / "model" / "record.json").write_text("{}")
    assert model_fingerprint(tmp_path / "model") == model_fingerprint(model_dir)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        before = model_fingerprint(tmp_path / "model")
        with (tmp_path / "model" / name).open("ab") as file:
            file.write(b" ")
        assert model_fingerprint(tmp_path / "model") != before
