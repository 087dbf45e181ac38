"""The asset `study`: what it needs, what it shows, and its runs in MLflow."""

import dagster as dg
import pytest
from dagster import AssetKey
from studies.evaluated import build_all

from bert_pipeline.experiments import find_study
from orchestration.assets import ASSETS
from orchestration.automation.retraining import whole_graph
from orchestration.definitions import defs
from orchestration.studies.asset import studies, study, study_job
from orchestration.workshop import resources


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PIPELINE_HOME", str(home))
        yield home


def materialize(home, instance) -> dg.ExecuteInProcessResult:
    """A run of the job on the code location, so that the asset's events are those that Dagster's pages show."""
    job = dg.Definitions(assets=[study], jobs=[study_job], resources=resources(home)).resolve_job_def("study")
    return job.execute_in_process(partition_key="compare", instance=instance, raise_on_error=False)


def test_the_page_appears_when_the_evaluations_exist(home):
    with dg.DagsterInstance.ephemeral() as instance:
        failed = materialize(home, instance)
        assert not failed.success
        told = str(failed.get_step_failure_events()[0].step_failure_data.error)
        assert "4 of 4 recipes are not trained and evaluated yet: compare--usual--seed1, compare--other--seed1" in told
        build_all("compare", home / "artifacts", {"usual": 0.8, "other": 0.95}, luck=0.002)
        done = materialize(home, instance)
        assert done.success
        [made] = done.asset_materializations_for_node("build_page")
        assert made.partition == "compare" and instance.get_materialized_partitions(AssetKey("study")) == {"compare"}
        shown = {name: value.value for name, value in made.metadata.items()}
        assert "This arm is better than the reference." in shown["answer"]
        assert shown["page"].count("](data:image/png;base64,") == 2 and "## What cannot be concluded" in shown["page"]
        assert made.tags["dagster/data_version"] == shown["fingerprint"]

        mlflow = resources(home)["workshop"].mlflow
        runs = {run.info.run_name: run for run in mlflow.client().search_runs([mlflow.experiment_id()])}
        assert set(runs) == {"study compare", "usual", "other"}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        parent = runs["study compare"].info.run_id
        assert shown["mlflow_run_id"] == parent
        assert {runs[arm].data.tags["mlflow.parentRunId"] for arm in ("usual", "other")} == {parent}
        assert runs["other"].data.metrics["sample-chem/to_reference/low"] > 0
        assert runs["other"].data.params["changes"] == "pretrain.adam_beta2 = 0.98"
        assert runs["other"].data.tags["recipe.seed2"] == "compare--other--seed2"
        files = {file.path for file in mlflow.client().list_artifacts(parent)}
        assert files == {"study.html", "study.md", "scores.png", "losses.png"}

        assert materialize(home, instance).success
        assert len(mlflow.client().search_runs([mlflow.experiment_id()])) == 3, "nothing is sent twice"


def test_the_recipes_of_a_study_are_its_partitions_upstream():
    graph = defs().resolve_asset_graph()
    [mapping] = [graph.get_partition_mapping(AssetKey("study"), AssetKey("evaluations"))]
    upstream = mapping.get_upstream_mapped_partitions_result_for_partitions(
        studies.subset_with_partition_keys(["compare"]), studies, graph.get(AssetKey("evaluations")).partitions_def
    )
    assert set(upstream.partitions_subset.get_partition_keys()) == set(find_study("compare").recipe_names)


def test_a_run_of_all_assets_builds_no_study():
    """`dg launch --assets '*'` needs one partition that all selected assets have."""
    graph = defs().resolve_asset_graph()
    stages = {key for asset in ASSETS for key in asset.keys}
    assert whole_graph.selection.resolve(graph) == dg.AssetSelection.from_string("*").resolve(graph) == stages
    assert graph.get_all_asset_keys() - stages == {AssetKey("study")}
    assert len({graph.get(key).partitions_def for key in stages}) == 1
