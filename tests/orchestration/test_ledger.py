"""Concurrent promotions: exactly one wins, and a crash leaves nothing half done."""

import json

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from promoters import NAME, create_versions, race
from servers import INFRA, Servers, ask, basic, changed

from orchestration.registry import ledger
from orchestration.registry.ledger import PromotionConflict, find_champion, history
from orchestration.registry.promotion import promote, undo


def assert_one_winner_a_round(client, rounds):
    """Race eight processes, each promoting its own versions."""
    before = find_champion(client, NAME)
    first = len(history(client, NAME))
    outcomes = race(client.tracking_uri, 8, rounds)
    held = history(client, NAME)[first:]
    assert len(outcomes) == 8 * rounds
    assert len(held) == rounds, "one valid promotion per round"
    for number in range(rounds):
        assert {seen for at, _, seen, _, _ in outcomes if at == number} == {before}, "all read the same champion"
        [won] = [(rank, version, entry) for at, rank, _, version, entry in outcomes if at == number and entry]
        expected = (f"round {number}, process {won[0]}", before, won[1], won[2])
        assert expected == (held[number].reason, held[number].version_before, held[number].version, held[number].number)
        before = won[1]
    assert find_champion(client, NAME) == before, "the alias agrees with the history"
    assert all(entry.followed for entry in held)


@pytest.mark.slow
def test_one_of_many_concurrent_promotions_wins_on_sqlite(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    create_versions(client, NAME, 16)
    assert_one_winner_a_round(client, 30)


@pytest.fixture(scope="module")
def postgres(database):
    """Return the URL of an empty PostgreSQL database by its name."""
    password = (database.secrets / "postgres_mlflow").read_text().strip()
    return lambda name: f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{database.port}/{name}"


@pytest.mark.slow
def test_one_of_many_concurrent_promotions_wins_on_postgresql(postgres):
    client = MlflowClient(postgres("mlflow"))
    create_versions(client, NAME, 16)
    assert_one_winner_a_round(client, 30)


@pytest.mark.slow
def test_one_of_many_concurrent_promotions_wins_through_a_server(postgres, tmp_path):
    """Like production: clients know only the URL. Four workers, so that requests run concurrently."""
    servers = Servers(tmp_path)
    try:
        port = servers.start_mlflow(postgres("mlflow_auth"), "--artifacts-destination", str(tmp_path), workers=4)
        client = MlflowClient(f"http://127.0.0.1:{port}")
        create_versions(client, NAME, 16)
        assert_one_winner_a_round(client, 30)
    finally:
        servers.stop()


@pytest.mark.slow
def test_the_user_of_the_pipeline_may_promote(tmp_path, monkeypatch):
    """Like production: MLflow authenticates users, and the user who registered a model may change it."""
    pytest.importorskip("flask_wtf")
    servers = Servers(tmp_path)
    users = {"postgresql+psycopg2:///mlflow_auth": f"sqlite:///{tmp_path}/users.db"}
    (tmp_path / "auth.ini").write_text(changed((INFRA / "mlflow" / "basic_auth.ini").read_text(), **users))
    settings = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": "of-the-admin"}
    settings |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key"}
    try:
        port = servers.start_mlflow(f"sqlite:///{tmp_path}/mlflow.db", "--app-name", "basic-auth", **settings)
        account = json.dumps({"username": "pipeline", "password": "of-the-pipeline"}).encode()
        admin = {"Authorization": basic("admin", "of-the-admin"), "Content_Type": "application/json"}
        assert ask(port, "POST", "/api/2.0/mlflow/users/create", account, **admin)[0] == 200
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "pipeline")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "of-the-pipeline")
        client = MlflowClient(f"http://127.0.0.1:{port}")
        create_versions(client, NAME, 2)
        promote(client, NAME, "1", "the first", None)
        promote(client, NAME, "2", "the second", "1")
        assert [entry.who for entry in history(client, NAME)] == ["pipeline", "pipeline"]
        assert undo(client, NAME).version == find_champion(client, NAME) == "1"
    finally:
        servers.stop()


def test_two_who_saw_the_same_ledger_cannot_both_win(client, name, monkeypatch):
    """The narrowest race: the second reads before the first writes, and writes after it."""
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
    assert len(client.search_model_versions(f"name = '{name}.champions'")) == 2, "the late entry is kept, but void"
    assert promote(client, name, "3", "later", "2").version == "3", "the late entry blocks nothing"


def test_a_lost_answer_causes_no_second_promotion(client, name, monkeypatch):
    """The database wrote the entry, and the connection broke before the answer."""
    original, written = client.create_model_version, []

    def lose_the_answer(*arguments, **options):
        written.append(original(*arguments, **options))
        raise MlflowException("connection reset")

    monkeypatch.setattr(client, "create_model_version", lose_the_answer)
    assert promote(client, name, "1", "once", None).number == 1
    assert len(written) == 1 and len(history(client, name)) == 1


WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "set_model_version_tag",
)


@pytest.mark.parametrize("write", WRITES)
def test_a_promotion_killed_at_any_write_happened_or_did_not(client, name, monkeypatch, write):
    monkeypatch.setattr(ledger, "PATIENCE", 0.2)

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


def test_a_suspended_winner_does_not_move_the_alias_back(client, name, monkeypatch):
    """The winner is suspended between ledger and alias; meanwhile others complete its promotion and promote again."""
    monkeypatch.setattr(ledger, "PATIENCE", 0.1)
    original = client.set_registered_model_alias

    def sleep(*arguments):
        monkeypatch.setattr(client, "set_registered_model_alias", original)
        promote(client, name, "2", "in the meantime", "1")
        return original(*arguments)

    monkeypatch.setattr(client, "set_registered_model_alias", sleep)
    assert promote(client, name, "1", "slept", None).version == "1"
    assert find_champion(client, name) == "2"
    assert [entry.version for entry in history(client, name)] == ["1", "2"]
