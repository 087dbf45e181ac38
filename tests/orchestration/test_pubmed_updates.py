"""A run downloads PubMed's new files into the mirror that a recipe names, and the sensor notices them."""

import dagster as dg
import pytest
from data.sources.test_pubmed_mirror import HASTY, name, publish
from misbehaving_server import misbehaving_server

from bert_pipeline.data.sources.pubmed.mirror import download_pubmed
from orchestration.automation.retraining import corpus_folder
from orchestration.definitions import defs


@pytest.fixture
def site():
    with misbehaving_server() as site:
        publish(site)
        yield site


@pytest.fixture
def mirror(site, tmp_path, monkeypatch):
    """The mirror that recipes/citations.toml names."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "citations.toml").write_text('[corpus]\nsource = "pubmed"\npath = "of-nlm"\n')
    (recipes / "broken.toml").write_text("[corpus")
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", str(recipes))
    monkeypatch.setenv("BERT_PIPELINE_DATA", str(tmp_path))
    return tmp_path / "of-nlm"


def update(instance) -> dg.ExecuteInProcessResult:
    return defs().resolve_job_def("pubmed_updates").execute_in_process(instance=instance, raise_on_error=False)


def logged(instance, run_id) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def test_new_files_are_downloaded_from_the_source_of_the_mirror(site, mirror):
    download_pubmed(mirror, site.url("/"), patience=HASTY)
    publish(site, updates=(4, 5, 6, 7))
    with dg.instance_for_test() as instance:
        done = update(instance)
        assert done.success and "2 new files, 7 in total" in logged(instance, done.run_id)
        assert "broken.toml: not a TOML file" in logged(instance, done.run_id)
        assert (mirror / "updatefiles" / name(7)).exists()
        site.requests.clear()
        again = update(instance)
        assert "0 new files, 7 in total" in logged(instance, again.run_id)
        assert site.paths() == ["/baseline/", "/updatefiles/"]


def test_a_mirror_is_first_filled_by_hand(site, mirror):
    with dg.instance_for_test() as instance:
        done = update(instance)
        assert done.success and f"{mirror}" in logged(instance, done.run_id)
        assert "remedy: bert-pipeline download-pubmed --out DIR" in logged(instance, done.run_id)
    assert site.paths() == []


def test_a_failing_server_fails_the_run_and_the_next_run_continues(site, mirror):
    download_pubmed(mirror, site.url("/"), patience=HASTY)
    publish(site, updates=(4, 5, 6, 7))
    answer = site.answers.pop(f"/updatefiles/{name(6)}")
    with dg.instance_for_test() as instance:
        failed = update(instance)
        assert not failed.success
        error = str(failed.failure_data_for_node("update_mirrors").error)
        assert "failed files: 1 (6 verified files in" in error
        assert f"updatefiles/{name(6)}: the server says 404" in error
        site.answers[f"/updatefiles/{name(6)}"] = answer
        assert "1 new files, 7 in total" in logged(instance, update(instance).run_id)


def test_the_sensor_notices_downloaded_files(site, mirror):
    """For a recipe that existed when the graph was loaded."""
    recipe = mirror.parent / "recipes" / "notes.toml"
    recipe.write_text('[corpus]\nsource = "pubmed"\npath = "of-nlm"\n')
    download_pubmed(mirror, site.url("/"), patience=HASTY)
    with dg.instance_for_test() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("raw_corpus", partition="notes"))
        cursor, asked = None, []
        for look in range(4):
            if look == 1:
                publish(site, updates=(4, 5, 6))
                assert update(instance).success
            result = corpus_folder(dg.build_sensor_context(instance, cursor))
            cursor = result.cursor
            asked.append([(request.job_name, request.partition_key) for request in result.run_requests])
        assert asked == [[], [], [("new_text", "notes")], []]
