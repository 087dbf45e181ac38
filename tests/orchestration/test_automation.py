"""What follows new content by itself: what is cheap, of one recipe, behind open gates, and nothing else."""

import itertools

import dagster as dg
import pytest

from orchestration.assets import recipes
from orchestration.automation.schedules import new_content
from orchestration.checks import check_specs, checks_of
from orchestration.definitions import defs

DATA = ("raw_corpus", "contamination", "tokenizer", "nsp_dataset", "masked_dataset")


class Watched:
    """The graph as the daemon evaluates it, and runs of assets that stand for the real ones in its history."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor, self.defs = instance, None, defs()
        self.versions = itertools.count()

    def look(self) -> set[tuple[str, str]]:
        """One evaluation: what it asks for, as (asset, recipe). What it asks for is then made."""
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, asset_selection=new_content.asset_selection, cursor=self.cursor
        )
        self.cursor = result.cursor
        found = {
            (kind, recipe) for kind in DATA for recipe in result.get_requested_partitions(dg.AssetKey(kind)) if recipe
        }
        for recipe in {recipe for _, recipe in found}:
            self.run(recipe, *(kind for kind, each in found if each == recipe))
        return found

    def run(self, recipe: str, *kinds: str, version: str | None = None, passed: bool = True) -> None:
        """A run that makes these, of one content or a new one, and asks their gates."""

        def stand_in(kind: str) -> dg.AssetsDefinition:
            made = dg.DataVersion(version or f"of {next(self.versions)}")
            gates = [
                dg.AssetCheckResult(asset_key=kind, check_name=check.__name__, passed=passed)
                for check in checks_of(kind)
            ]

            @dg.asset(name=kind, partitions_def=recipes, check_specs=check_specs(kind, recipes))
            def asset() -> dg.MaterializeResult:
                return dg.MaterializeResult(data_version=made, check_results=gates)

            return asset

        assets = [stand_in(kind) for kind in kinds]
        dg.materialize(assets, partition_key=recipe, instance=self.instance, raise_on_error=False)


@pytest.fixture(scope="module")
def switched_on():
    """Two recipes whose data stands."""
    with dg.instance_for_test() as instance:
        watched = Watched(instance)
        for recipe in ("tiny", "notes"):
            watched.run(recipe, *DATA)
        assert watched.look() == set(), "switched on, it takes what stands as it is"
        yield watched


@pytest.fixture
def watched(switched_on):
    """At rest: what an earlier test left to be made is made."""
    while switched_on.look():
        pass
    return switched_on


def test_new_text_is_followed_by_what_is_cheap(watched):
    watched.run("tiny", "raw_corpus")
    assert watched.look() == {("contamination", "tiny"), ("nsp_dataset", "tiny")}
    assert watched.look() == {("masked_dataset", "tiny")}
    assert watched.look() == set(), "and by no training"


def test_text_that_is_what_it_was_is_followed_by_nothing(watched):
    watched.run("tiny", "raw_corpus", version="one")
    watched.look(), watched.look()
    watched.run("tiny", "raw_corpus", version="one")
    assert watched.look() == set()


def test_a_new_vocabulary_is_followed_by_pairs_and_masks_in_one_run(watched):
    """Masks of a new vocabulary over pairs of the old one would be refused."""
    watched.run("tiny", "tokenizer")
    assert watched.look() == {("nsp_dataset", "tiny"), ("masked_dataset", "tiny")}


def test_a_closed_gate_holds_back_later_runs_until_it_opens(watched):
    """Of its own recipe: what another recipe's gates say changes nothing."""
    watched.run("tiny", "raw_corpus", version="broken", passed=False)
    assert watched.look() == set()
    watched.run("notes", "raw_corpus")
    assert watched.look() == {("contamination", "notes"), ("nsp_dataset", "notes")}
    assert watched.look() == {("masked_dataset", "notes")}
    watched.run("tiny", "raw_corpus", version="mended")
    assert watched.look() == {("contamination", "tiny"), ("nsp_dataset", "tiny")}


def test_what_is_dear_has_no_condition():
    graph = defs().resolve_asset_graph()
    followed = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).automation_condition}
    assert followed == {"contamination", "nsp_dataset", "masked_dataset"}


def test_corpus_and_champion_say_when_they_are_old():
    graph = defs().resolve_asset_graph()
    dated = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy}
    assert dated == {"raw_corpus", "champion"}
