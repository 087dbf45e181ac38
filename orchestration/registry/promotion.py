"""Promote a version to champion, and undo promotions. The ledger (ledger.py) decides between concurrent calls."""

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
    """Make a version the champion in place of `expected_champion` (None if there is no champion).

    If it already is the champion, return the promotion that made it so. Of concurrent calls with the same
    `expected_champion`, exactly one succeeds. Raises PromotionConflict if the champion is not the expected one, and
    PromotionError if the version does not exist, is not ready, or its files changed since registration.
    """
    if len(reason) > MAX_REASON:
        raise PromotionError(f"the reason has {len(reason)} characters; remedy: at most {MAX_REASON}")
    entries = confirmed_promotions(client, name)
    held, champion = holding(entries), find_champion(client, name)
    _require_usable(client, name, version)
    if held and held[-1].version == version == champion:
        return held[-1]
    entry = _entry(version, expected_champion, reason, how, comparison or {})
    if champion != expected_champion:
        raise conflict(name, entry, champion, held)
    return record(client, name, entry, entries)


def undo(client: "MlflowClient", name: str) -> Promotion:
    """Restore the previous champion. A second call restores the one before that, and so on.

    If there was no previous champion, remove the alias. Raises PromotionError if no promotion is left to undo, the
    alias was moved by hand since, or the previous champion was deleted.
    """
    entries = confirmed_promotions(client, name)
    held, champion = holding(entries), find_champion(client, name)
    undone = {entry.undoes for entry in held}
    in_force = [entry for entry in held if entry.how != "undo" and entry.number not in undone]
    if not in_force or (champion is None and in_force[-1].version_before is None):
        raise PromotionError(f"{ledger(name)} has no promotion of {name} left to undo")
    last = in_force[-1]
    if champion not in (last.version, None):  # None: it was deleted together with its alias
        raise PromotionError(
            f"promotion {last.number} made version {last.version} of {name} champion, but the alias was moved by hand "
            f"to version {champion} since then; remedy: bert-pipeline promote models:/{name}/{last.version_before}"
        )
    if last.version_before is not None:
        _require_usable(client, name, last.version_before)
    reason = f"undo of promotion {last.number}"
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
    """The user name at MLflow's server, or else on this machine."""
    if user := settings.mlflow_user():
        return user
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a user id without a name
        return str(os.getuid())


def _require_usable(client: "MlflowClient", name: str, version: str) -> None:
    """Raise PromotionError if the version does not exist, is not ready, or its files changed since registration."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        others = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
        raise PromotionError(
            f"{name} has no version {version}, or it was deleted; remedy: one of {str(others).strip('[]')}"
        ) from None
    if found.status != "READY":
        raise PromotionError(
            f"version {version} of {name} is {found.status}, not READY; remedy: wait until it is, or register it again"
        )
    if SEAL in found.tags and (changed := changed_files(client, found)):  # other tools seal nothing
        raise PromotionError(
            f"files of version {version} of {name} changed since registration: {', '.join(changed)}; remedy: check who "
            f"can write to {found.source}, delete the version and register it again"
        )
