"""What starts a retraining: the schedule, and the sensor on the files of a corpus."""

import json
import os
import shutil
import time
from functools import cache
from pathlib import Path

import dagster as dg
import pytest

from orchestration.assets import ASSETS
from orchestration.automation import retraining
from orchestration.automation.retraining import STARTED_BY, corpus_folder, weekly_retraining
from orchestration.definitions import defs

RECIPES = Path(__file__).parent / "recipes"


@cache
def repository() -> dg.RepositoryDefinition:
    """Like in the daemon: loaded once, before the recipes change."""
    return defs().get_repository_def()


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def notes(tmp_path, monkeypatch, instance):
    """The folder that recipes/notes.toml names, whose corpus was built once."""
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "one.txt").write_text("First sentence.\n")
    made(instance, "raw_corpus", "notes")
    return folder


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A copy of the recipes to change."""
    folder = tmp_path / "recipes"
    shutil.copytree(RECIPES, folder)
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", str(folder))
    return folder


def made(instance, kind, recipe):
    instance.report_runless_asset_event(dg.AssetMaterialization(kind, partition=recipe))


def run_of(instance, recipe, job, status, **more) -> str:
    """Add a run to Dagster's history; return its id."""
    tags = {"dagster/partition": recipe} | more
    run = dg.DagsterRun(job_name=job, status=status, tags=tags)
    instance.add_run(run)
    return run.run_id


class Sensor:
    def __init__(self, instance) -> None:
        self.instance, self.cursor = instance, None

    def tick(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(self.instance, self.cursor, repository_def=repository())
        result = corpus_folder.evaluate_tick(context)
        self.cursor, self.message = result.cursor, result.skip_message or ""
        return result.run_requests

    def jobs(self) -> list[tuple[str, str]]:
        return [(request.job_name, request.partition_key) for request in self.tick()]


@pytest.fixture
def sensor(instance):
    return Sensor(instance)


def test_only_recipes_with_a_built_corpus_are_watched(instance, sensor):
    sensor.tick()
    assert json.loads(sensor.cursor) == {}


@pytest.mark.parametrize("change", ["new file", "longer", "touched", "gone"])
def test_a_change_starts_one_run_once_the_files_stop_changing(notes, sensor, change):
    (notes / "two.txt").write_text("Second.\n")
    assert sensor.jobs() == [], "the first tick only stores the state"
    assert sensor.jobs() == [], "nothing has changed yet"
    if change == "new file":
        (notes / "three.txt").write_text("Third.\n")
    elif change == "longer":
        (notes / "one.txt").write_text("First sentence, and more.\n")
    elif change == "touched":
        os.utime(notes / "one.txt", (1, 1))
    else:
        (notes / "two.txt").unlink()
    assert sensor.jobs() == [] and "notes has files that are still changing" in sensor.message
    assert sensor.jobs() == [("new_text", "notes")]
    assert sensor.jobs() == [], "one change, one run"


def test_text_that_returns_to_an_earlier_state_starts_a_new_run(notes, sensor):
    sensor.tick()
    keys = []
    for _ in range(2):
        away = (notes / "one.txt").rename(notes.parent / "one.txt")
        (notes / "two.txt").write_text("Second.\n")
        os.utime(notes / "two.txt", (1, 1))
        keys += [request.run_key for _ in range(2) for request in sensor.tick()]
        (notes / "two.txt").unlink()
        away.rename(notes / "one.txt")
        keys += [request.run_key for _ in range(2) for request in sensor.tick()]
    assert len(keys) == len(set(keys)) == 4, "the same state under another key"


def test_a_folder_that_is_missing_for_a_while_is_no_change(notes, sensor):
    sensor.tick()
    hidden = notes.rename(notes.with_name("away"))
    assert sensor.jobs() == [] and "notes cannot be watched at the moment: " in sensor.message
    hidden.rename(notes)
    assert [sensor.jobs() for _ in range(2)] == [[], []]
    hidden = notes.rename(notes.with_name("away"))
    assert sensor.jobs() == []
    (hidden / "two.txt").write_text("Second.\n")
    hidden.rename(notes)
    assert [sensor.jobs() for _ in range(2)] == [[], [("new_text", "notes")]], "a change in the meantime counts"


def test_new_text_waits_for_the_end_of_a_run_of_its_recipe(notes, sensor, instance):
    sensor.tick()
    (notes / "two.txt").write_text("Second.\n")
    run = run_of(instance, "notes", "whole_graph", dg.DagsterRunStatus.STARTED)
    run_of(instance, "notes", "whole_graph", dg.DagsterRunStatus.SUCCESS)
    for _ in range(3):
        assert sensor.jobs() == []
    assert f"waits for run {run}" in sensor.message
    instance.report_run_canceled(instance.get_run_by_id(run))
    assert sensor.jobs() == [("new_text", "notes")]


def test_a_deleted_or_broken_recipe_is_reported_and_does_not_stop_the_others(notes, sensor, instance, recipes):
    made(instance, "raw_corpus", "tiny")
    made(instance, "registered_model", "tiny")
    made(instance, "registered_model", "tiny-further")
    sensor.tick()
    (recipes / "tiny.toml").unlink()
    (recipes / "tiny-further.toml").write_text("[corpus]\nsorce = 1")
    (notes / "two.txt").write_text("Second.\n")
    assert sensor.jobs() == []
    assert "no recipe is named tiny: its file was removed or renamed; remedy: put tiny.toml back" in sensor.message
    assert sensor.jobs() == [("new_text", "notes")]
    skipped = scheduled(instance)
    assert not skipped.run_requests
    for told in ("no recipe is named tiny: ", "tiny-further.toml: ", "did you mean source?"):
        assert told in skipped.skip_message
    shutil.copy(RECIPES / "tiny.toml", recipes)
    assert [request.partition_key for request in scheduled(instance).run_requests] == ["tiny"], "no request was lost"


# Retrainings


def allow(recipes, hours, more=""):
    (recipes / "notes.toml").write_text(f'[corpus]\npath = "notes"\n[retraining]\nhours_per_month = {hours}\n{more}')


def test_new_text_starts_a_retraining_within_the_hours(notes, sensor, instance, recipes):
    allow(recipes, 2.0)
    sensor.tick()
    (notes / "two.txt").write_text("Second.\n")
    sensor.tick()
    [request] = sensor.tick()
    assert request.job_name == "whole_graph" and request.partition_key == "notes" and request.asset_selection is None
    assert request.tags.items() >= {STARTED_BY: "new text", "dagster/max_runtime": "7200"}.items()


def test_without_hours_left_new_text_rebuilds_only_the_corpus(notes, sensor, instance, recipes, monkeypatch):
    allow(recipes, 1.0)
    sensor.tick()
    spent(instance, 0.75, STARTED_BY, "new text")
    spent(instance, 9.0, STARTED_BY, "schedule")
    (notes / "two.txt").write_text("Second.\n")
    sensor.tick()
    [request] = sensor.tick()
    assert request.job_name == "whole_graph" and int(request.tags["dagster/max_runtime"]) == pytest.approx(900, abs=5)
    spent(instance, 0.25, STARTED_BY, "new text")
    (notes / "three.txt").write_text("Third.\n")
    assert [sensor.jobs() for _ in range(3)] == [[], [("new_text", "notes")], []]
    assert "the 1 hours of retraining.hours_per_month are used up; remedy" in sensor.message
    monkeypatch.setattr(retraining, "MONTH", 0 * retraining.MONTH)  # a month later
    assert sensor.jobs() == [("whole_graph", "notes")]
    assert sensor.jobs() == []


def spent(instance, hours, tag, value):
    """Add a finished run of this many hours to Dagster's history."""
    run = instance.get_run_by_id(run_of(instance, "notes", "whole_graph", dg.DagsterRunStatus.STARTED, **{tag: value}))
    now = time.time()
    instance.report_dagster_event(event(run, dg.DagsterEventType.RUN_START), run.run_id, timestamp=now - hours * 3600)
    instance.report_dagster_event(event(run, dg.DagsterEventType.RUN_SUCCESS), run.run_id, timestamp=now)


def event(run, kind):
    return dg.DagsterEvent(kind.value, run.job_name)


@pytest.mark.parametrize("exists", [True, False])
def test_the_tokenizer_is_kept_if_the_recipe_says_so_and_it_exists(notes, sensor, instance, recipes, exists):
    allow(recipes, 1.0, 'tokenizer = "keep"')
    if exists:
        made(instance, "tokenizer", "notes")
    sensor.tick()
    (notes / "two.txt").write_text("Second.\n")
    sensor.tick()
    [request] = sensor.tick()
    everything = {key for asset in ASSETS for key in asset.keys}
    chosen = set(request.asset_selection or everything)
    assert everything - chosen == ({dg.AssetKey("tokenizer")} if exists else set())


# The schedule


def scheduled(instance):
    context = dg.build_schedule_context(instance=instance, repository_def=repository())
    return weekly_retraining.evaluate_tick(context)


def test_the_schedule_retrains_registered_models_only(instance):
    assert scheduled(instance).skip_message == "no model is registered yet"
    made(instance, "registered_model", "tiny")
    [request] = scheduled(instance).run_requests
    assert request.partition_key == "tiny" and request.tags[STARTED_BY] == "schedule"
    assert request.run_key == "tiny", "one run per tick, even if the daemon dies in between"


def test_the_schedule_starts_no_second_run_beside_an_unfinished_one(instance):
    made(instance, "registered_model", "tiny")
    run = run_of(instance, "tiny", "whole_graph", dg.DagsterRunStatus.STARTING)
    assert f"recipe tiny is already being trained by run {run}" in scheduled(instance).skip_message
    instance.report_run_canceled(instance.get_run_by_id(run))
    run_of(instance, "tiny", "new_text", dg.DagsterRunStatus.STARTED)
    assert [request.partition_key for request in scheduled(instance).run_requests] == ["tiny"], (
        "a run of new_text does not block it"
    )
