"""Champions: one winner of many, the way back, the rule, and what an operator meets."""

import itertools
import json
import os
import shutil
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest
import typer
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from promoters import NAME, race
from servers import BIN, INFRA, Database, Servers, answers, ask, basic, changed, free_port, make_secrets

from bert_pipeline.cli.commands import App
from bert_pipeline.evaluation.scoring.significance import Comparison
from bert_pipeline.store import artifact
from orchestration.commands import promotion as promotion_commands
from orchestration.registry import champion
from orchestration.registry import ledger as promotion_ledger
from orchestration.registry.champion import challenge, judge
from orchestration.registry.ledger import PromotionConflict, PromotionError, find_champion, history
from orchestration.registry.promotion import promote, undo

ROOT = Path(__file__).parents[2]
ANSWERS = {"GAD": "01", "BioASQ": ("no", "yes"), "ChemProt": "01"}
numbers = itertools.count()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("registry") / "mlflow.db"


@pytest.fixture(scope="module")
def client(database):
    return MlflowClient(f"sqlite:///{database}")


@pytest.fixture
def name(client):
    """A registered model of three versions, of the test's own."""
    name = f"bert-{next(numbers)}"
    with_versions(client, name, 3)
    return name


def with_versions(client, name, number):
    client.create_registered_model(name)
    for each in range(number):
        client.create_model_version(name, source=f"s3://models/{name}/{each}")


# One winner


def assert_one_winner_a_round(client, rounds):
    """Eight processes at once, each for versions of its own."""
    before = find_champion(client, NAME)
    first = len(history(client, NAME))
    outcomes = race(client.tracking_uri, 8, rounds)
    held = history(client, NAME)[first:]
    assert len(outcomes) == 8 * rounds
    assert len(held) == rounds, "as many promotions hold as there were rounds"
    for number in range(rounds):
        assert {seen for at, _, seen, _, _ in outcomes if at == number} == {before}, "all saw one champion"
        [won] = [(rank, version, entry) for at, rank, _, version, entry in outcomes if at == number and entry]
        told = (f"round {number}, process {won[0]}", before, won[1], won[2])
        assert told == (held[number].reason, held[number].version_before, held[number].version, held[number].number)
        before = won[1]
    assert find_champion(client, NAME) == before, "the alias is where the history says"
    assert all(entry.followed for entry in held)


@pytest.mark.slow
def test_of_many_at_once_one_wins_on_sqlite_30_times(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    with_versions(client, NAME, 16)
    assert_one_winner_a_round(client, 30)


@pytest.fixture(scope="module")
def postgres():
    """PostgreSQL, and the address of an empty database by its name."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL does not run as root
        secrets = make_secrets(Path(folder))
        running = Database(Path(folder), secrets)
        password = (secrets / "postgres_mlflow").read_text().strip()
        try:
            yield lambda name: f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{running.port}/{name}"
        finally:
            running.stop()


@pytest.mark.slow
def test_of_many_at_once_one_wins_on_postgres_30_times(postgres):
    client = MlflowClient(postgres("mlflow"))
    with_versions(client, NAME, 16)
    assert_one_winner_a_round(client, 30)


@pytest.mark.slow
def test_of_many_at_once_one_wins_through_a_server_30_times(postgres, tmp_path):
    """As in production: the clients know an address alone. Four workers, so that requests do run at once."""
    port, servers = free_port(), Servers(tmp_path)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres("mlflow_auth")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "4", "--artifacts-destination", str(tmp_path)]
    try:
        servers.start("mlflow", command, PATH=f"{BIN}:{os.environ['PATH']}")
        servers.wait("mlflow", answers(port, "/health"), 180)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        with_versions(client, NAME, 16)
        assert_one_winner_a_round(client, 30)
    finally:
        servers.stop()


@pytest.mark.slow
def test_the_user_that_the_pipeline_is_may_promote(tmp_path, monkeypatch):
    """As in production: MLflow knows who asks, and who registered a model may change it."""
    pytest.importorskip("flask_wtf")
    port, servers = free_port(), Servers(tmp_path)
    users = {"postgresql+psycopg2:///mlflow_auth": f"sqlite:///{tmp_path}/users.db"}
    (tmp_path / "auth.ini").write_text(changed((INFRA / "mlflow" / "basic_auth.ini").read_text(), **users))
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1", "--port", str(port)]
    settings = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": "of-the-admin"}
    settings |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        servers.start("mlflow", command, PATH=f"{BIN}:{os.environ['PATH']}", **settings)
        servers.wait("mlflow", answers(port, "/health"), 180)
        account = json.dumps({"username": "pipeline", "password": "of-the-pipeline"}).encode()
        admin = {"Authorization": basic("admin", "of-the-admin"), "Content_Type": "application/json"}
        assert ask(port, "POST", "/api/2.0/mlflow/users/create", account, **admin)[0] == 200
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "pipeline")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-the-pipeline")
        client = MlflowClient(f"http://127.0.0.1:{port}")
        with_versions(client, NAME, 2)
        promote(client, NAME, "1", "the first", None)
        promote(client, NAME, "2", "the second", "1")
        assert [entry.who for entry in history(client, NAME)] == ["pipeline", "pipeline"]
        assert undo(client, NAME).version == find_champion(client, NAME) == "1"
    finally:
        servers.stop()


def test_two_who_saw_the_same_ledger_cannot_both_win(client, name, monkeypatch):
    """The second looks before the first writes, and writes after it: the narrowest race, made to happen."""
    original = client.create_model_version

    def write_after_another(*arguments, **options):
        monkeypatch.setattr(client, "create_model_version", original)
        promote(client, name, "2", "was faster", None)
        return original(*arguments, **options)

    monkeypatch.setattr(client, "create_model_version", write_after_another)
    with pytest.raises(
        PromotionConflict, match=r"version 1 of .* follow none .* version 2 is champion now .*was faster"
    ):
        promote(client, name, "1", "was slower", None)
    assert find_champion(client, name) == "2"
    assert [entry.reason for entry in history(client, name)] == ["was faster"]
    assert len(client.search_model_versions(f"name = '{name}.champions'")) == 2, "the late one is recorded, and no more"
    assert promote(client, name, "3", "later", "2").version == "3", "and is in nobody's way"


def test_an_answer_that_got_lost_is_no_second_promotion(client, name, monkeypatch):
    """The database wrote it, and the connection broke before it said so."""
    original, asked = client.create_model_version, []

    def lose_the_answer(*arguments, **options):
        asked.append(original(*arguments, **options))
        raise MlflowException("connection reset")

    monkeypatch.setattr(client, "create_model_version", lose_the_answer)
    assert promote(client, name, "1", "once", None).number == 1
    assert len(asked) == 1 and len(history(client, name)) == 1


WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "set_model_version_tag",
)


@pytest.mark.parametrize("write", WRITES)
def test_a_promotion_killed_at_any_write_is_whole_or_none(client, name, monkeypatch, write):
    monkeypatch.setattr(promotion_ledger, "PATIENCE", 0.2)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(client, write, killed)
        promote(client, name, "1", "interrupted", None)
    recorded = [entry.version for entry in history(client, name)]
    assert recorded == ([] if write.startswith("create") else ["1"])
    if recorded:
        with pytest.raises(PromotionConflict, match=r"version 1 is champion now"):
            promote(client, name, "2", "expects none", None)
    else:
        promote(client, name, "1", "again", None)
    assert find_champion(client, name) == "1"
    assert promote(client, name, "2", "next", "1").version_before == "1"
    assert "interrupted" in client.get_model_version(name, "1").tags["champion"] or not recorded


def test_one_who_slept_moves_the_alias_not_back(client, name, monkeypatch):
    """Between the ledger and the alias the winner sleeps; in the meantime others finish its work and go on."""
    monkeypatch.setattr(promotion_ledger, "PATIENCE", 0.1)
    original = client.set_registered_model_alias

    def sleep(*arguments):
        monkeypatch.setattr(client, "set_registered_model_alias", original)
        promote(client, name, "2", "in the meantime", "1")
        return original(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", sleep)
    assert promote(client, name, "1", "slept", None).version == "1"
    assert find_champion(client, name) == "2"
    assert [entry.version for entry in history(client, name)] == ["1", "2"]


# Promote, undo, history


def test_a_promotion_is_told_where_people_look(client, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    promote(client, name, "1", "the first", None)
    done = promote(client, name, "2", "fewer errors", "1", how="rule", comparison={"GAD": {"difference": 0.02}})
    version, model = client.get_model_version_by_alias(name, "champion"), client.get_registered_model(name)
    told = f"version 2 after version 1 since {done.at}, by rule (ada; promotion 2 in {name}.champions): fewer errors"
    assert str(version.version) == "2" and version.tags["champion"] == model.tags["champion"] == told
    assert json.loads(version.tags["champion.comparison"]) == {"GAD": {"difference": 0.02}}
    assert history(client, name)[-1] == done and done.comparison == {"GAD": {"difference": 0.02}}
    assert promote(client, name, "2", "again", "2") == done, "what is champion already stays so, without a new entry"


def test_undo_goes_back_step_by_step(client, name):
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(client, name, version, "", before)
    assert [undo(client, name).version for _ in range(3)] == ["2", "1", None]
    assert find_champion(client, name) is None
    assert client.get_registered_model(name).tags["champion"].startswith("none after version 1 since ")
    with pytest.raises(PromotionError, match=r"no promotion of .* that could be taken back"):
        undo(client, name)
    promote(client, name, "3", "after all", None)
    promote(client, name, "1", "", "3")
    assert undo(client, name).version == "3", "an undo is none of the promotions that are left"
    assert [entry.undoes for entry in history(client, name)] == [None, None, None, 3, 2, 1, None, None, 8]


def test_an_alias_moved_by_hand_counts(client, name):
    promote(client, name, "1", "", None)
    client.set_registered_model_alias(name, "champion", "3")
    with pytest.raises(PromotionConflict, match=r"version 3 is champion now"):
        promote(client, name, "2", "", "1")
    with pytest.raises(
        PromotionError, match=r"moved by hand to version 3 since; remedy: bert-pipeline promote models:/"
    ):
        undo(client, name)
    promote(client, name, "2", "", "3")
    assert undo(client, name).version == "3"


def test_a_deleted_champion_can_be_undone(client, name):
    promote(client, name, "1", "", None)
    promote(client, name, "2", "", "1")
    client.delete_model_version(name, "2")
    assert find_champion(client, name) is None
    assert undo(client, name).version == "1"
    client.delete_model_version(name, "1")
    with pytest.raises(PromotionError, match=r"no promotion of .* that could be taken back"):
        undo(client, name)


def test_the_champion_before_was_deleted(client, name):
    promote(client, name, "1", "", None)
    promote(client, name, "2", "", "1")
    client.delete_model_version(name, "1")
    with pytest.raises(PromotionError, match=r"has no version 1, or it was deleted; remedy: one of these: 2, 3"):
        undo(client, name)
    assert find_champion(client, name) == "2"


def test_a_version_deleted_as_it_became_champion_blocks_nothing(client, name, monkeypatch, caplog):
    promote(client, name, "1", "", None)
    original = client.set_registered_model_alias

    def deleted_first(*arguments):
        client.delete_model_version(name, "2")
        return original(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", deleted_first)
    promote(client, name, "2", "", "1")
    assert "version 2" in caplog.text and "was deleted as it became champion" in caplog.text
    monkeypatch.setattr(client, "set_registered_model_alias", original)
    assert find_champion(client, name) == "1"
    assert promote(client, name, "3", "", "1").version == "3"


@pytest.mark.parametrize("version", ["7", "best", "-1"])
def test_a_version_that_is_not_there(client, name, version):
    with pytest.raises(PromotionError, match=r"has no version .* remedy: one of these: 1, 2, 3"):
        promote(client, name, version, "", None)
    assert history(client, name) == []


def test_a_version_that_is_not_ready(client, name, database):
    with sqlite3.connect(database) as connection:
        connection.execute(
            "update model_versions set status = 'PENDING_REGISTRATION' where name = ? and version = 2", (name,)
        )
    with pytest.raises(PromotionError, match=r"is PENDING_REGISTRATION, not READY; remedy"):
        promote(client, name, "2", "", None)


def test_no_such_model(client):
    with pytest.raises(PromotionError, match="no registered model bert-none; remedy"):
        promote(client, "bert-none", "1", "", None)


# The rule


def evaluated(store, task, right, *, seeds=(1, 2), epochs=1, of=240, data="d"):
    """The artifact of an evaluation whose first `right` answers are right. Returns its fingerprint."""
    kind, section = f"evaluation/{task}", {"num_epochs": epochs, "seeds": list(seeds)}
    inputs = {"pretrained_checkpoint": f"{right}-{of}", "task": data}
    origin = artifact.origin(kind, section, inputs, "1")

    def build(out):
        (out / "predictions").mkdir()
        for seed in seeds:
            rows = [
                f"{n}\t{ANSWERS[task][n % 2]}\t{ANSWERS[task][(n + ((n * 7 + seed) % of >= right)) % 2]}\n"
                for n in range(of)
            ]
            text = "id\tgold\tpredicted\n" + "".join(rows)
            (out / "predictions" / f"pretrained-seed{seed}-test.tsv").write_text(text)
        (out / "scores.json").write_text(json.dumps({"task": task, "seeds": list(seeds)}))
        return {"seeds": list(seeds)}

    return artifact.make(store / kind / artifact.fingerprint(origin), origin, build).fingerprint


@pytest.fixture
def store(tmp_path):
    return tmp_path / "artifacts"


def evaluate_version(client, store, name, version, **right):
    for task, given in right.items():
        settings = given if isinstance(given, dict) else {"right": given}
        client.set_model_version_tag(name, version, f"evaluation/{task}", evaluated(store, task, **settings))


CASES = {
    "better on one, as good on the other": ({"GAD": 210, "BioASQ": 180}, True, "better on GAD (+"),
    "better on both": ({"GAD": 210, "BioASQ": 230}, True, "worse on none"),
    "as good": ({"GAD": 181, "BioASQ": 180}, False, "better on none, worse on none"),
    "worse on one": ({"GAD": 225, "BioASQ": 140}, False, "worse on BioASQ (-"),
    "one task is missing": ({"GAD": 225}, False, "was evaluated on BioASQ, the challenger was not; remedy: "),
    "a task more": ({"GAD": 225, "BioASQ": 180, "ChemProt": 10}, True, "of 2 tasks significantly better on GAD"),
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
def test_the_rule(client, name, store, case):
    challenger, better, told = CASES[case]
    evaluate_version(client, store, name, "1", GAD=180, BioASQ=180)
    evaluate_version(client, store, name, "2", **challenger)
    assert challenge(client, store, name, "1").reason == "there was no champion"
    verdict = challenge(client, store, name, "2")
    assert verdict.better == better and told in verdict.reason, verdict.reason
    assert find_champion(client, name) == ("2" if better else "1")
    assert client.get_model_version(name, "2").tags["challenge"] == verdict.reason
    assert challenge(client, store, name, "2").better is False, "a second time nothing happens"
    assert len(history(client, name)) == 1 + better
    if better:
        assert history(client, name)[-1].how == "rule" and history(client, name)[-1].comparison["GAD"]["p_value"] < 0.05


def test_many_tasks_make_chance_no_merit():
    """Of 13 tasks one with p = 0.03 is to be expected of equals; alone, or with p = 0.001, it counts."""
    lucky, plain = Comparison(0.01, 0.001, 0.02, 0.03), Comparison(0.0, -0.01, 0.01, 0.6)
    others = {f"task{number}": plain for number in range(12)}
    assert champion._better({"GAD": lucky}) == ["GAD"]
    assert champion._better({"GAD": lucky, **others}) == []
    assert champion._better({"GAD": Comparison(0.01, 0.001, 0.02, 0.001), **others}) == ["GAD"]
    assert champion._better({"GAD": Comparison(0.01, -0.001, 0.02, 0.001)}) == [], "the luck of the seeds counts, too"
    two = {"GAD": Comparison(0.01, 0.001, 0.02, 0.01), "BioASQ": Comparison(0.01, 0.001, 0.02, 0.04)}
    assert champion._better(two) == ["GAD", "BioASQ"], "Holm's second step, which Bonferroni lacks"


def test_predictions_that_are_gone_are_named(client, name, store):
    evaluate_version(client, store, name, "1", GAD=180)
    evaluate_version(client, store, name, "2", GAD=230)
    challenge(client, store, name, "1")
    gone = store / "evaluation" / "GAD" / client.get_model_version(name, "1").tags["evaluation/GAD"]
    (gone / "predictions" / "pretrained-seed2-test.tsv").unlink()
    verdict = judge(client, store, name, "2")
    assert not verdict.better and "pretrained-seed2-test.tsv" in verdict.reason and "remedy" in verdict.reason
    shutil.rmtree(gone)
    verdict = judge(client, store, name, "2")
    assert not verdict.better and f"GAD: {gone} is no artifact" in verdict.reason


def test_what_was_taken_back_is_not_promoted_by_rule_again(client, name, store):
    evaluate_version(client, store, name, "1", GAD=180)
    evaluate_version(client, store, name, "2", GAD=230)
    challenge(client, store, name, "1")
    challenge(client, store, name, "2")
    undo(client, name)
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and "its promotion 2 was taken back; remedy: bert-pipeline promote" in verdict.reason
    undo(client, name)
    assert challenge(client, store, name, "3").better, "another version may follow none"


def test_nothing_follows_a_deleted_champion_by_rule(client, name, store):
    challenge(client, store, name, "1")
    client.delete_model_version(name, "1")
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and "version 1, was deleted or its alias taken away by hand; remedy" in verdict.reason
    assert find_champion(client, name) is None


def test_an_alias_that_points_to_a_deleted_version(client, name, store, database):
    """MLflow leaves such a one where a version is deleted while its alias is set."""
    with sqlite3.connect(database) as connection:
        connection.execute(
            "insert into registered_model_aliases (workspace, name, alias, version) values (?, ?, ?, ?)",
            ("default", name, "champion", 9),
        )
    verdict = challenge(client, store, name, "2")
    assert not verdict.better and "alias points to version 9, which is deleted; remedy" in verdict.reason
    assert champion.standing_champion(client, name) is None
    assert promote(client, name, "2", "by hand", "9").version == "2"


def test_a_challenger_that_is_overtaken_meets_the_new_champion(client, name, store, monkeypatch):
    """While it was compared with version 1, a better one than itself became champion."""
    for version, right in (("1", 150), ("2", 190), ("3", 235)):
        evaluate_version(client, store, name, version, GAD=right)
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


# The commands


@pytest.fixture
def command(monkeypatch, database, tmp_path, capsys):
    """Run a command as `bert-pipeline` does and return its output."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path))
    app = App()
    promotion_commands.add(app)
    group = typer.main.get_group(app)

    def run(*arguments):
        group.main(arguments, standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_promote_list_and_take_back_by_command(command, client, name):
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
    assert "is not the version that promotion 3 chose (moved by hand, or deleted)" in command(
        "champions", f"models:/{name}"
    )


def test_by_hand_against_the_rule_is_said(command, client, name, tmp_path):
    store = tmp_path / "artifacts"
    evaluate_version(client, store, name, "1", GAD=230)
    evaluate_version(client, store, name, "2", GAD=150)
    command("promote", f"models:/{name}/1")
    told = command("promote", f"models:/{name}/2", "--reason", "smaller")
    assert "the promotion rule would have kept it candidate: beside version 1" in told and "worse on GAD (-" in told
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
        (("promote", "models:/NAME/1", "--reason", "x" * 1001), "a reason of 1001 characters; remedy: at most 1000"),
    ],
)
def test_a_wrong_command_is_told(command, client, name, arguments, told):
    with pytest.raises(ValueError) as error:
        command(*(argument.replace("NAME", name) for argument in arguments))
    assert told in str(error.value).replace(name, "NAME")


def test_a_registry_that_is_away_is_one_line(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match=r"MLflow at http://127.0.0.1:9: .*; remedy: check that it runs"):
        command("champions", "models:/bert-tiny")
