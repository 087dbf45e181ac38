"""`bert-pipeline promote` and `bert-pipeline champions`: who is champion, by hand, and how it came about."""

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from orchestration.registry.ledger import Promotion

MODEL = re.compile(r"models:/(?P<name>[^/:@]+)(/(?P<version>\d+)|@(?P<alias>[^/:@]+))?")


class Named(NamedTuple):
    """A registered model, and one of its versions where one is named: by number, or by alias."""

    name: str
    version: str | None
    alias: str | None


def add(commands: Any) -> None:
    """Add both to the sub-parsers of `bert-pipeline`."""
    promote = commands.add_parser("promote", help="make a registered version the champion, or take that back")
    promote.add_argument(
        "model", metavar="models:/NAME/VERSION", help="or models:/NAME@ALIAS; with --undo models:/NAME"
    )
    promote.add_argument(
        "--reason", default="no reason given", metavar="TEXT", help="why, for those who come after you"
    )
    promote.add_argument("--undo", action="store_true", help="give the alias back to the champion before the last one")
    promote.add_argument("--json", action="store_true", help="print the record of the promotion")
    promote.set_defaults(run=_promote)

    champions = commands.add_parser("champions", help="list the champions of a registered model, and why they are")
    champions.add_argument("model", metavar="models:/NAME")
    champions.add_argument("--json", action="store_true")
    champions.set_defaults(run=_champions)


def _promote(options: argparse.Namespace) -> None:
    from orchestration.registry.champion import judge, rounded
    from orchestration.registry.ledger import find_version
    from orchestration.registry.promotion import promote, undo

    named = _parse(options.model)
    with _mlflow() as (client, store):
        name = named.name
        if options.undo:
            if named.version or named.alias:
                raise ValueError(f"{options.model} names a version; remedy: --undo models:/{name}")
            done = undo(client, name)
        else:
            version = named.version or (find_version(client, name, named.alias) if named.alias else None)
            if version is None:
                raise ValueError(
                    f"{options.model} names no version; remedy: models:/{name}/1 or models:/{name}@candidate"
                )
            verdict = judge(client, store, name, version)
            done = promote(
                client, name, version, options.reason, verdict.champion, comparison=rounded(verdict.compared)
            )
            if not (verdict.better or options.json):
                print(f"by the rule it would have stayed candidate: {verdict.reason}")
    if options.json:
        print(json.dumps(asdict(done)))
    else:
        print(
            f"champion of {name} is {_told(done.version)}, after {_told(done.version_before)} (promotion {done.number})"
        )


def _champions(options: argparse.Namespace) -> None:
    from orchestration.registry.ledger import find_champion, history

    name = _parse(options.model).name
    with _mlflow() as (client, _):
        champion, held = find_champion(client, name), history(client, name)
    if options.json:
        print(json.dumps({"champion": champion, "promotions": [asdict(each) for each in held]}))
        return
    print(show(name, champion, held))


def show(name: str, champion: str | None, held: "list[Promotion]") -> str:
    """The history as a table, the newest last, and where the alias is."""
    head = ("", "at", "champion", "before", "by", "reason")
    rows = [
        (
            str(each.number),
            each.at,
            each.version or "-",
            each.version_before or "-",
            f"{each.how}, {each.who}",
            each.reason,
        )
        for each in held
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
    lines.append(f"champion of {name}: {_told(champion)}")
    if held and held[-1].version != champion:
        why = "moved by hand, or deleted" if held[-1].followed else "the last promotion is under way or was interrupted"
        lines.append(
            f"which is not where promotion {held[-1].number} led ({why}); remedy: bert-pipeline promote "
            f"models:/{name}/VERSION settles it"
        )
    return "\n".join(lines)


def _told(version: str | None) -> str:
    return "nobody" if version is None else f"version {version}"


def _parse(model: str) -> Named:
    if found := MODEL.fullmatch(model):
        return Named(**found.groupdict())
    raise ValueError(f"{model!r} names no registered model; remedy: models:/NAME/VERSION, as in models:/bert-demo/1")


@contextmanager
def _mlflow() -> "Iterator[tuple[MlflowClient, Path]]":
    """A client of the registry, and the store of artifacts. What MLflow refuses is told in one line."""
    from mlflow.exceptions import MlflowException

    from bert_pipeline.settings import home
    from orchestration.workshop import resources

    workshop = resources(home())["workshop"]
    try:
        yield workshop.mlflow.client(), Path(workshop.store)
    except MlflowException as error:
        told = str(error).partition("\n")[0]
        raise RuntimeError(
            f"MLflow at {workshop.mlflow.tracking_uri}: {told}; remedy: see that it runs, and MLFLOW_TRACKING_URI"
        ) from error
