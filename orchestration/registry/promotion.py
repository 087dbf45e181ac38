"""Who is champion: how a version comes to bear the alias `champion`, and the way back. What decides is the ledger."""

import getpass
import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from bert_pipeline import settings
from orchestration.registry.ledger import (
    Promotion,
    PromotionError,
    confirmed_promotions,
    conflict,
    find_champion,
    holding,
    ledger,
    record,
)
from orchestration.registry.logged_models import SEAL, changed_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_REASON = 1000


def promote(
    client: "MlflowClient",
    name: str,
    version: str,
    reason: str,
    expected_champion: str | None,
    *,
    how: Literal["rule", "hand"] = "hand",
    comparison: Mapping[str, Any] | None = None,
) -> Promotion:
    """Make a version the champion in place of `expected_champion` (None: there is none).

    Where it is champion already, what made it so is returned. Raises PromotionConflict where another is champion than
    expected, PromotionError where the version is not there, not ready, or not what was registered. Of any number at
    once with one expectation, exactly one returns.
    """
    if len(reason) > MAX_REASON:
        raise PromotionError(f"a reason of {len(reason)} characters; remedy: at most {MAX_REASON}")
    entries = confirmed_promotions(client, name)
    held, champion = holding(entries), find_champion(client, name)
    _require_whole(client, name, version)
    if held and held[-1].version == version == champion:
        return held[-1]
    entry = _entry(version, expected_champion, reason, how, comparison or {})
    if champion != expected_champion:
        raise conflict(name, entry, champion, held)
    return record(client, name, entry, entries)


def undo(client: "MlflowClient", name: str) -> Promotion:
    """Give the alias back to the champion before the last one; said again, to the one before that.

    Where there was none before, the alias is taken away. Raises PromotionError where nothing is left to take back,
    where the alias was moved by hand since, or where the champion before was deleted.
    """
    entries = confirmed_promotions(client, name)
    held, champion = holding(entries), find_champion(client, name)
    taken_back = {entry.undoes for entry in held}
    standing = [entry for entry in held if entry.how != "undo" and entry.number not in taken_back]
    if not standing or (champion is None and standing[-1].version_before is None):
        raise PromotionError(f"{ledger(name)} holds no promotion of {name} that could be taken back")
    last = standing[-1]
    if champion not in (last.version, None):  # None: it was deleted, and the alias with it
        raise PromotionError(
            f"promotion {last.number} made version {last.version} of {name} champion, but the alias was moved by hand "
            f"to version {champion} since; remedy: bert-pipeline promote models:/{name}/{last.version_before}"
        )
    if last.version_before is not None:
        _require_whole(client, name, last.version_before)
    reason = f"promotion {last.number} is taken back"
    entry = replace(_entry(last.version_before, champion, reason, "undo", {}), undoes=last.number)
    return record(client, name, entry, entries)


def _entry(
    version: str | None,
    before: str | None,
    reason: str,
    how: Literal["rule", "hand", "undo"],
    comparison: Mapping[str, Any],
) -> Promotion:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Promotion(version, before, reason, how, _who(), now, comparison, token=uuid.uuid4().hex)


def _who() -> str:
    """The user at MLflow's server, or else of this machine."""
    if user := settings.mlflow_user():
        return user
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return str(os.getuid())


def _require_whole(client: "MlflowClient", name: str, version: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        others = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
        raise PromotionError(
            f"{name} has no version {version}, or it was deleted; remedy: one of these: {str(others).strip('[]')}"
        ) from None
    if found.status != "READY":
        raise PromotionError(
            f"version {version} of {name} is {found.status}, not READY; remedy: register it again, or wait until it is"
        )
    if SEAL in found.tags and (changed := changed_files(client, found)):  # what others registered has no seal
        raise PromotionError(
            f"version {version} of {name} is not what was registered: {', '.join(changed)}; remedy: see who can write "
            f"to {found.source}, delete the version and register it anew"
        )
