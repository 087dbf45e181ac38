import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from bert_pipeline.evaluation.tasks.task import task_files
from bert_pipeline.experiments import find_study
from bert_pipeline.stages import EVALUATION, STAGES
from bert_pipeline.study import SEPARATOR
from orchestration.assets import recipes
from orchestration.checks import WARNINGS, asset_key, checks_of
from orchestration.definitions import defs

ROOT = Path(__file__).parents[2]
TASKS = {EVALUATION + name for name in task_files()}
GRAPH = {kind: set(stage.inputs) for kind, stage in STAGES.items()}
GRAPH |= {kind: {"pretrained_checkpoint"} for kind in TASKS}
GRAPH["evaluations"] |= TASKS
GRAPH["registered_model"] = {"pretrained_checkpoint", "evaluations"}
GRAPH["champion"] = {"registered_model"}
GRAPH["study"] = {"evaluations"}


@pytest.fixture(scope="module")
def graph():
    return defs().resolve_asset_graph()


def test_the_graph_is_the_chain_of_stages(graph):
    edges = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert edges == GRAPH


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_every_asset_is_described(graph, name):
    asset = graph.get(asset_key(name))
    assert asset.description and len(asset.description) > 30
    assert asset.owners and asset.kinds and asset.code_version
    assert asset.group_name != "default"
    partitions = {"start", "compare"} if name == "study" else {"demo", "small", "tiny", "start--plain--seed1"}
    assert partitions <= set(asset.partitions_def.get_partition_keys())


def test_the_recipes_of_studies_come_last_and_each_study_is_a_range():
    """A range of partitions is how a terminal starts the backfill of a study."""
    keys = recipes.get_partition_keys()
    of_studies = [SEPARATOR in name for name in keys]
    assert of_studies == sorted(of_studies) and keys[0] < "demo" < keys[keys.index("demo") + 1]
    start = keys[keys.index("start--both--seed1") : keys.index("start--structured--seed3") + 1]
    assert sorted(start) == sorted(find_study("start").recipe_names)


def test_every_gate_is_in_the_graph_and_blocks_unless_it_is_a_warning(graph):
    gates = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    assert gates == {(kind, check.__name__) for kind in GRAPH for check in checks_of(kind)}
    assert all(graph.get(key).description for key in graph.asset_check_keys)
    not_blocking = {key.name for key in graph.asset_check_keys if not graph.get(key).blocking}
    assert not_blocking == {check.__name__ for check in WARNINGS}


def test_every_job_schedule_and_sensor_is_described():
    loaded = defs()
    named = [*loaded.jobs, *loaded.schedules, *loaded.sensors]
    assert len(named) == 10 and all(each.description and len(each.description) > 30 for each in named)


def test_nothing_is_switched_on_by_default():
    loaded = defs()
    assert {schedule.default_status for schedule in loaded.schedules} == {dg.DefaultScheduleStatus.STOPPED}
    on = {sensor.name for sensor in loaded.sensors if sensor.default_status == dg.DefaultSensorStatus.RUNNING}
    assert on == {"mlflow_is_told"}, "which starts no run"


def test_loading_the_graph_imports_neither_torch_nor_mlflow():
    """The web server and the daemon load it repeatedly: it must stay light."""
    code = (
        "import sys; from orchestration.definitions import defs; defs(); "
        "sys.exit(', '.join({'torch', 'transformers', 'mlflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # the README has the command, and its test runs it
def test_dg_check_defs(tmp_path):
    dg_command = Path(sys.executable).with_name("dg")
    environment = os.environ | {
        "BERT_PIPELINE_HOME": str(tmp_path),
        "VIRTUAL_ENV": str(Path(sys.executable).parents[1]),
    }
    done = subprocess.run([dg_command, "check", "defs"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_instance_file_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text((ROOT / "infra/dagster/dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
