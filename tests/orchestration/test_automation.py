import json
import os

import dagster as dg
import pytest

from orchestration.automation import corpus_folder, weekly_retraining
from orchestration.definitions import defs


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The folder that recipes/notes.toml names."""
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "one.txt").write_text("First sentence.\n")
    return folder


def look(cursor: str | None) -> tuple[list[str], str]:
    """One tick: the partitions asked for, and the new cursor."""
    result = corpus_folder(dg.build_sensor_context(cursor=cursor))
    return [request.partition_key for request in result.run_requests], result.cursor


def test_the_first_look_only_remembers(notes):
    requested, cursor = look(None)
    assert requested == []
    assert list(json.loads(cursor)["notes"]) == ["one.txt"]


@pytest.mark.parametrize("change", ["new file", "longer", "touched", "gone"])
def test_a_change_asks_for_one_run_of_its_recipe(notes, change):
    (notes / "two.txt").write_text("Second.\n")
    _, cursor = look(None)
    assert look(cursor)[0] == [], "nothing has changed yet"
    if change == "new file":
        (notes / "three.txt").write_text("Third.\n")
    elif change == "longer":
        (notes / "one.txt").write_text("First sentence, and more.\n")
    elif change == "touched":
        os.utime(notes / "one.txt", (1, 1))
    else:
        (notes / "two.txt").unlink()
    requested, cursor = look(cursor)
    assert requested == ["notes"]
    assert look(cursor)[0] == [], "one change, one run"


def test_a_folder_that_is_away_for_a_while_is_no_change(notes):
    _, cursor = look(None)
    hidden = notes.rename(notes.with_name("away"))
    requested, cursor = look(cursor)
    assert requested == []
    hidden.rename(notes)
    assert look(cursor)[0] == []


def test_the_schedule_retrains_what_was_registered_and_nothing_else():
    with dg.instance_for_test() as instance:

        def requested() -> list[str]:
            context = dg.build_schedule_context(instance=instance, repository_def=defs().get_repository_def())
            return [request.partition_key for request in weekly_retraining(context)]

        assert requested() == []
        instance.report_runless_asset_event(dg.AssetMaterialization("registered_model", partition="tiny"))
        instance.report_runless_asset_event(dg.AssetMaterialization("registered_model", partition="no recipe any more"))
        assert requested() == ["tiny"]
