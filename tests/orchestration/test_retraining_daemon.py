"""Retraining end to end: a daemon, new files, the runs they start, and the champion that results."""

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
    """A home, a folder of text, a recipe, and a daemon that uses them."""

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
        """Start the daemon."""
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
        """Restart the daemon with a schedule that runs every minute instead of every week."""
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
        """Write a file that appears at once."""
        draft = self.folder / name
        draft.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in documents))
        draft.rename(self.texts / name)

    def runs(self, job: str | None = None) -> list[dg.DagsterRun]:
        """The runs of the recipe, oldest first."""
        return self.instance.get_runs(dg.RunsFilter(job_name=job, tags={PARTITION: "watched"}))[::-1]

    def wait(self, what: str, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            assert time.monotonic() < deadline, f"{what} did not come; {self.story()}"
            time.sleep(1)

    def wait_for_run(self, number: int, job: str = "whole_graph") -> dg.DagsterRun:
        """Wait for the run with this number to succeed; return it."""
        self.wait(f"{job} {number}", lambda: len(self.runs(job)) >= number and self.at_rest())
        run = self.runs(job)[number - 1]
        assert run.status == dg.DagsterRunStatus.SUCCESS, self.story()
        return run

    def at_rest(self) -> bool:
        return not any(run.status in UNFINISHED for run in self.runs())

    def ticks(self, number: int, sensor: str) -> None:
        """Wait for this many more ticks of a sensor."""

        def count() -> int:
            [state] = [each for each in self.instance.all_instigator_state() if each.instigator_name == sensor]
            return len(self.instance.get_ticks(state.instigator_origin_id, state.selector_id))

        before = count()
        self.wait(f"a tick of {sensor}", lambda: count() >= before + number)

    def story(self) -> str:
        runs = [
            f"{run.job_name} {run.status.value} {sorted(map(str, run.asset_selection or []))}" for run in self.runs()
        ]
        errors = [
            entry.dagster_event.step_failure_data.error.to_string()
            for run in self.runs()
            for entry in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ]
        return "\n".join([*runs, *errors, (self.folder / "daemon.log").read_text()[-3000:]])


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
    """Documents of unique random words: a vocabulary learnt from them splits every other text into letters."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=rng.randint(2, 7))) for _ in range(300)]
    for each in range(number):
        sentences = (" ".join(rng.choices(words, k=10)).capitalize() + "." for _ in range(6))
        yield f"noise {seed} {each}", " ".join(sentences)


@pytest.mark.slow
def test_new_files_retrain_and_the_better_model_becomes_champion(plant):
    plant.write("first.jsonl", noise(60, 1))
    plant.call("job", "launch", "-j", "whole_graph", "--tags", json.dumps({PARTITION: "watched"}))
    plant.wait_for_run(1)
    assert find_champion(plant.registry, NAME) == "1", "the first one"

    plant.recipe.write_text(f"{RECIPE}\n[retraining]\nhours_per_month = 1.0\n")
    for sensor in ("corpus_folder", "new_content"):
        plant.call("sensor", "start", sensor)
    plant.ticks(1, "corpus_folder")

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
def test_new_text_rebuilds_cheap_assets_and_refused_text_rebuilds_nothing(plant):
    """Also, of two concurrent runs of one recipe, one builds and the other reports that it built nothing."""
    plant.write("first.jsonl", sample_documents(100, 1))
    tags = json.dumps({PARTITION: "watched"})
    for _ in range(2):
        plant.call("job", "launch", "-j", "whole_graph", "--tags", tags)
    built = sorted(plant.wait_for_run(number).tags[BUILT] for number in (2, 1))
    assert built[0] == "nothing" and built[1].startswith("raw_corpus, "), built
    assert len(plant.registry.search_model_versions(f"name = '{NAME}'")) == 1
    for sensor in ("corpus_folder", "new_content"):
        plant.call("sensor", "start", sensor)
    plant.ticks(1, "corpus_folder")
    plant.ticks(1, "new_content")

    plant.write("second.jsonl", sample_documents(50, 2))
    plant.wait_for_run(1, "new_text")
    plant.wait("the masks", lambda: "masked_dataset" in rebuilt(plant) and plant.at_rest())
    assert set(rebuilt(plant)) == {"contamination", "masked_dataset", "nsp_dataset"}, plant.story()
    followed = len(plant.runs())
    assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in plant.runs()), plant.story()

    for path in plant.texts.iterdir():
        path.unlink()
    plant.write("third.jsonl", sample_documents(1, 3))
    plant.wait("the text", lambda: len(plant.runs("new_text")) == 2 and plant.at_rest())
    assert plant.runs("new_text")[-1].status == dg.DagsterRunStatus.FAILURE, "one document is refused"
    plant.ticks(3, "new_content")
    assert len(plant.runs()) == followed + 1, "refused text starts no other run, not even later"
    assert len(plant.runs("whole_graph")) == 2, "no training was started"


@pytest.mark.slow
def test_a_failed_gate_blocks_rebuilds_until_it_passes(plant):
    """A vocabulary with too few letters fails its gate, which blocks its own run and later ones."""
    plant.recipe.write_text(RECIPE.replace("vocab_size = 400", "vocab_size = 400\nlimit_alphabet = 20"))
    plant.write("first.jsonl", noise(60, 1))
    plant.call("job", "launch", "-j", "whole_graph", "--tags", json.dumps({PARTITION: "watched"}))
    plant.wait("the end", lambda: plant.runs() and plant.at_rest())
    assert "few_unknown_pieces" in plant.story()
    for sensor in ("corpus_folder", "new_content"):
        plant.call("sensor", "start", sensor)
    plant.ticks(1, "corpus_folder")
    plant.ticks(1, "new_content")

    plant.write("second.jsonl", noise(60, 2))
    plant.wait_for_run(1, "new_text")
    plant.ticks(4, "new_content")
    assert set(rebuilt(plant)) == {"contamination"}, plant.story()

    plant.recipe.write_text(RECIPE)
    plant.call("asset", "materialize", "--select", "tokenizer", "--partition", "watched")
    plant.wait("the masks", lambda: "masked_dataset" in rebuilt(plant) and plant.at_rest())
    assert plant.runs()[-1].status == dg.DagsterRunStatus.SUCCESS, plant.story()


@pytest.mark.slow
def test_the_schedule_retrains_registered_models(plant):
    """By its cron, together with the sensor. New text leads to a new version; otherwise nothing is built."""
    plant.recipe.write_text(f"{RECIPE}\n[retraining]\nhours_per_month = 1.0\n")
    plant.write("first.jsonl", noise(60, 1))
    plant.call("job", "launch", "-j", "whole_graph", "--tags", json.dumps({PARTITION: "watched"}))
    plant.wait_for_run(1)
    plant.hasten()
    plant.call("sensor", "start", "corpus_folder")
    plant.ticks(1, "corpus_folder")
    plant.write("better.jsonl", sample_documents(300, 5))
    plant.call("schedule", "start", "weekly_retraining")
    plant.ticks(3, "weekly_retraining")
    plant.call("schedule", "stop", "weekly_retraining")
    plant.wait("the end", plant.at_rest)
    _, *runs = plant.runs("whole_graph")
    assert all(run.status == dg.DagsterRunStatus.SUCCESS for run in runs), plant.story()
    assert [run.tags[BUILT] == "nothing" for run in runs] == [False, *[True] * (len(runs) - 1)], plant.story()
    assert runs[-1].tags[STARTED_BY] == "schedule" and len(runs) >= 2
    assert find_champion(plant.registry, NAME) == "2"
    assert len(plant.registry.search_model_versions(f"name = '{NAME}'")) == 2


def rebuilt(plant: Plant) -> list[str]:
    """The assets that runs of the sensor new_content selected, one entry each."""
    return [
        key.to_user_string()
        for run in plant.runs()
        if run.tags.get("dagster/sensor_name") == "new_content"
        for key in run.asset_selection or ()
    ]


def verdict(plant: Plant, version: str) -> str:
    return plant.registry.get_model_version(NAME, version).tags["challenge"]
