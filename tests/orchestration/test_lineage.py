"""The lineage of a version from its records, reports of broken links, and a bit for bit rebuild of a model."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import dagster as dg
import pytest

from bert_pipeline.cli import main
from bert_pipeline.core.files import cached_digest
from bert_pipeline.data.corpus.sources import SourceFile, write_sources
from bert_pipeline.lineage import stage_origin
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.reproduction import rebuild
from bert_pipeline.stages import find_stage, kinds_of
from bert_pipeline.store import artifact
from bert_pipeline.store.shards import Entry, ShardStore
from orchestration.assets import ASSETS
from orchestration.commands import lineage as lineage_commands
from orchestration.lineage.chain import describe, directory_of, reproduce
from orchestration.registry.logged_models import SEAL
from orchestration.registry.versions import RECIPE_DESCRIPTION
from orchestration.workshop import resources

RUN = {"dagster_run": "a-run"}
SOURCES = [SourceFile(f"{day:02}.xml.gz", 1000, f"{day:064x}", f"2026-01-{day:02}") for day in range(1, 13)]
TINY = Path(__file__).parent / "recipes" / "tiny.toml"
KINDS = set(kinds_of(load_recipe(TINY)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store and a registry like after a run of recipes/tiny.toml, but with nearly empty artifacts."""
    home, recipe = tmp_path_factory.mktemp("home"), load_recipe(TINY)
    made: dict[str, artifact.Artifact] = {}
    for kind in kinds_of(recipe):
        origin = stage_origin(kind, recipe, made)
        path = home / "artifacts" / kind / artifact.fingerprint(origin)
        made[kind] = artifact.make(path, origin, lambda out, kind=kind: content(kind, out), asked_by=RUN)
    register(home, made)
    return home


def content(kind: str, out: Path) -> dict:
    """Write the files of an artifact that its lineage reads; return its facts."""
    if find_stage(kind).in_shards:
        (out / "train").mkdir()
        (out / "train" / "shard-0").write_text("text")
        store = ShardStore(kind, out)
        store.add(Entry("train/shard-0", "0", {"train/shard-0": {"bytes": 4, "sha256": "0"}}))
        store.finish()
    if kind == "raw_corpus":
        write_sources(out / "sources.jsonl", SOURCES)
        digests = {each.name: each.sha256 for each in SOURCES}
        return {"files": 12, "cut_off": "2026-01-12", "sources_fingerprint": artifact.fingerprint(digests)}
    if kind == "evaluation/sample-chem":
        [task] = load_recipe(TINY).evaluation.tasks
        (out / "scores.json").write_text(json.dumps({"settings": task.model_dump(mode="json")}))
        score = {"score_mean": 0.5, "score_sd": None}
        return {"metric": "f1", "pretrained": score, "random_init": score | {"score_mean": 0.25}, "seeds": [1]}
    for name in {"tokenizer": ["tokenizer.json"], "pretrained_checkpoint": ["model.safetensors"]}.get(kind, []):
        (out / name).write_text(kind)
    return {"num_steps": 20, "train_tokens_seen": 12345} if kind == "pretrained_checkpoint" else {}


def register(home: Path, made: dict[str, artifact.Artifact]) -> None:
    mlflow = resources(home)["workshop"].mlflow
    client, experiment = mlflow.client(), mlflow.experiment_id()
    runs = {}
    for kind in ("pretrained_checkpoint", "evaluation/sample-chem", "evaluations"):
        runs[kind] = client.create_run(experiment, tags={"fingerprint": made[kind].fingerprint}).info.run_id
        client.set_terminated(runs[kind])
    model = client.create_logged_model(experiment, "bert-tiny", runs["pretrained_checkpoint"])
    (home / "files").mkdir()
    (home / "files" / "MLmodel").write_text("flavors: {}")
    seal = f"{cached_digest(home / 'files' / 'MLmodel')}  MLmodel\n"
    (home / "files" / SEAL).write_text(seal)
    client.log_model_artifacts(model.model_id, str(home / "files"))
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model("bert-tiny", {RECIPE_DESCRIPTION: load_recipe(TINY).description})
    tags = {kind: each.fingerprint for kind, each in made.items()} | {"recipe": "tiny", "dagster.url": "http://run"}
    tags[SEAL] = hashlib.sha256(seal.encode()).hexdigest()
    source = f"models:/{model.model_id}"
    with pytest.MonkeyPatch.context() as patch:  # MLflow's SQL registry looks up the model at the global tracking URI
        patch.setenv("MLFLOW_TRACKING_URI", mlflow.tracking_uri)
        client.create_model_version("bert-tiny", source, runs["pretrained_checkpoint"], tags=tags)
    for alias in ("candidate", "champion"):
        client.set_registered_model_alias("bert-tiny", alias, "1")


@pytest.fixture
def copy(home, tmp_path, monkeypatch):
    """A copy of the home to damage."""
    shutil.copytree(home / "artifacts", tmp_path / "artifacts")
    shutil.copy(home / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def run(capsys, monkeypatch, home, *arguments):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(home))
    monkeypatch.setattr("bert_pipeline.cli.app.entry_points", lambda group: [Plugin])
    code = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class Plugin:
    """Stands in for the entry point of the installed package."""

    @staticmethod
    def load():
        return lineage_commands.add


def lineage_json(capsys, monkeypatch, home, model="models:/bert-tiny@champion"):
    code, out, err = run(capsys, monkeypatch, home, "lineage", model, "--json")
    return code, json.loads(out), err


def test_the_chain_matches_the_records(home, capsys, monkeypatch):
    code, chain, err = lineage_json(capsys, monkeypatch, home)
    assert code == 0, err
    assert (chain["model"], chain["version"], set(chain["aliases"])) == ("bert-tiny", 1, {"champion", "candidate"})
    links = {each["kind"]: each for each in chain["artifacts"]}
    assert links.keys() == KINDS and not chain["faults"]
    for kind, each in links.items():
        made = artifact.load(home / "artifacts" / kind / each["fingerprint"], kind)
        assert each["made_from"] == made.record["origin"]["inputs"]
        assert each["made"]["commit"] == made.record["made"]["commit"] == chain["commit"]
        assert each["dagster_run"] == "http://127.0.0.1:3000/runs/a-run"
        assert bool(each["mlflow_run"]) == (kind == "pretrained_checkpoint" or kind.startswith("evaluation"))
    assert links["pretrained_checkpoint"]["facts"]["num_steps"] == 20
    assert chain["recipe"]["name"] == "tiny" and len(chain["recipe"]["fingerprint"]) == 16
    assert next(iter(links)) == "evaluations" and list(links)[-1] == "raw_corpus", "the newest first"


def test_the_tree_names_every_link(home, capsys, monkeypatch):
    code, text, err = run(capsys, monkeypatch, home, "lineage", "models:/bert-tiny/1")
    assert code == 0 and "Downloading artifacts" not in err, "MLflow's progress bar is off"
    assert text.startswith("models:/bert-tiny/1 (")
    for words in (
        *KINDS,
        "recipe tiny ",
        "git commit ",
        "num_steps 20",
        "train_tokens_seen 12,345",
        "sha256",
        "metric f1",
        "50.00",
    ):
        assert words in text
    assert len([line for line in text.splitlines() if line.startswith(("├", "└"))]) == len(KINDS) + 3
    assert "12 source file(s)" in text and "and 2 more, in sources.jsonl" in text and "released 2026-01-01" in text


def artifact_path(copy, kind) -> Path:
    [path] = [each for each in (copy / "artifacts" / kind).iterdir() if each.is_dir()]
    return path


def test_missing_artifacts_are_reported_and_the_rest_is_shown(copy, capsys, monkeypatch):
    shutil.rmtree(artifact_path(copy, "nsp_dataset"))
    shutil.rmtree(artifact_path(copy, "evaluation/sample-chem"))
    code, chain, err = lineage_json(capsys, monkeypatch, copy)
    assert code == 1 and "3 link(s) of the chain are broken" in err
    hints = ("removed by hand, or built on another machine", "dg launch", "bert-pipeline pull nsp_dataset ")
    for words in ("nsp_dataset", "evaluation/sample-chem", *hints):
        assert words in "\n".join(chain["faults"])
    _, text, _ = run(capsys, monkeypatch, copy, "lineage", "models:/bert-tiny/1")
    assert "└─ 3 BROKEN LINK(S)" in text and all(fault in text for fault in chain["faults"])
    assert {each["kind"] for each in chain["artifacts"]} == KINDS - {"nsp_dataset", "evaluation/sample-chem"}
    assert chain["recipe"]["fingerprint"] is None and "recipe tiny: nsp_dataset" in chain["faults"][-1]


def cut_short(path: Path) -> None:
    shard = next(path.rglob("shard-*"))
    os.truncate(shard, shard.stat().st_size - 1)


def of_another_corpus(path: Path) -> None:
    """A valid record that names another input than the version does."""
    record = json.loads((path / "record.json").read_text())
    record["origin"]["inputs"]["raw_corpus"] = "0123456789abcdef"
    record["fingerprint"] = artifact.fingerprint(record["origin"])
    record.pop("check")
    (path / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("kind", "harm", "expected"),
    [
        ("masked_dataset", cut_short, "bytes instead of"),
        ("tokenizer", of_another_corpus, "contains another tokenizer"),
        ("raw_corpus", lambda path: (path / "sources.jsonl").unlink(), "sources.jsonl is missing or damaged"),
        ("raw_corpus", lambda path: (path / "sources.jsonl").write_text(
            '{"name": "a", "bytes": 1, "sha256": "b", "released": ""}\n'), "lists other files"),
        ("pretrained_checkpoint", lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        ("pretrained_checkpoint", lambda path: (path / "record.json").write_text("{"), "is damaged"),
    ],
)  # fmt: skip
def test_damage_is_reported(copy, capsys, monkeypatch, kind, harm, expected):
    path = artifact_path(copy, kind)
    harm(path)
    code, chain, err = lineage_json(capsys, monkeypatch, copy)
    assert code == 1 and "broken" in err
    assert all(words in chain["faults"][0] for words in (expected, str(path), "remedy: "))


def test_tags_that_contradict_a_record_are_reported(copy, capsys, monkeypatch):
    client = client_of(copy)
    other = "fedcba9876543210"
    shutil.copytree(artifact_path(copy, "tokenizer"), copy / "artifacts" / "tokenizer" / other)
    client.set_model_version_tag("bert-tiny", "1", "tokenizer", other)
    code, chain, _ = lineage_json(capsys, monkeypatch, copy)
    assert code == 1
    assert any("contains another tokenizer" in fault for fault in chain["faults"])
    assert any("but the version's tags name(s) tokenizer fedcba9876543210" in fault for fault in chain["faults"])


def client_of(home):
    return resources(home)["workshop"].mlflow.client()


def test_deletions_in_mlflow_are_reported(copy, capsys, monkeypatch):
    client = client_of(copy)
    registered = client.get_model_version("bert-tiny", "1")
    client.delete_run(registered.run_id)
    code, chain, _ = lineage_json(capsys, monkeypatch, copy)
    assert code == 1
    assert any(f"mlflow runs restore --run-id {registered.run_id}" in fault for fault in chain["faults"])
    client.delete_logged_model(registered.source.removeprefix("models:/"))
    _, chain, _ = lineage_json(capsys, monkeypatch, copy)
    assert any(f"{registered.source} cannot be read" in fault for fault in chain["faults"])
    client.delete_model_version("bert-tiny", "1")
    code, _, err = run(capsys, monkeypatch, copy, "lineage", "models:/bert-tiny@champion")
    assert code == 1 and "models:/bert-tiny@champion" in err and "remedy" in err and "Traceback" not in err


@pytest.mark.parametrize("model", ["bert-tiny", "models:/bert-tiny", "models:/bert-tiny/x", "models:/bert-tiny@"])
def test_an_uri_without_a_version_is_refused(home, capsys, monkeypatch, model):
    code, _, err = run(capsys, monkeypatch, home, "lineage", model)
    assert code == 1 and "names no version; remedy: models:/NAME@champion" in err


@pytest.fixture(scope="module")
def written(home, tmp_path_factory):
    return write(home, tmp_path_factory.mktemp("reproduction") / "tiny-1")


def write(home: Path, out: Path) -> Path:
    reproduce("models:/bert-tiny/1", resources(home)["workshop"], out)
    return out


def test_reproduce_writes_the_recorded_recipe(home, written, capsys, monkeypatch):
    assert load_recipe(written / "tiny.toml") == load_recipe(TINY)
    pins = (written / "constraints.txt").read_text().splitlines()
    assert f"torch=={version('torch')}" in pins and not any(pin.startswith("bert-pipeline") for pin in pins)
    readme = (written / "README.md").read_text()
    made = artifact.load(artifact_path(home, "pretrained_checkpoint")).record["made"]
    commit, cores = made["commit"], len(os.sched_getaffinity(0))
    assert f"git checkout {commit.removesuffix('-dirty')}\n" in readme
    assert f"taskset -c {'0' if cores == 1 else f'0-{cores - 1}'} " in readme
    assert ("not committed" in readme) == commit.endswith("-dirty")
    assert len((written / "sources.jsonl").read_text().splitlines()) == 12
    code, _, err = run(capsys, monkeypatch, home, "reproduce", "models:/bert-tiny/1", "--out", written)
    assert code == 1 and "is not empty; remedy" in err


def test_a_difference_is_reported_before_anything_is_built(written, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(written, changed)
    (changed / "sources.jsonl").unlink()  # the sample is generated
    recipe = (changed / "tiny.toml").read_text()
    (changed / "tiny.toml").write_text(recipe.replace("sample_documents = 200", "sample_documents = 300"))
    with pytest.raises(ValueError, match=r"section\.sample_documents was 200 and is 300"):
        rebuild(changed, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def real_home(tmp_path_factory):
    """A home in which the graph of recipes/tiny.toml ran on one core."""
    home, cores = tmp_path_factory.mktemp("real"), os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("BERT_PIPELINE_WORKERS", "1")
        patch.setenv("BERT_PIPELINE_DAGSTER_URL", "https://dagster.example/")
        patch.setenv("BERT_PIPELINE_MLFLOW_URL", "https://mlflow.example")
        os.sched_setaffinity(0, {min(cores)})
        done = dg.materialize(ASSETS, partition_key="tiny", instance=instance, resources=resources(home))
        [registered] = done.asset_materializations_for_node("registered_model")
        shown = {name: value.value for name, value in registered.metadata.items()}
        (home / "seen.json").write_text(json.dumps({"run": done.run_id, "shown": shown}))
        patch.delenv("MLFLOW_TRACKING_URI")  # MLflow sets it when a model is registered
        yield home
        os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_links_between_mlflow_and_dagster_use_the_public_urls(real_home):
    seen = json.loads((real_home / "seen.json").read_text())
    shown = seen["shown"]
    client = resources(real_home)["workshop"].mlflow.client()
    registered = client.get_model_version("bert-tiny", "1")
    assert shown["mlflow_model"] == "https://mlflow.example/#/models/bert-tiny/versions/1"
    assert shown["mlflow_run"].startswith("https://mlflow.example/#/") and registered.run_id in shown["mlflow_run"]
    page = f"https://dagster.example/runs/{seen['run']}"
    model = client.get_logged_model(registered.source.removeprefix("models:/"))
    run = client.get_run(registered.run_id)
    assert registered.tags["dagster.url"] == model.tags["dagster.url"] == run.data.tags["dagster.url"] == page
    asset = "https://dagster.example/assets/pretrained_checkpoint?"
    assert run.data.tags["dagster.asset_url"].startswith(asset)
    assert page in run.data.tags["mlflow.note.content"] and asset in run.data.tags["mlflow.note.content"]
    chain = describe("models:/bert-tiny/1", resources(real_home)["workshop"])
    assert not chain["faults"] and {each["kind"] for each in chain["artifacts"]} == KINDS
    assert {each["dagster_run"] for each in chain["artifacts"]} == {page}


@pytest.mark.slow
def test_the_champion_is_rebuilt_bit_for_bit(real_home, tmp_path):
    """In a separate process and another home, without Dagster and MLflow."""
    written = write(real_home, tmp_path / "reproduction")
    assert load_recipe(written / "tiny.toml") == load_recipe(TINY)
    assert not (written / "sources.jsonl").exists(), "the sample is generated"
    environment = os.environ | {"BERT_PIPELINE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bert_pipeline.cli", "rebuild", str(written)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("bit for bit what it was\n")
    fingerprints = {}
    for root in (real_home, tmp_path):
        fingerprints[root] = {kind: artifact_path(root, kind).name for kind in KINDS}
    assert fingerprints[real_home] == fingerprints[tmp_path]
    weights = [artifact_path(root, "pretrained_checkpoint") / "model.safetensors" for root in (real_home, tmp_path)]
    assert cached_digest(weights[0]) == cached_digest(weights[1])


def test_evaluate_finds_the_checkpoint_of_a_registered_model(home, capsys, monkeypatch, tmp_path):
    """By version and by alias; what is missing is named with a remedy."""
    workshop = resources(home)["workshop"]
    expected = artifact_path(home, "pretrained_checkpoint")
    for model in ("models:/bert-tiny/1", "models:/bert-tiny@candidate"):
        assert directory_of(model, "pretrained_checkpoint", workshop) == expected
    asked = ("evaluate", "--task", "sample-chem", "--out", tmp_path / "out", "--model")
    code, _, err = run(capsys, monkeypatch, home, *asked, "models:/bert-tiny/1")
    assert code == 1 and f"{expected} has no config.json" in err, "these artifacts are nearly empty"
    code, _, err = run(capsys, monkeypatch, home, *asked, "models:/bert-tiny/7")
    assert code == 1 and "models:/bert-tiny/7: MLflow at " in err and "remedy" in err
