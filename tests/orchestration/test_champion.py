"""The rule that decides whether a challenger replaces the champion."""

import shutil
import sqlite3

import pytest

from bert_pipeline.evaluation.scoring.significance import Comparison
from orchestration.registry import champion
from orchestration.registry.champion import challenge, judge
from orchestration.registry.ledger import find_champion, history
from orchestration.registry.promotion import promote, undo

CASES = {
    "better on one, as good on the other": ({"GAD": 210, "BioASQ": 180}, True, "better on GAD (+"),
    "better on both": ({"GAD": 210, "BioASQ": 230}, True, "worse on none"),
    "as good": ({"GAD": 181, "BioASQ": 180}, False, "better on none, worse on none"),
    "worse on one": ({"GAD": 225, "BioASQ": 140}, False, "worse on BioASQ (-"),
    "one task is missing": ({"GAD": 225}, False, "was evaluated on BioASQ, the challenger was not; remedy: "),
    "a task more": ({"GAD": 225, "BioASQ": 180, "ChemProt": 10}, True, "on 2 task(s): significantly better on GAD"),
    "other settings": (
        {"GAD": {"right": 225, "epochs": 3}, "BioASQ": 180},
        False,
        "GAD: evaluated under other conditions (num_epochs)",
    ),
    "other data": ({"GAD": {"right": 225, "data": "e"}, "BioASQ": 180}, False, "other conditions (input task)"),
    "fewer seeds": ({"GAD": {"right": 225, "seeds": (2,)}, "BioASQ": 180}, True, "better on GAD"),
    "other seeds": ({"GAD": {"right": 225, "seeds": (3, 4)}, "BioASQ": 180}, False, "GAD: no seed in common"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule(client, name, store, evaluate, case):
    challenger, better, reason = CASES[case]
    evaluate("1", GAD=180, BioASQ=180)
    evaluate("2", **challenger)
    assert challenge(client, store, name, "1").reason == "there was no champion"
    verdict = challenge(client, store, name, "2")
    assert verdict.better == better and reason in verdict.reason, verdict.reason
    assert find_champion(client, name) == ("2" if better else "1")
    assert client.get_model_version(name, "2").tags["challenge"] == verdict.reason
    assert challenge(client, store, name, "2").better is False, "a second challenge changes nothing"
    assert len(history(client, name)) == 1 + better
    if better:
        assert history(client, name)[-1].how == "rule" and history(client, name)[-1].comparison["GAD"]["p_value"] < 0.05


def test_chance_among_many_tasks_is_corrected():
    """One of 13 tasks with p = 0.03 is expected by chance; a single task, or one with p = 0.001, counts."""
    lucky, plain = Comparison(0.01, 0.001, 0.02, 0.03), Comparison(0.0, -0.01, 0.01, 0.6)
    others = {f"task{number}": plain for number in range(12)}
    assert champion._better({"GAD": lucky}) == ["GAD"]
    assert champion._better({"GAD": lucky, **others}) == []
    assert champion._better({"GAD": Comparison(0.01, 0.001, 0.02, 0.001), **others}) == ["GAD"]
    assert champion._better({"GAD": Comparison(0.01, -0.001, 0.02, 0.001)}) == [], "the interval counts, too"
    two = {"GAD": Comparison(0.01, 0.001, 0.02, 0.01), "BioASQ": Comparison(0.01, 0.001, 0.02, 0.04)}
    assert champion._better(two) == ["GAD", "BioASQ"], "Holm's second step, which Bonferroni lacks"


def test_missing_predictions_are_named(client, name, store, evaluate):
    evaluate("1", GAD=180)
    evaluate("2", GAD=230)
    challenge(client, store, name, "1")
    gone = store / "evaluation" / "GAD" / client.get_model_version(name, "1").tags["evaluation/GAD"]
    (gone / "predictions" / "pretrained-seed2-test.tsv").unlink()
    verdict = judge(client, store, name, "2")
    assert not verdict.better and "pretrained-seed2-test.tsv" in verdict.reason and "remedy" in verdict.reason
    shutil.rmtree(gone)
    verdict = judge(client, store, name, "2")
    assert not verdict.better and f"GAD: {gone} is no artifact" in verdict.reason


def test_the_rule_does_not_promote_an_undone_version_again(client, name, store, evaluate):
    evaluate("1", GAD=180)
    evaluate("2", GAD=230)
    challenge(client, store, name, "1")
    challenge(client, store, name, "2")
    undo(client, name)
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and "its promotion 2 was undone; remedy: bert-pipeline promote" in verdict.reason
    undo(client, name)
    assert challenge(client, store, name, "3").better, "another version may become the first champion"


def test_the_rule_does_not_replace_a_deleted_champion(client, name, store):
    challenge(client, store, name, "1")
    client.delete_model_version(name, "1")
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and "version 1, was deleted or its alias removed by hand; remedy" in verdict.reason
    assert find_champion(client, name) is None


def test_an_alias_that_points_to_a_deleted_version(client, name, store, registry_file):
    """MLflow leaves such an alias if a version is deleted while its alias is set."""
    with sqlite3.connect(registry_file) as connection:
        connection.execute(
            "insert into registered_model_aliases (workspace, name, alias, version) values (?, ?, ?, ?)",
            ("default", name, "champion", 9),
        )
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and "alias points to version 9, which is deleted; remedy" in verdict.reason
    assert champion.current_champion(client, name) is None
    assert promote(client, name, "2", "by hand", "9").version == "2"


def test_an_overtaken_challenger_is_compared_with_the_new_champion(client, name, store, evaluate, monkeypatch):
    """While it was compared with version 1, a better version became champion."""
    for version, right in (("1", 150), ("2", 190), ("3", 235)):
        evaluate(version, GAD=right)
    challenge(client, store, name, "1")
    original = champion.promote

    def overtaken(*arguments, **options):
        monkeypatch.setattr(champion, "promote", original)
        original(client, name, "3", "was faster", "1")
        return original(*arguments, **options)

    monkeypatch.setattr(champion, "promote", overtaken)
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and verdict.champion == "3" and "worse on GAD" in verdict.reason
    assert find_champion(client, name) == "3"
