"""The whole graph for recipes/tiny.toml, with real stages, in its own home."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import dagster as dg
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from bert_pipeline import reproduction
from bert_pipeline.cli import main
from bert_pipeline.recipe_files import load_recipe
from bert_pipeline.stages import kinds_of
from bert_pipeline.store import artifact
from orchestration.assets import ASSETS
from orchestration.checks import WARNINGS
from orchestration.lineage.chain import describe, reproduce
from orchestration.registry import versions
from orchestration.registry.ledger import PromotionError, find_champion
from orchestration.registry.logged_models import changed_files
from orchestration.registry.promotion import promote
from orchestration.report import report
from orchestration.workshop import BUILT, resources

TRACKED = ("pretrained_checkpoint", "evaluation/sample-chem", "evaluations")
"""Assets with an MLflow run."""
TINY = Path(__file__).parent / "recipes" / "tiny.toml"


@pytest.fixture(scope="module")
def home(tmp_path_factory, training_in_a_fork, evaluation_in_this_process):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERT_PIPELINE_WORKERS", "1")
        yield tmp_path_factory.mktemp("home")


def materialize(home, instance, partition="tiny", **options) -> dg.ExecuteInProcessResult:
    return dg.materialize(ASSETS, partition_key=partition, instance=instance, resources=resources(home), **options)


@pytest.fixture(scope="module")
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="module")
def first(home, instance):
    return materialize(home, instance)


@pytest.fixture(scope="module")
def mlflow(home):
    return resources(home)["workshop"].mlflow


def metadata_of(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    return {name: value.value for name, value in materialization_of(result, asset).metadata.items()}


def materialization_of(result: dg.ExecuteInProcessResult, asset: str) -> dg.AssetMaterialization:
    events = (event.materialization for event in result.get_asset_materialization_events())
    [found] = [each for each in events if each.asset_key.to_user_string() == asset]
    return found


def state(home) -> dict[str, int]:
    """The modification time of every file in the store."""
    files = (path for path in (home / "artifacts").rglob("*") if path.suffix != ".lock")
    return {str(path): path.stat().st_mtime_ns for path in files}


def runs_of(mlflow) -> dict[str, str]:
    return {run.info.run_id: run.info.status for run in mlflow.client().search_runs([mlflow.experiment_id()])}


def change_the_recipe(monkeypatch, folder, old: str, new: str) -> None:
    (folder / "tiny.toml").write_text(TINY.read_text().replace(old, new))
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", str(folder))


def test_every_asset_is_built_and_shown(first, home):
    assert first.success
    for kind in ("raw_corpus", "nsp_dataset", "masked_dataset"):
        assert "dagster/column_schema" in metadata_of(first, kind)
    for kind in ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset"):
        assert metadata_of(first, kind)["example"].startswith("```text\n")
    assert metadata_of(first, "nsp_dataset")["len_64/length_histogram"].startswith("![](data:image/png;base64,")
    loss_curve = metadata_of(first, "pretrained_checkpoint")["loss_curve"]
    assert loss_curve.startswith("![](data:image/png;base64,") and len(loss_curve) < 100_000
    assert isinstance(metadata_of(first, "masked_dataset")["len_64/masked_fraction"], float)
    assert "sample-chem" in metadata_of(first, "evaluations")["scores"]
    assert metadata_of(first, "evaluations")["results"].startswith("![](data:image/png;base64,")
    assert 0 <= metadata_of(first, "evaluation/sample-chem")["pretrained/score_mean"] <= 1
    assert metadata_of(first, "contamination")["tasks/sample-chem/test/examples"] > 0
    corpus = metadata_of(first, "raw_corpus")
    assert corpus["data_card"].startswith("# A corpus of ") and "](data:image/png;base64," in corpus["data_card"]
    assert Path(corpus["data_card_page"]).is_file() and "words_per_document_histogram" not in corpus
    assert "Disk: " in corpus["plan"]
    assert corpus["plan/text/train_documents"] == corpus["train_documents"]


def test_every_gate_was_evaluated(first):
    evaluations = first.get_asset_check_evaluations()
    assert len(evaluations) >= 12
    assert all(evaluation.passed for evaluation in evaluations)
    assert {each.check_name for each in evaluations if not each.blocking} == {check.__name__ for check in WARNINGS}
    assert {evaluation.partition for evaluation in evaluations} == {"tiny"}, "gates are per recipe"


def test_data_versions_are_fingerprints(first, home, instance):
    for kind in TRACKED:
        event = materialization_of(first, kind)
        assert event.tags["dagster/data_version"] == metadata_of(first, kind)["fingerprint"]


def test_mlflow_has_one_run_for_each_training(first, mlflow):
    runs = {run.data.tags["dagster.asset"]: run for run in mlflow.client().search_runs([mlflow.experiment_id()])}
    assert sorted(runs) == sorted(TRACKED)
    assert len(runs_of(mlflow)) == len(TRACKED)
    for kind, run in runs.items():
        shown = metadata_of(first, kind)
        assert run.info.status == "FINISHED"
        assert run.data.tags["fingerprint"] == shown["fingerprint"]
        assert run.data.tags["dagster.run_id"] == first.run_id
        assert run.data.tags["dagster.partition"] == "tiny"
        assert shown["mlflow_run_id"] == run.info.run_id and run.info.run_id in shown["mlflow_run"]
        assert run.data.params["pretrain.phases.0.num_steps"] == "20"
        datasets = {used.dataset.name: used.dataset.digest for used in run.inputs.dataset_inputs}
        assert datasets and datasets.items() <= shown["inputs"].items()
    training = runs["pretrained_checkpoint"].info.run_id
    for kind, run in runs.items():
        named = {"pretrained_checkpoint": "tiny pretrained_checkpoint", "evaluations": "evaluations of tiny"}
        assert run.info.run_name == named.get(kind, "sample-chem of tiny")
        assert run.data.tags.get("mlflow.parentRunId") == (None if run.info.run_id == training else training)
        assert f"/runs/{first.run_id})" in run.data.tags["mlflow.note.content"]
        assert not [name for name in run.data.metrics if "contamination" in name], "contamination has its own asset"
    logged = {file.path for file in mlflow.client().list_artifacts(training)}
    assert logged >= {"data_card.html", "DATA_CARD.md", "README.md", "loss_curve.png"}
    history = mlflow.client().get_metric_history(training, "curves/loss")
    assert [point.step for point in history] == [1, 5, 10, 15, 20]


def test_the_model_loads_and_predicts(first, mlflow):
    import mlflow as mlflow_module

    mlflow_module.set_tracking_uri(mlflow.tracking_uri)
    version = mlflow.client().get_model_version_by_alias("bert-tiny", versions.ALIAS)
    assert version.tags["pretrained_checkpoint"] == metadata_of(first, "pretrained_checkpoint")["fingerprint"]
    description = "The smallest graph that goes through every stage, for tests\n\nMade by asset [registered_model]("
    assert version.description.startswith(description)
    assert "## Limits" in version.description and "sample-chem" in version.description
    assert "library_name" not in version.description, "fields for the Hub"
    uri = f"models:/bert-tiny@{versions.ALIAS}"
    assert Path(mlflow_module.artifacts.download_artifacts(uri), "data_card.html").is_file()
    fill_mask = mlflow_module.transformers.load_model(uri)
    service, asked = mlflow_module.pyfunc.load_model(uri), {"top_k": 3, "return_embeddings": True}
    text = "patients were given [MASK] daily"
    best = fill_mask(text, top_k=3)
    [alone] = service.predict([text], params=asked)
    assert [fill["token"] for fill in alone["fills"][0]] == [each["token_str"] for each in best]
    assert [fill["score"] for fill in alone["fills"][0]] == pytest.approx([each["score"] for each in best], rel=1e-4)
    inputs = fill_mask.tokenizer(text, return_tensors="pt")
    words = fill_mask.model.bert(**inputs).last_hidden_state[0, 1:-1]
    assert alone["embedding"] == pytest.approx(words.mean(0).tolist(), abs=1e-5)
    longer, empty, _ = service.predict([f"{text} and [MASK] at night, for many weeks", "", text], params=asked)
    assert len(longer["fills"]) == 2 and empty["fills"] == [] and set(empty["embedding"]) == {0.0}
    beside = service.predict([f"{text} and [MASK] at night, for many weeks", text], params=asked)[1]
    assert beside["embedding"] == pytest.approx(alone["embedding"], abs=1e-5), "padding changes nothing"
    assert list(service.predict([text])[0]) == ["fills"] and len(service.predict([text])[0]["fills"][0]) == 5
    for wrong, told in (({"top_k": 0}, "top_k is 0; remedy: 1 to"), ({"top_k": "many"}, "top_k")):
        with pytest.raises(MlflowException, match=told):
            service.predict([text], params=wrong)
    with pytest.raises(MlflowException, match=r"text 1 has \d+ tokens, the model reads 64; remedy"):
        service.predict([text, "word " * 100])
    model = mlflow.client().get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics}["evaluations/heldout/mlm_loss"] > 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model/model.safetensors", flip),
        ("components/tokenizer/tokenizer.json", flip),
        ("model/adapter_config.json", lambda path: path.write_text("{}")),
    ],
)
def test_a_registered_model_that_was_changed_is_refused(first, mlflow, tmp_path, name, harm):
    import mlflow as mlflow_module

    mlflow_module.set_tracking_uri(mlflow.tracking_uri)
    kept = mlflow_module.artifacts.download_artifacts(f"models:/bert-tiny@{versions.ALIAS}", dst_path=str(tmp_path))
    mlflow_module.pyfunc.load_model(kept)
    harm(Path(kept, name))
    with pytest.raises(MlflowException, match=f"{name} changed since registration; remedy: register the model again"):
        mlflow_module.pyfunc.load_model(kept)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda path: flip(path / "model" / "model.safetensors"), "model/model.safetensors"),
        (lambda path: (path / "service.py").write_text("import os"), "service.py"),
        (lambda path: (path / "service.py").rename(path / "code.py"), "code.py, service.py"),
        (lambda path: (path / "requirements.txt").unlink(), "requirements.txt"),
        (lambda path: (path / "SHA256SUMS").unlink(), "SHA256SUMS"),
        (lambda path: (path / "SHA256SUMS").write_text(""), "SHA256SUMS"),
    ],
)
def test_a_model_that_was_changed_in_the_store_cannot_be_promoted(first, home, mlflow, tmp_path, harm, named):
    """Includes the code that loading runs, and the seal itself."""
    client = mlflow.client()
    version = client.get_model_version_by_alias("bert-tiny", versions.ALIAS)
    [path] = (home / "mlartifacts").rglob(f"*{version.source.removeprefix('models:/')}/artifacts")
    shutil.copytree(path, tmp_path / "kept")
    assert changed_files(client, version) == []
    try:
        harm(path)
        assert changed_files(client, version) == named.split(", ")
        with pytest.raises(PromotionError, match=f"changed since registration: {named}; remedy"):
            promote(client, "bert-tiny", version.version, "a look was enough", None)
        faults = describe(f"models:/bert-tiny@{versions.ALIAS}", resources(home)["workshop"])["faults"]
        assert any(f"{named} of {version.source} changed since registration" in fault for fault in faults)
    finally:
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "kept", path)
    assert find_champion(client, "bert-tiny") is None


WRITES = (
    *("create_logged_model", "log_model_artifacts", "set_logged_model_tags", "log_outputs", "finalize_logged_model"),
    *("log_metric", "create_model_version", "set_registered_model_alias"),
)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_a_registration_killed_at_any_write_leaves_the_alias_on_a_whole_version(
    first, home, mlflow, monkeypatch, write, moment
):
    class Killed(BaseException):
        pass

    def die(*arguments, **options):
        if moment == "after":
            original(*arguments, **options)
        raise Killed

    client, recipe = mlflow.client(), load_recipe(TINY)
    tags = client.get_model_version("bert-tiny", "1").tags
    artifacts = {kind: artifact.load(home / "artifacts" / kind / tags[kind], kind) for kind in kinds_of(recipe)}
    recipe = recipe.model_copy(update={"name": f"killed-{moment}-{write}"})
    before = versions.register(mlflow, recipe, artifacts, {})
    monkeypatch.setattr(versions, "CODE_VERSION", "another")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        original = getattr(MlflowClient, write)
        patch.setattr(MlflowClient, write, die)
        versions.register(mlflow, recipe, artifacts, {})
    found = client.get_model_version_by_alias(before.name, versions.ALIAS)
    assert int(found.version) == (2 if (write, moment) == ("set_registered_model_alias", "after") else 1)
    assert changed_files(client, found) == []
    again = versions.register(mlflow, recipe, artifacts, {})
    assert (int(again.version), changed_files(client, again)) == (2, [])
    assert int(client.get_model_version_by_alias(before.name, versions.ALIAS).version) == 2


def test_the_champion_is_served_over_http(first, home, mlflow):
    """By `bert-pipeline serve`, which ends all of its processes on Ctrl-C."""
    promote(mlflow.client(), "bert-tiny", "1", "the first", None)
    asked = {"inputs": ["patients were given [MASK] daily"], "params": {"top_k": 3, "return_embeddings": True}}
    [answer] = served("models:/bert-tiny@champion", home, asked)
    [fills] = answer["fills"]
    scores = [fill["score"] for fill in fills]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1
    assert len(answer["embedding"]) == load_recipe(TINY).model.hidden_size


@pytest.mark.parametrize("model", ["models:/bert-tiny/99", "models:/bert-tiny@nobody", "models:/bert-tiny"])
def test_a_version_that_does_not_exist_is_not_served(first, home, monkeypatch, capsys, model):
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(home))
    assert main(["serve", model]) == 1
    assert "remedy" in capsys.readouterr().err


def served(model, home, asked):
    """The predictions of `bert-pipeline serve`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = [sys.executable, "-m", "bert_pipeline.cli", "serve", model, "--port", str(port)]
    environment = os.environ | {"BERT_PIPELINE_HOME": str(home)}
    server = subprocess.Popen(serve, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert line.endswith(f"http://127.0.0.1:{port}/invocations (Ctrl-C stops it)\n"), "the server did not start"
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request, timeout=60))["predictions"]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert not answers(f"http://127.0.0.1:{port}/ping")


def test_a_task_model_is_registered_promoted_and_served(first, home, mlflow, tmp_path, monkeypatch, capsys):
    """From the evaluation of the registered model, by the commands, with its lineage down to the text."""
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(home))
    client, pretrained = mlflow.client(), f"models:/bert-tiny@{versions.ALIAS}"
    version = client.get_model_version_by_alias("bert-tiny", versions.ALIAS).version
    finetune = ["finetune", "--model", pretrained, "--task", "sample-chem", "--evaluation", pretrained]
    assert main([*finetune, "--out", str(tmp_path / "chem")]) == 0
    for _ in range(2):
        assert main(["register", str(tmp_path / "chem"), "--json"]) == 0
    assert main(["promote", "models:/bert-tiny-sample-chem@candidate", "--reason", "looks right"]) == 0
    outputs = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in outputs if line.startswith("{")] == [
        {"name": "bert-tiny-sample-chem", "version": 1}
    ] * 2
    champion = "models:/bert-tiny-sample-chem@champion"
    chain = describe(champion, resources(home)["workshop"])
    assert chain["faults"] == [] and chain["task_model"]["pretrained"] == f"models:/bert-tiny/{version}"
    kinds = [each["kind"] for each in chain["artifacts"]]
    assert {"evaluation/sample-chem", "pretrained_checkpoint", "raw_corpus"} <= set(kinds)
    run = client.get_run(client.get_model_version("bert-tiny-sample-chem", "1").run_id)
    assert run.data.metrics["test/score"] == chain["task_model"]["scores"]["test"] and run.info.status == "FINISHED"
    texts = ["patients were given atenolol daily", "no effect"]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts))
    assert main(["predict", "--model", champion, "--text", str(tmp_path / "texts.txt")]) == 0
    written = [json.loads(line)["spans"] for line in capsys.readouterr().out.splitlines()]
    answers = [answer["spans"] for answer in served(champion, home, {"inputs": texts})]
    assert places_of(answers) == places_of(written)
    assert main(["predict", "--model", pretrained, "--text", str(tmp_path / "texts.txt")]) == 1
    assert "is not fine-tuned on a task; remedy" in capsys.readouterr().err
    assert main(["lineage", champion]) == 0
    tree = capsys.readouterr().out
    assert f"task_model {chain['task_model']['fingerprint']}" in tree and f"models:/bert-tiny/{version}\n" in tree
    assert main(["reproduce", champion, "--out", str(tmp_path / "again")]) == 1
    assert f"is a task model; remedy: reproduce models:/bert-tiny/{version}" in capsys.readouterr().err


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def places_of(answers):
    """The spans without their scores, which differ in bfloat16."""
    return [[{name: value for name, value in each.items() if name != "score"} for each in spans] for spans in answers]


def test_again_builds_nothing_and_says_so(first, home, instance, mlflow):
    before, runs = state(home), runs_of(mlflow)
    again = materialize(home, instance)
    assert again.success
    assert state(home) == before
    assert runs_of(mlflow) == runs
    assert "plan" not in metadata_of(again, "raw_corpus")
    for kind in TRACKED:
        assert metadata_of(again, kind)["mlflow_run_id"] == metadata_of(first, kind)["mlflow_run_id"]
    assert metadata_of(again, "registered_model")["version"] == 1
    assert metadata_of(again, "registered_model")["built"] == "nothing: text, recipe and code are unchanged"
    built = [instance.get_run_by_id(run.run_id).tags[BUILT] for run in (first, again)]
    assert built[0].startswith("raw_corpus, contamination, tokenizer, ") and built[1] == "nothing"
    assert len(mlflow.client().search_model_versions("name = 'bert-tiny'")) == 1


def test_each_task_is_an_asset(first, home, instance):
    """Selected tasks of the recipe are built; selecting only tasks that it does not list is an error."""
    one = dg.AssetKey(["evaluation", "sample-chem"])
    result = materialize(home, instance, selection=[one])
    [event] = result.get_asset_materialization_events()
    assert event.asset_key == one and result.success
    other = dg.AssetKey(["evaluation", "GAD"])
    refused = materialize(home, instance, selection=[other], raise_on_error=False)
    error = str(refused.failure_data_for_node("evaluation").error)
    assert "recipe tiny evaluates none of evaluation/GAD; remedy: add [[evaluation.tasks]]" in error


def test_the_report_names_the_artifacts(first, home):
    text = report("tiny", home)
    for kind in ("raw_corpus", "evaluations"):
        assert metadata_of(first, kind)["path"] in text
    for words in ("MLM loss", "NSP accuracy", "random initialisation", "bert-tiny", "candidate", "bert-pipeline ui"):
        assert words in text
    card = Path(metadata_of(first, "pretrained_checkpoint")["path"], "README.md")
    assert f"cat {card}\n" in text and card.is_file()


def test_mlflow_gets_from_the_records_what_it_lacks(first, home, instance, tmp_path, monkeypatch):
    """MLflow was down during the training, or its database was lost."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    before = state(home)
    again = materialize(home, instance)
    assert again.success and state(home) == before
    new = resources(home)["workshop"].mlflow
    [run] = new.runs(metadata_of(first, "pretrained_checkpoint")["fingerprint"], "FINISHED")
    assert [p.step for p in new.client().get_metric_history(run.info.run_id, "curves/loss")] == [1, 5, 10, 15, 20]
    assert metadata_of(again, "registered_model")["version"] == 1


def test_a_failing_training_leaves_a_failed_run(first, home, instance, mlflow, monkeypatch, tmp_path):
    """Another seed requires a training, and the accelerate configuration is missing."""
    change_the_recipe(monkeypatch, tmp_path, "log_every = 5", "log_every = 5\nseed = 99")
    monkeypatch.setenv("BERT_PIPELINE_ACCELERATE_CONFIG", str(tmp_path / "none.yaml"))
    runs = runs_of(mlflow)
    result = materialize(home, instance, raise_on_error=False)
    assert not result.success
    new = {run: status for run, status in runs_of(mlflow).items() if run not in runs}
    assert list(new.values()) == ["FAILED"]
    assert result.get_failed_step_keys() == {"pretrained_checkpoint"}


def test_downstream_of_a_changed_recipe_is_refused(first, home, instance, monkeypatch, tmp_path):
    """Only the evaluations are selected, but their tokenizer was built from an older recipe."""
    change_the_recipe(monkeypatch, tmp_path, "vocab_size = 600", "vocab_size = 500")
    result = materialize(home, instance, selection=["evaluations"], raise_on_error=False)
    assert not result.success
    error = result.failure_data_for_node("evaluation").error
    assert "tokenizer" in str(error) and "before recipe tiny was changed; remedy" in str(error)


def test_what_cannot_fit_fails_before_anything_is_built(small_disk, instance, monkeypatch, tmp_path):
    change_the_recipe(monkeypatch, tmp_path, "dupe_factor = 1", "dupe_factor = 100")
    result = materialize(small_disk, instance, selection=["raw_corpus"], raise_on_error=False)
    assert not result.success
    error = result.failure_data_for_node("raw_corpus").error
    assert "most of them for nsp_dataset" in str(error) and "remedy: free" in str(error)
    assert not list(small_disk.rglob("shard-*"))


def test_a_recipe_that_starts_from_another_needs_its_checkpoint_and_records_it(
    first, home, instance, mlflow, monkeypatch, tmp_path
):
    """Dagster has no edge between partitions of one asset: the records and the MLflow run name the other model."""
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    refused = materialize(tmp_path, instance, "tiny-further", selection=["raw_corpus"], raise_on_error=False)
    assert "starts from the model of recipe tiny" in str(refused.failure_data_for_node("raw_corpus").error)
    assert not list(tmp_path.rglob("shard-*")), "before anything is built"

    monkeypatch.setenv("BERT_PIPELINE_HOME", str(home))
    stages = ["raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset", "pretrained_checkpoint"]
    further = materialize(home, instance, "tiny-further", selection=stages)
    assert all(check.passed for check in further.get_asset_check_evaluations())
    begun, before = (metadata_of(run, "pretrained_checkpoint") for run in (further, first))
    assert begun["inputs"]["initial_model"] == before["fingerprint"]
    assert begun["heldout_before/mlm_loss"] == pytest.approx(before["heldout_after/mlm_loss"], rel=1e-5)
    assert metadata_of(further, "raw_corpus")["fingerprint"] == metadata_of(first, "raw_corpus")["fingerprint"]
    [run] = mlflow.runs(begun["fingerprint"], "FINISHED")
    assert run.data.tags["input.initial_model"] == before["fingerprint"]
    assert run.data.params["pretrain.init_from"] == "tiny" and run.data.params["model.hidden_size"] == "32"


def test_a_challenger_is_compared_with_the_champion(first, home, instance, mlflow, monkeypatch, tmp_path):
    """Another training of the recipe: card and metrics of its version show the difference per task, and the rule
    decides. Its snapshot is a logged model with the metrics of its step.
    """
    shown = metadata_of(first, "champion")
    assert shown["champion"] == "none" and shown["verdict"] == "there was no champion"
    assert shown["to_promote"] == "bert-pipeline promote models:/bert-tiny/1", "the recipe does not promote by rule"
    promote(mlflow.client(), "bert-tiny", "1", "the first", None)
    changed = '[registry]\npromote = "if_better"\n[pretrain]\nseed = 7\nsnapshot_every = 10'
    change_the_recipe(monkeypatch, tmp_path, "[pretrain]", changed)
    again = materialize(home, instance)
    assert again.success
    version = mlflow.client().get_model_version_by_alias("bert-tiny", versions.ALIAS)
    assert int(version.version) == 2
    shown = metadata_of(again, "champion")
    assert shown["champion"] == "1" and shown["candidate"] == "2" and "| sample-chem |" in shown["comparison"]
    assert shown["verdict"].startswith("compared with version 1 on 1 task(s): significantly better on ")
    assert shown["verdict"] == version.tags["challenge"] and "to_promote" not in shown
    assert "## Beside the champion (version 1)\n\n- **sample-chem**: " in version.description
    assert "\n|" not in version.description, "MLflow shows tables without space between their columns"
    model = mlflow.client().get_logged_model(version.source.removeprefix("models:/"))
    metrics = {metric.key: metric.value for metric in model.metrics}
    scores = [
        mlflow.client().get_model_version("bert-tiny", number).tags["evaluation/sample-chem"] for number in ("2", "1")
    ]
    means = [
        artifact.load(home / "artifacts" / "evaluation" / "sample-chem" / each).facts["pretrained"]["score_mean"]
        for each in scores
    ]
    assert metrics["champion/sample-chem/difference"] == pytest.approx(means[0] - means[1])
    assert 0 < metrics["champion/sample-chem/p_value"] <= 1
    [kept] = mlflow.client().search_logged_models([mlflow.experiment_id()], "name = 'bert-tiny-step-00000010'")
    assert kept.tags["step"] == "10" and kept.source_run_id == version.run_id
    [score] = [metric for metric in kept.metrics if metric.key == "evaluation/sample-chem/snapshot_score"]
    assert (
        score.step == 10
        and score.value
        == artifact.load(home / "artifacts" / "evaluation" / "sample-chem" / scores[0]).facts["snapshots"]["10"]
    )


def test_a_vocabulary_can_be_kept_for_text_that_has_grown(first, home, instance, mlflow, monkeypatch, tmp_path):
    """Like a retraining that keeps the tokenizer; its result can be reproduced."""
    change_the_recipe(monkeypatch, tmp_path, "sample_documents = 200", "sample_documents = 220")
    kept = [key for each in ASSETS for key in each.keys if key != dg.AssetKey("tokenizer")]
    grown = materialize(home, instance, selection=kept)
    assert grown.success
    tokenizer = metadata_of(first, "tokenizer")
    pairs = metadata_of(grown, "nsp_dataset")["inputs"]
    assert pairs == {
        "raw_corpus": metadata_of(grown, "raw_corpus")["fingerprint"],
        "tokenizer": tokenizer["fingerprint"],
    }
    assert tokenizer["inputs"]["raw_corpus"] != pairs["raw_corpus"]
    version = mlflow.client().get_model_version_by_alias("bert-tiny", versions.ALIAS)
    assert {kind: version.tags[kind] for kind in pairs} == pairs
    uri, workshop = f"models:/bert-tiny/{version.version}", resources(home)["workshop"]
    assert describe(uri, workshop)["faults"] == []
    reproduce(uri, workshop, tmp_path / "out")
    data = ("raw_corpus", "tokenizer", "nsp_dataset", "masked_dataset")
    monkeypatch.setattr(reproduction, "kinds_of", lambda recipe: data)
    again = reproduction.rebuild(tmp_path / "out", tmp_path / "store")
    assert {kind: again[kind].fingerprint for kind in data} == {kind: version.tags[kind] for kind in data}


def test_a_run_of_a_recipe_that_was_deleted_names_it(first, home, instance, monkeypatch, tmp_path):
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", str(tmp_path))
    before = state(home)
    result = materialize(home, instance, selection=["raw_corpus"], raise_on_error=False)
    error = str(result.failure_data_for_node("raw_corpus").error)
    assert "no recipe is named tiny: its file was removed or renamed; remedy: put tiny.toml back" in error
    assert state(home) == before
