"""Automatic rebuilds: only cheap assets, only of the changed recipe, only while the gates pass."""

import itertools

import dagster as dg
import pytest

from orchestration.assets import recipes
from orchestration.automation.schedules import new_content
from orchestration.checks import check_specs, checks_of
from orchestration.definitions import defs

DATA = ("raw_corpus", "contamination", "tokenizer", "nsp_dataset", "masked_dataset")


class Watched:
    """Evaluates the graph like the daemon; runs of stub assets make up its history."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor, self.defs = instance, None, defs()
        self.versions = itertools.count()

    def tick(self) -> set[tuple[str, str]]:
        """Evaluate once, run what is requested, and return it as (asset, recipe)."""
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
        """Run these assets, with the given or a new data version, and evaluate their gates."""

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
    """Two recipes with existing data assets."""
    with dg.instance_for_test() as instance:
        watched = Watched(instance)
        for recipe in ("tiny", "notes"):
            watched.run(recipe, *DATA)
        assert watched.tick() == set(), "existing assets are not rebuilt at first"
        yield watched


@pytest.fixture
def watched(switched_on):
    """Without pending requests of an earlier test."""
    while switched_on.tick():
        pass
    return switched_on


def test_new_text_rebuilds_the_cheap_assets(watched):
    watched.run("tiny", "raw_corpus")
    assert watched.tick() == {("contamination", "tiny"), ("nsp_dataset", "tiny")}
    assert watched.tick() == {("masked_dataset", "tiny")}
    assert watched.tick() == set(), "no training"


def test_unchanged_text_rebuilds_nothing(watched):
    watched.run("tiny", "raw_corpus", version="one")
    watched.tick(), watched.tick()
    watched.run("tiny", "raw_corpus", version="one")
    assert watched.tick() == set()


def test_a_new_vocabulary_rebuilds_pairs_and_masks_in_one_run(watched):
    """Masks of a new vocabulary over pairs of the old one would be refused."""
    watched.run("tiny", "tokenizer")
    assert watched.tick() == {("nsp_dataset", "tiny"), ("masked_dataset", "tiny")}


def test_a_failed_gate_blocks_later_runs_until_it_passes(watched):
    """Gates of another recipe have no effect."""
    watched.run("tiny", "raw_corpus", version="broken", passed=False)
    assert watched.tick() == set()
    watched.run("notes", "raw_corpus")
    assert watched.tick() == {("contamination", "notes"), ("nsp_dataset", "notes")}
    assert watched.tick() == {("masked_dataset", "notes")}
    watched.run("tiny", "raw_corpus", version="mended")
    assert watched.tick() == {("contamination", "tiny"), ("nsp_dataset", "tiny")}


def test_expensive_assets_have_no_condition():
    graph = defs().resolve_asset_graph()
    automatic = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).automation_condition}
    assert automatic == {"contamination", "nsp_dataset", "masked_dataset"}


def test_corpus_and_champion_have_a_freshness_policy():
    graph = defs().resolve_asset_graph()
    dated = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy}
    assert dated == {"raw_corpus", "champion"}
