"""The ledger of promotions: of concurrent promotions exactly one wins, and every reader agrees which.

MLflow's aliases are last-write-wins: two concurrent promotions both succeed, and one is lost silently. So the alias
decides nothing. The ledger decides: it is the registered model `NAME.champions`, with one version per promotion. MLflow
assigns each version number once, whatever its database (the number is part of the primary key), and writes the tags of
a version in the same transaction. Each entry stores the newest number that its writer had seen. It is valid if no other
valid entry lies between that number and its own. So all readers agree on the winner, at any time and after any crash,
and no crashed process leaves a lock behind.

The alias follows the ledger: the winner moves it and marks its entry as followed. If the winner crashes before that,
the next promotion moves it first. A person may move the alias by hand in MLflow's UI after that mark: the next
promotion then starts from the champion chosen by hand.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

ALIAS = "champion"
ENTRY, FOLLOWED = "promotion", "followed"
"""Tags of a ledger entry."""
COMPARISON = "champion.comparison"
"""Tag of a version with the comparison as JSON; the tag ALIAS describes the promotion in a sentence."""
PATIENCE = 10.0
"""Seconds that a promotion has to move the alias. After them it counts as crashed."""
PAUSES = tuple(0.1 * 2**attempt for attempt in range(7))
"""Seconds between attempts to write: under concurrency MLflow rejects some (database locked, number just taken)."""

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


class PromotionError(ValueError):
    """A promotion that is not possible."""


class PromotionConflict(PromotionError):
    """The champion is not the version that the promotion expected to replace."""


@dataclass(frozen=True)
class Promotion:
    """A ledger entry."""

    version: str | None
    """The new champion; None if an undo leaves none."""
    version_before: str | None
    reason: str
    how: Literal["rule", "hand", "undo"]
    who: str
    at: str
    """ISO 8601, UTC, by the writer's clock. Only `number` decides the order."""
    comparison: Mapping[str, Any]
    """By task: the challenger compared with the champion, as far as known."""
    undoes: int | None = None
    """Number of the promotion that this one undoes."""
    token: str = ""
    """Random token by which the writer recognizes its entry."""
    seen: int = 0
    """The newest number in the ledger when the writer read the champion."""
    number: int = 0
    followed: bool = False
    """The alias was moved to where this promotion says."""


def ledger(name: str) -> str:
    return f"{name}.champions"


def history(client: "MlflowClient", name: str) -> list[Promotion]:
    """The valid promotions, oldest first, without the ones that came too late."""
    return holding(_entries(client, name))


def confirmed_promotions(client: "MlflowClient", name: str) -> list[Promotion]:
    """Wait until the alias has followed the last valid entry, or move it; then return all entries of the ledger."""
    dead_at = time.monotonic() + PATIENCE
    while (held := holding(entries := _entries(client, name))) and not held[-1].followed:
        if time.monotonic() < dead_at:
            time.sleep(0.05)
        else:
            log.warning("promotion %d of %s was interrupted; completing it now", held[-1].number, name)
            _follow(client, name, held[-1])
    return entries


def find_champion(client: "MlflowClient", name: str) -> str | None:
    """The version that the alias points to, which may be deleted. Raises PromotionError if there is no such model."""
    return _aliases(client, name).get(ALIAS)


def find_version(client: "MlflowClient", name: str, alias: str) -> str:
    """The version that an alias points to. Raises PromotionError if the model or the alias does not exist."""
    aliases = _aliases(client, name)
    if alias not in aliases:
        raise PromotionError(f"{name} has no alias {alias}; remedy: one of {', '.join(aliases) or '(it has no alias)'}")
    return aliases[alias]


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if not _is_missing(error):
            raise
        raise PromotionError(f"there is no registered model {name}; remedy: materialize registered_model") from None
    return {alias: str(version) for alias, version in found.items()}


def record(client: "MlflowClient", name: str, entry: Promotion, entries: list[Promotion]) -> Promotion:
    """Compare and set: append the entry if nothing valid came after `entries`, then move the alias.

    The caller must have read `entries` with `confirmed_promotions` before it read the champion. Raises
    PromotionConflict if another promotion came first.
    """
    held = _append(client, name, replace(entry, seen=entries[-1].number if entries else 0))
    for one in held:
        if one.token == entry.token:
            _follow(client, name, one)
            return replace(one, followed=True)
    raise conflict(name, entry, held[-1].version, held)


def conflict(name: str, entry: Promotion, champion: str | None, held: list[Promotion]) -> PromotionConflict:
    """The error for an entry whose `version_before` is not the champion."""

    def named(version: str | None) -> str:
        return "none" if version is None else f"version {version}"

    last = f" ({held[-1].how} of {held[-1].who} at {held[-1].at}: {held[-1].reason})" if held else ""
    return PromotionConflict(
        f"{named(entry.version)} of {name} was to follow {named(entry.version_before)} as champion, but "
        f"{named(champion)} is champion now{last}; remedy: compare with it and promote again"
    )


def _append(client: "MlflowClient", name: str, entry: Promotion) -> list[Promotion]:
    """Write the entry, unless another one comes first; return the valid entries after that."""
    from mlflow.exceptions import MlflowException

    for pause in (*PAUSES, None):
        failure = None
        try:
            if not entry.seen:  # not on a "missing" error: users without access get PERMISSION_DENIED instead
                _open_ledger(client, name)
            client.create_model_version(
                ledger(name),
                source=f"models:/{name}/{entry.version or entry.version_before}",
                tags={ENTRY: json.dumps(asdict(entry))},
                description=f"{entry.version or 'none'} after {entry.version_before or 'none'}: {entry.reason}",
            )
        except MlflowException as error:  # it may have been written all the same: reading tells
            failure = error
        held = holding(_entries(client, name))
        if not failure or (held and held[-1].number > entry.seen):
            return held
        if pause is None:
            raise failure
        time.sleep(pause * random.random())
    raise AssertionError("the last attempt returns or raises")


def _open_ledger(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(ledger(name), description=f"The promotions of {name}, one a version.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _is_missing(error: "MlflowException") -> bool:
    return error.error_code == "RESOURCE_DOES_NOT_EXIST"


def _entries(client: "MlflowClient", name: str) -> list[Promotion]:
    """All entries of the ledger, ordered by number."""
    found = client.search_model_versions(f"name = '{ledger(name)}'", order_by=["version_number ASC"])
    return [
        replace(Promotion(**json.loads(each.tags[ENTRY])), number=int(each.version), followed=FOLLOWED in each.tags)
        for each in found
        if ENTRY in each.tags
    ]


def holding(entries: list[Promotion]) -> list[Promotion]:
    """The valid entries of a ledger: each had seen the valid one before it."""
    held: list[Promotion] = []
    for entry in entries:
        if not held or held[-1].number <= entry.seen:
            held.append(entry)
    return held


def _follow(client: "MlflowClient", name: str, newest: Promotion) -> None:
    """Move the alias to where the newest promotion says, then mark that promotion as followed.

    The history is read again after the move, because this process may have been suspended while others promoted.
    """
    moved = 0
    while newest.number != moved:
        _insist(partial(_move_alias, client, name, newest.version))
        moved, newest = newest.number, history(client, name)[-1]
    _insist(partial(_describe, client, name, newest))
    _insist(partial(client.set_model_version_tag, ledger(name), str(moved), FOLLOWED, "true"))


def _move_alias(client: "MlflowClient", name: str, version: str | None) -> None:
    from mlflow.exceptions import MlflowException

    if version is None:
        client.delete_registered_model_alias(name, ALIAS)
        return
    try:
        client.set_registered_model_alias(name, ALIAS, version)
    except MlflowException as error:
        if not _is_missing(error):
            raise
        log.warning("version %s of %s was deleted while it became champion; the alias stays where it is", version, name)


def _describe(client: "MlflowClient", name: str, promotion: Promotion) -> None:
    """Write the promotion as tags of the model and of the version, for MLflow's UI."""
    from mlflow.exceptions import MlflowException

    text = f"version {promotion.version}" if promotion.version else "none"
    before = f" after version {promotion.version_before}" if promotion.version_before else ""
    number = f"promotion {promotion.number} in {ledger(name)}"
    text += f"{before} since {promotion.at}, by {promotion.how} ({promotion.who}; {number}): {promotion.reason}"
    client.set_registered_model_tag(name, ALIAS, text)
    if promotion.version is None:
        return
    try:
        client.set_model_version_tag(name, promotion.version, ALIAS, text)
        if promotion.comparison:
            client.set_model_version_tag(name, promotion.version, COMPARISON, json.dumps(promotion.comparison))
    except MlflowException as error:
        if not _is_missing(error):  # deleted in the meantime
            raise


def _insist(write: Callable[[], None]) -> None:
    """Call an idempotent write until MLflow accepts it."""
    from mlflow.exceptions import MlflowException

    for pause in PAUSES:
        try:
            return write()
        except MlflowException as error:
            log.info("MLflow: %s", str(error).partition("\n")[0])
            time.sleep(pause * random.random())
    return write()
