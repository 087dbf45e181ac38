"""Promote, undo, and the history of a model's champions."""

import json
import sqlite3

import pytest

from orchestration.registry.ledger import PromotionConflict, PromotionError, find_champion, history
from orchestration.registry.promotion import promote, undo


def test_a_promotion_is_written_to_the_tags_that_mlflow_shows(client, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    promote(client, name, "1", "the first", None)
    done = promote(client, name, "2", "fewer errors", "1", how="rule", comparison={"GAD": {"difference": 0.02}})
    version, model = client.get_model_version_by_alias(name, "champion"), client.get_registered_model(name)
    text = f"version 2 after version 1 since {done.at}, by rule (ada; promotion 2 in {name}.champions): fewer errors"
    assert str(version.version) == "2" and version.tags["champion"] == model.tags["champion"] == text
    assert json.loads(version.tags["champion.comparison"]) == {"GAD": {"difference": 0.02}}
    assert history(client, name)[-1] == done and done.comparison == {"GAD": {"difference": 0.02}}
    assert promote(client, name, "2", "again", "2") == done, "promoting the champion again adds no entry"


def test_undo_goes_back_step_by_step(client, name):
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(client, name, version, "", before)
    assert [undo(client, name).version for _ in range(3)] == ["2", "1", None]
    assert find_champion(client, name) is None
    assert client.get_registered_model(name).tags["champion"].startswith("none after version 1 since ")
    with pytest.raises(PromotionError, match=r"no promotion of .* left to undo"):
        undo(client, name)
    promote(client, name, "3", "after all", None)
    promote(client, name, "1", "", "3")
    assert undo(client, name).version == "3", "an undo does not count as a promotion to undo"
    assert [entry.undoes for entry in history(client, name)] == [None, None, None, 3, 2, 1, None, None, 8]


def test_an_alias_moved_by_hand_is_respected(client, name):
    promote(client, name, "1", "", None)
    client.set_registered_model_alias(name, "champion", "3")
    with pytest.raises(PromotionConflict, match=r"version 3 is champion now"):
        promote(client, name, "2", "", "1")
    with pytest.raises(
        PromotionError, match=r"moved by hand to version 3 since then; remedy: bert-pipeline promote models:/"
    ):
        undo(client, name)
    promote(client, name, "2", "", "3")
    assert undo(client, name).version == "3"


def test_a_deleted_champion_can_be_undone(client, name):
    promote(client, name, "1", "", None)
    promote(client, name, "2", "", "1")
    client.delete_model_version(name, "2")
    assert find_champion(client, name) is None
    assert undo(client, name).version == "1"
    client.delete_model_version(name, "1")
    with pytest.raises(PromotionError, match=r"no promotion of .* left to undo"):
        undo(client, name)


def test_undo_refuses_a_deleted_previous_champion(client, name):
    promote(client, name, "1", "", None)
    promote(client, name, "2", "", "1")
    client.delete_model_version(name, "1")
    with pytest.raises(PromotionError, match=r"has no version 1, or it was deleted; remedy: one of 2, 3"):
        undo(client, name)
    assert find_champion(client, name) == "2"


def test_a_version_deleted_while_it_becomes_champion_blocks_nothing(client, name, monkeypatch, caplog):
    promote(client, name, "1", "", None)
    original = client.set_registered_model_alias

    def deleted_first(*arguments):
        client.delete_model_version(name, "2")
        return original(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", deleted_first)
    promote(client, name, "2", "", "1")
    assert "version 2" in caplog.text and "was deleted while it became champion" in caplog.text
    monkeypatch.setattr(client, "set_registered_model_alias", original)
    assert find_champion(client, name) == "1"
    assert promote(client, name, "3", "", "1").version == "3"


@pytest.mark.parametrize("version", ["7", "best", "-1"])
def test_an_unknown_version_is_refused(client, name, version):
    with pytest.raises(PromotionError, match=r"has no version .* remedy: one of 1, 2, 3"):
        promote(client, name, version, "", None)
    assert history(client, name) == []


def test_a_version_that_is_not_ready_is_refused(client, name, registry_file):
    with sqlite3.connect(registry_file) as connection:
        connection.execute(
            "update model_versions set status = 'PENDING_REGISTRATION' where name = ? and version = 2", (name,)
        )
    with pytest.raises(PromotionError, match=r"is PENDING_REGISTRATION, not READY; remedy"):
        promote(client, name, "2", "", None)


def test_an_unknown_model_is_refused(client):
    with pytest.raises(PromotionError, match="no registered model bert-none; remedy"):
        promote(client, "bert-none", "1", "", None)
