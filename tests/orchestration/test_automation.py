"""What follows new content by itself: what is cheap, of one recipe, behind open gates, and nothing else."""

import itertools

import dagster as dg
import pytest

from orchestration.automation import new_content
from orchestration.checks import checks_of
from orchestration.definitions import defs

DATA = ("raw_corpus", "contamination", "tokenizer", "nsp_dataset", "masked_dataset")


class Watched:
    """The graph as the daemon evaluates it, and a history that is told to it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor, self.defs = instance, None, defs()
        self.versions = itertools.count()

    def look(self) -> set[tuple[str, str]]:
        """One evaluation: what it asks for, as (asset, recipe)."""
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, asset_selection=new_content.asset_selection, cursor=self.cursor
        )
        self.cursor = result.cursor
        found = {
            (key.to_user_string(), recipe)
            for key in self.defs.resolve_asset_graph().get_all_asset_keys()
            for recipe in result.get_requested_partitions(key)
        }
        for kind, recipe in found:  # the daemon's runs end well
            self.made(kind, recipe)
        return found

    def made(self, kind: str, recipe: str, version: str | None = None, passed: bool = True) -> None:
        tags = {"dagster/data_version": version or f"of {next(self.versions)}"}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(kind, partition=recipe, tags=tags))
        run_id = dg.DagsterRun().run_id  # of each run a check has one evaluation
        for check in checks_of(kind):
            told = dg.AssetCheckEvaluation(dg.AssetKey(kind), check.__name__, passed, blocking=True, partition=recipe)
            evaluated = dg.DagsterEvent(dg.DagsterEventType.ASSET_CHECK_EVALUATION.value, "", event_specific_data=told)
            self.instance.report_dagster_event(evaluated, run_id)


@pytest.fixture
def watched():
    """Two recipes whose data stands."""
    with dg.instance_for_test() as instance:
        watched = Watched(instance)
        for recipe in ("tiny", "notes"):
            for kind in DATA:
                watched.made(kind, recipe)
        assert watched.look() == set(), "switched on, it takes what stands as it is"
        yield watched


def test_new_text_is_followed_by_what_is_cheap(watched):
    watched.made("raw_corpus", "tiny")
    assert watched.look() == {("contamination", "tiny"), ("nsp_dataset", "tiny")}
    assert watched.look() == {("masked_dataset", "tiny")}
    assert watched.look() == set(), "and by no training"


def test_text_that_is_what_it_was_is_followed_by_nothing(watched):
    watched.made("raw_corpus", "tiny", "one")
    watched.look(), watched.look()
    watched.made("raw_corpus", "tiny", "one")
    assert watched.look() == set()


def test_a_new_vocabulary_is_followed_by_pairs_and_masks_in_one_run(watched):
    """Masks of a new vocabulary over pairs of the old one would be refused."""
    watched.made("tokenizer", "tiny")
    assert watched.look() == {("nsp_dataset", "tiny"), ("masked_dataset", "tiny")}


def test_a_closed_gate_holds_back_later_runs_until_it_opens(watched):
    """Of its own recipe: what another recipe's gates say changes nothing."""
    watched.made("raw_corpus", "tiny", "broken", passed=False)
    assert watched.look() == set()
    watched.made("raw_corpus", "notes")
    assert watched.look() == {("contamination", "notes"), ("nsp_dataset", "notes")}
    assert watched.look() == {("masked_dataset", "notes")}
    watched.made("raw_corpus", "tiny", "mended")
    assert watched.look() == {("contamination", "tiny"), ("nsp_dataset", "tiny")}


def test_what_is_dear_has_no_condition():
    graph = defs().resolve_asset_graph()
    followed = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).automation_condition}
    assert followed == {"contamination", "nsp_dataset", "masked_dataset"}


def test_corpus_and_champion_say_when_they_are_old():
    graph = defs().resolve_asset_graph()
    dated = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy}
    assert dated == {"raw_corpus", "champion"}
