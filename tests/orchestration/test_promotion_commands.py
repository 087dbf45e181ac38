"""`bert-pipeline promote` and `bert-pipeline champions`."""

import json

import pytest
import typer

from bert_pipeline.cli.commands import App
from orchestration.commands import promotion as promotion_commands
from orchestration.registry.ledger import history


@pytest.fixture
def command(monkeypatch, registry_file, tmp_path, capsys):
    """Run a command like `bert-pipeline`; return its output."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registry_file}")
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    app = App()
    promotion_commands.add(app)
    group = typer.main.get_group(app)

    def run(*arguments):
        group.main(arguments, standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_promote_list_and_undo(command, client, name):
    client.set_registered_model_alias(name, "candidate", "2")
    assert f"champion of {name} is version 1, after nobody (promotion 1)" in command("promote", f"models:/{name}/1")
    told = command("promote", f"models:/{name}@candidate", "--reason", "reads dosages better", "--json")
    assert json.loads(told)["version"] == "2"
    table = command("champions", f"models:/{name}")
    assert "no reason given" in table and "reads dosages better" in table and table.endswith("version 2\n")
    assert "is version 1, after version 2 (promotion 3)" in command("promote", "--undo", f"models:/{name}")
    listed = json.loads(command("champions", f"models:/{name}", "--json"))
    assert listed["champion"] == "1" and [each["how"] for each in listed["promotions"]] == ["hand", "hand", "undo"]
    client.set_registered_model_alias(name, "champion", "3")
    message = "is not the version that promotion 3 chose (moved by hand, or deleted)"
    assert message in command("champions", f"models:/{name}")


def test_a_promotion_against_the_rule_says_so(command, client, name, evaluate):
    evaluate("1", GAD=230)
    evaluate("2", GAD=150)
    command("promote", f"models:/{name}/1")
    told = command("promote", f"models:/{name}/2", "--reason", "smaller")
    assert (
        "the promotion rule would have kept it candidate: compared with version 1" in told and "worse on GAD (-" in told
    )
    assert history(client, name)[-1].comparison["GAD"]["difference"] < 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("promote", "bert-tiny/1"), "'bert-tiny/1' names no registered model; remedy: models:/NAME/VERSION"),
        (("promote", "models:/NAME"), "names no version; remedy: models:/NAME/1 or models:/NAME@candidate"),
        (("promote", "models:/NAME@best"), "has no alias best; remedy"),
        (("promote", "models:/NAME/8"), "has no version 8"),
        (("promote", "--undo", "models:/NAME/1"), "names a version; remedy: --undo models:/NAME"),
        (("promote", "--undo", "models:/NAME"), "no promotion of NAME"),
        (("champions", "models:/bert-none"), "no registered model bert-none; remedy"),
        (("promote", "models:/NAME/1", "--reason", "x" * 1001), "the reason has 1001 characters; remedy: at most 1000"),
    ],
)
def test_errors_name_the_remedy(command, client, name, arguments, told):
    with pytest.raises(ValueError) as error:
        command(*(argument.replace("NAME", name) for argument in arguments))
    assert told in str(error.value).replace(name, "NAME")


def test_an_unreachable_registry_is_reported_in_one_line(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match=r"MLflow at http://127.0.0.1:9: .*; remedy: check that it runs"):
        command("champions", "models:/bert-tiny")
