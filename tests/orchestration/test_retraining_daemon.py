"""Retraining as it runs: a daemon, files that arrive, runs that follow, a champion that changes or stays."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient
from servers import changed

from bert_pipeline.data.sources.sample.documents import sample_documents
from orchestration.automation.retraining import PARTITION, STARTED_BY, UNFINISHED
from orchestration.registry.ledger import find_champion
from orchestration.workshop import BUILT

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 420
NAME = "bert-watched"
RECIPE = """
[corpus]
path = "texts"
id_field = "id"
heldout_fraction = 0.1

[tokenizer]
vocab_size = 400

[nsp]
dupe_factor = 1

[model]
hidden_size = 64
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 128
max_position_embeddings = 64

[pretrain]
heldout_pairs = 50

[[pretrain.phases]]
max_seq_length = 64
num_steps = 60
global_batch_size = 16
learning_rate = 5e-3
warmup_steps = 4

[[evaluation.tasks]]
name = "sample-chem"
learning_rate = 2e-3
batch_size = 8
num_epochs = 10
max_seq_length = 64
seeds = [1]

[registry]
promote = "if_better"
"""


class Plant:
    """A home, a folder of text, a recipe, and a daemon that has them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.texts, self.recipe = folder, folder / "data/texts", folder / "recipes/watched.toml"
        self.code = ROOT
        for each in (self.texts, self.recipe.parent, folder / "dagster"):
            each.mkdir(parents=True)
        self.recipe.write_text(RECIPE)
        shutil.copy(ROOT / "infra/dagster/dagster.yaml", folder / "dagster")
        self.environment = os.environ | {
            "BERT_PIPELINE_HOME": str(folder),
            "BERT_PIPELINE_RECIPES": str(self.recipe.parent),
            "BERT_PIPELINE_DATA": str(folder / "data"),
            "BERT_PIPELINE_WORKERS": "1",
            "DAGSTER_HOME": str(folder / "dagster"),
        }
        self.instance = dg.DagsterInstance.from_config(str(folder / "dagster"))
        self.registry = MlflowClient(f"sqlite:///{folder}/mlflow.db")

    def start(self) -> None:
        """The daemon."""
        with (self.folder / "daemon.log").open("a") as log:
            self.daemon = subprocess.Popen(
                self.command("dagster-daemon", "run"),
                cwd=self.code,
                env=self.environment | {"PYTHONPATH": str(self.code)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        os.killpg(self.daemon.pid, signal.SIGTERM)
        try:
            self.daemon.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.daemon.pid, signal.SIGKILL)

    def hasten(self) -> None:
        """The daemon, started again with a schedule that comes every minute instead of every week."""
        self.stop()
        self.code = self.folder / "code"
        shutil.copytree(ROOT / "orchestration", self.code / "orchestration")
        module = self.code / "orchestration/automation/retraining.py"
        module.write_text(changed(module.read_text(), **{'"0 3 * * 0"': '"* * * * *"'}))
        self.start()

    def command(self, program: str, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name(program)), *arguments, "-m", "orchestration.definitions"]

    def call(self, *arguments: str) -> None:
        done = subprocess.run(
            self.command("dagster", *arguments),
            cwd=self.code,
            env=self.environment | {"PYTHONPATH": str(self.code)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def write(self, name: str, documents: Iterator[tuple[str, str]]) -> None:
        """A file that appears whole."""
        draft = self.folder / name
        draft.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in documents))
        draft.rename(self.texts / name)

    def runs(self, job: str | None = None) -> list[dg.DagsterRun]:
        """The oldest first."""
        return self.instance.get_runs(dg.RunsFilter(job_name=job, tags={PARTITION: "watched"}))[::-1]

    def wait(self, what: str, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            assert time.monotonic() < deadline, f"{what} did not come; {self.story()}"
            time.sleep(1)

    def wait_for_run(self, number: int, job: str = "whole_graph") -> dg.DagsterRun:
        """The run of this number, once it has ended well."""
        self.wait(f"{job} {number}", lambda: len(self.runs(job)) >= number and self.at_rest())
        run = self.runs(job)[number - 1]
        assert run.status == dg.DagsterRunStatus.SUCCESS, self.story()
        return run

    def at_rest(self) -> bool:
        return not any(run.status in UNFINISHED for run in self.runs())

    def looks(self, number: int, sensor: str) -> None:
        """Wait for so many more evaluations of a sensor."""

        def count() -> int:
            [state] = [each for each in self.instance.all_instigator_state() if each.instigator_name == sensor]
            return len(self.instance.get_ticks(state.instigator_origin_id, state.selector_id))

        before = count()
        self.wait(f"{sensor} looking", lambda: count() >= before + number)

    def story(self) -> str:
        told = [
            f"{run.job_name} {run.status.value} {sorted(map(str, run.asset_selection or []))}" for run in self.runs()
        ]
        errors = [
            entry.dagster_event.step_failure_data.error.to_string()
            for run in self.runs()
            for entry in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ]
        return "\n".join([*told, *errors, (self.folder / "daemon.log").read_text()[-3000:]])


@pytest.fixture
def plant(tmp_path):
    plant = Plant(tmp_path)
    plant.start()
    try:
        yield plant
    finally:
        plant.stop()
        plant.instance.dispose()


def noise(number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Documents of words that stand in no other: their vocabulary cuts every other text into letters."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(2, 7))) for _ in range(300)]
    for each in range(number):
        sentences = (" ".join(rng.choices(words, k=10)).capitalize() + "." for _ in range(6))
        yield f"noise {seed} {each}", " ".join(sentences)


@pytest.mark.slow
def test_files_arrive_and_the_better_model_serves(plant):
    plant.write("first.jsonl", noise(60, 1))
    plant.call("job", "launch", "-j", "whole_graph", "--tags", json.dumps({PARTITION: "watched"}))
    plant.wait_for_run(1)
    assert find_champion(plant.registry, NAME) == "1", "there was none before"

    plant.recipe.write_text(f"{RECIPE}\n[retraining]\nhours_per_month = 1.0\n")
    for sensor in ("corpus_folder", "new_content"):
        plant.call("sensor", "start", sensor)
    plant.looks(1, "corpus_folder")

    plant.write("better.jsonl", sample_documents(300, 5))
    run = plant.wait_for_run(2)
    assert run.tags[STARTED_BY] == "new text" and run.tags[BUILT].startswith("raw_corpus, ")
    assert find_champion(plant.registry, NAME) == "2", verdict(plant, "2")

    (plant.texts / "better.jsonl").unlink()
    plant.write("worse.jsonl", noise(60, 2))
    plant.wait_for_run(3)
    assert "worse on sample-chem" in verdict(plant, "3")
    assert find_champion(plant.registry, NAME) == "2"


@pytest.mark.slow
def test_what_is_cheap_follows_new_text_and_nothing_follows_what_is_refused(plant):
    """And of two runs of one recipe that are started at once, one builds and the other says that it built nothing."""
    plant.write("first.jsonl", sample_documents(100, 1))
    tags = json.dumps({PARTITION: "watched"})
    for _ in range(2):
        plant.call("job", "launch", "-j", "whole_graph", "--tags", tags)
    built = sorted(plant.wait_for_run(number).tags[BUILT] for number in (2, 1))
    assert built[0] == "nothing" and built[1].startswith("raw_corpus, "), built
    assert len(plant.registry.search_model_versions(f"name = '{NAME}'")) == 1
    for sensor in ("corpus_folder", "new_content"):
        plant.call("sensor", "start", sensor)
    plant.looks(1, "corpus_folder")
    plant.looks(1, "new_content")

    plant.write("second.jsonl", sample_documents(50, 2))
    plant.wait_for_run(1, "new_text")
    plant.wait("the masks", lambda: "masked_dataset" in followers(plant) and plant.at_rest())
    assert set(followers(plant)) == {"contamination", "masked_dataset", "nsp_dataset"}, plant.story()
    followed = len(plant.runs())
    assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in plant.runs()), plant.story()

    for path in plant.texts.iterdir():
        path.unlink()
    plant.write("third.jsonl", sample_documents(1, 3))
    plant.wait("the text", lambda: len(plant.runs("new_text")) == 2 and plant.at_rest())
    assert plant.runs("new_text")[-1].status == dg.DagsterRunStatus.FAILURE, "one document is refused"
    plant.looks(3, "new_content")
    assert len(plant.runs()) == followed + 1, "and followed by nothing, in later runs, too"
    assert len(plant.runs("whole_graph")) == 2, "no training was asked for"


@pytest.mark.slow
def test_a_closed_gate_holds_back_what_follows_until_it_opens(plant):
    """The vocabulary of a recipe that keeps too few letters: its gate is closed, in its own run and in later ones."""
    plant.recipe.write_text(RECIPE.replace("vocab_size = 400", "vocab_size = 400\nlimit_alphabet = 20"))
    plant.write("first.jsonl", noise(60, 1))
    plant.call("job", "launch", "-j", "whole_graph", "--tags", json.dumps({PARTITION: "watched"}))
    plant.wait("the end", lambda: plant.runs() and plant.at_rest())
    assert "few_unknown_pieces" in plant.story()
    for sensor in ("corpus_folder", "new_content"):
        plant.call("sensor", "start", sensor)
    plant.looks(1, "corpus_folder")
    plant.looks(1, "new_content")

    plant.write("second.jsonl", noise(60, 2))
    plant.wait_for_run(1, "new_text")
    plant.looks(4, "new_content")
    assert set(followers(plant)) == {"contamination"}, plant.story()

    plant.recipe.write_text(RECIPE)
    plant.call("asset", "materialize", "--select", "tokenizer", "--partition", "watched")
    plant.wait("the masks", lambda: "masked_dataset" in followers(plant) and plant.at_rest())
    assert plant.runs()[-1].status == dg.DagsterRunStatus.SUCCESS, plant.story()


@pytest.mark.slow
def test_the_schedule_trains_again_what_was_registered_once(plant):
    """By its cron, together with the sensor. New text makes a version; where nothing is new nothing is built."""
    plant.recipe.write_text(f"{RECIPE}\n[retraining]\nhours_per_month = 1.0\n")
    plant.write("first.jsonl", noise(60, 1))
    plant.call("job", "launch", "-j", "whole_graph", "--tags", json.dumps({PARTITION: "watched"}))
    plant.wait_for_run(1)
    plant.hasten()
    plant.call("sensor", "start", "corpus_folder")
    plant.looks(1, "corpus_folder")
    plant.write("better.jsonl", sample_documents(300, 5))
    plant.call("schedule", "start", "weekly_retraining")
    plant.looks(3, "weekly_retraining")
    plant.call("schedule", "stop", "weekly_retraining")
    plant.wait("the end", plant.at_rest)
    _, *runs = plant.runs("whole_graph")
    assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs), plant.story()
    assert [run.tags[BUILT] == "nothing" for run in runs] == [False, *[True] * (len(runs) - 1)], plant.story()
    assert runs[-1].tags[STARTED_BY] == "schedule" and len(runs) >= 2
    assert find_champion(plant.registry, NAME) == "2"
    assert len(plant.registry.search_model_versions(f"name = '{NAME}'")) == 2


def followers(plant: Plant) -> list[str]:
    """What runs of the sensor new_content were asked for, one by one."""
    return [
        key.to_user_string()
        for run in plant.runs()
        if run.tags.get("dagster/sensor_name") == "new_content"
        for key in run.asset_selection or ()
    ]


def verdict(plant: Plant, version: str) -> str:
    return plant.registry.get_model_version(NAME, version).tags["challenge"]
