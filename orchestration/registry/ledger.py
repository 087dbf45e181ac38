"""The ledger of promotions: of two at once, one wins, and all agree which.

MLflow's aliases are last-write-wins: of two promotions at once both succeed, and one is lost without a word. So the
alias decides nothing. What decides is the registered model `NAME.champions`, whose versions are the promotions: MLflow
numbers the versions of a model without doubles, whatever its database (the number is part of the primary key), and
writes their tags in the same transaction. Each entry tells the newest number that its writer had seen, and it holds if
no entry that holds came between. All who read the ledger, at any time and after any crash, agree on who won; nobody
waits for a lock that the dead still hold.

The alias follows the ledger: the winner moves it and marks its entry as followed. Where the winner died before that,
the next one who promotes does it in its place. Between two marks the alias may be moved by hand, in MLflow's pages:
then the hand's word counts, as the champion that the next promotion starts from.
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
"""Tags of an entry of the ledger."""
COMPARISON = "champion.comparison"
"""Tag of a version; the tag ALIAS tells in words how it became champion."""
PATIENCE = 10.0
"""Seconds in which a promotion should have moved the alias; after them it is taken for dead."""
PAUSES = tuple(0.1 * 2**attempt for attempt in range(7))
"""Seconds between attempts to write: of many at once, MLflow turns some away (locked database, number just taken)."""

log = logging.getLogger("bert_pipeline.registry")  # under the library's name, so that Dagster shows it


class PromotionError(ValueError):
    """A promotion that cannot be."""


class PromotionConflict(PromotionError):
    """Another version is champion than the one that was to be replaced."""


@dataclass(frozen=True)
class Promotion:
    """An entry of the ledger."""

    version: str | None
    """The champion from now on; None where there is none any more."""
    version_before: str | None
    reason: str
    how: Literal["rule", "hand", "undo"]
    who: str
    at: str
    """ISO 8601, UTC, by the clock of the writer; what counts is the number."""
    comparison: Mapping[str, Any]
    """By task, challenger beside champion, as far as it was known."""
    undoes: int | None = None
    """Number of the promotion that this one takes back."""
    token: str = ""
    """By which its writer knows it again."""
    seen: int = 0
    """The newest number in the ledger when its writer looked who is champion."""
    number: int = 0
    followed: bool = False
    """The alias has gone where this promotion says."""


def ledger(name: str) -> str:
    return f"{name}.champions"


def history(client: "MlflowClient", name: str) -> list[Promotion]:
    """The promotions that hold, the oldest first. What came too late is left out."""
    return holding(_entries(client, name))


def confirmed_promotions(client: "MlflowClient", name: str) -> list[Promotion]:
    """The entries of the ledger, once the alias has followed the last that holds."""
    dead_at = time.monotonic() + PATIENCE
    while (held := holding(entries := _entries(client, name))) and not held[-1].followed:
        if time.monotonic() < dead_at:
            time.sleep(0.05)
        else:
            log.warning("promotion %d of %s was interrupted and is now gone on with", held[-1].number, name)
            _follow(client, name, held[-1])
    return entries


def find_champion(client: "MlflowClient", name: str) -> str | None:
    """The version that bears the alias. It may be one that was deleted. Raises PromotionError without such a model."""
    return _aliases(client, name).get(ALIAS)


def find_version(client: "MlflowClient", name: str, alias: str) -> str:
    """Raises PromotionError where the model, or the alias, does not exist."""
    aliases = _aliases(client, name)
    if alias not in aliases:
        raise PromotionError(f"{name} has no alias {alias}; remedy: one of {', '.join(aliases) or 'none'}")
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
    """Compare and set: into the ledger, where nothing came after `entries`, and then the alias.

    The caller must have read `entries` (settled) before it looked who is champion. Raises PromotionConflict.
    """
    held = _append(client, name, replace(entry, seen=entries[-1].number if entries else 0))
    for one in held:
        if one.token == entry.token:
            _follow(client, name, one)
            return replace(one, followed=True)
    raise conflict(name, entry, held[-1].version, held)


def conflict(name: str, entry: Promotion, champion: str | None, held: list[Promotion]) -> PromotionConflict:
    """Another is champion than the one that the entry was to follow."""

    def told(version: str | None) -> str:
        return "none" if version is None else f"version {version}"

    last = f" ({held[-1].how} of {held[-1].who} at {held[-1].at}: {held[-1].reason})" if held else ""
    return PromotionConflict(
        f"{told(entry.version)} of {name} was to follow {told(entry.version_before)} as champion, but {told(champion)} "
        f"is champion now{last}; remedy: compare with it and promote again"
    )


def _append(client: "MlflowClient", name: str, entry: Promotion) -> list[Promotion]:
    """What holds after the entry was written, or after another made it too late."""
    from mlflow.exceptions import MlflowException

    for pause in (*PAUSES, None):
        failure = None
        try:
            if not entry.seen:  # not when MLflow says that it is missing: who may not know hears "permission denied"
                _open_ledger(client, name)
            client.create_model_version(
                ledger(name),
                source=f"models:/{name}/{entry.version or entry.version_before}",
                tags={ENTRY: json.dumps(asdict(entry))},
                description=f"{entry.version or 'none'} after {entry.version_before or 'none'}: {entry.reason}",
            )
        except MlflowException as error:  # it may have been written nevertheless: the look tells
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
    """All of the ledger, in the order of their numbers."""
    found = client.search_model_versions(f"name = '{ledger(name)}'", order_by=["version_number ASC"])
    return [
        replace(Promotion(**json.loads(each.tags[ENTRY])), number=int(each.version), followed=FOLLOWED in each.tags)
        for each in found
        if ENTRY in each.tags
    ]


def holding(entries: list[Promotion]) -> list[Promotion]:
    """Those of a ledger that hold."""
    held: list[Promotion] = []
    for entry in entries:
        if not held or held[-1].number <= entry.seen:
            held.append(entry)
    return held


def _follow(client: "MlflowClient", name: str, newest: Promotion) -> None:
    """Let the alias go where the newest promotion says, and mark that.

    The look after the move is for the case that this process slept while others went on.
    """
    moved = 0
    while newest.number != moved:
        _insist(partial(_move_alias, client, name, newest.version))
        moved, newest = newest.number, history(client, name)[-1]
    _insist(partial(_tell, client, name, newest))
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
        log.warning("version %s of %s was deleted as it became champion; the alias stays where it is", version, name)


def _tell(client: "MlflowClient", name: str, promotion: Promotion) -> None:
    """The promotion as tags of the model and of the version, where people look."""
    from mlflow.exceptions import MlflowException

    told = f"version {promotion.version}" if promotion.version else "none"
    before = f" after version {promotion.version_before}" if promotion.version_before else ""
    number = f"promotion {promotion.number} in {ledger(name)}"
    told += f"{before} since {promotion.at}, by {promotion.how} ({promotion.who}; {number}): {promotion.reason}"
    client.set_registered_model_tag(name, ALIAS, told)
    if promotion.version is None:
        return
    try:
        client.set_model_version_tag(name, promotion.version, ALIAS, told)
        if promotion.comparison:
            client.set_model_version_tag(name, promotion.version, COMPARISON, json.dumps(promotion.comparison))
    except MlflowException as error:
        if not _is_missing(error):  # deleted in the meantime
            raise


def _insist(write: Callable[[], None]) -> None:
    """Write what may be written twice; again where MLflow turned it away."""
    from mlflow.exceptions import MlflowException

    for pause in PAUSES:
        try:
            return write()
        except MlflowException as error:
            log.info("MLflow: %s", str(error).partition("\n")[0])
            time.sleep(pause * random.random())
    return write()
