"""`bert-pipeline register`, `promote` and `champions`: register a task model, choose the champion by hand, and list all
champions so far.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from bert_pipeline.cli.options import MODELS, Json
from bert_pipeline.cli.output import show, show_json
from bert_pipeline.core.tables import Table

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from orchestration.registry.ledger import Promotion
    from orchestration.workshop import Workshop

MODEL = re.compile(r"models:/(?P<name>[^/:@]+)(/(?P<version>\d+)|@(?P<alias>[^/:@]+))?")


class Named(NamedTuple):
    """A registered model, and optionally one of its versions: by number or by alias."""

    name: str
    version: str | None
    alias: str | None


def add(app: typer.Typer) -> None:
    """Add the commands to `bert-pipeline`."""
    app.command(rich_help_panel=MODELS)(register)
    app.command("promote", rich_help_panel=MODELS)(promote_by_hand)
    app.command(rich_help_panel=MODELS)(champions)


def register(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a task model, see finetune.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the registered model.", show_default="PRETRAINED-TASK"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print name and version as JSON.")] = False,
) -> None:
    """Register a task model in MLflow's registry as a new version with the alias candidate.

    A task model that is registered already keeps its version.
    """
    from orchestration.registry.task_models import register_task_model

    with _workshop() as workshop:
        version = register_task_model(workshop.mlflow, directory, name)
    if as_json:
        show_json({"name": version.name, "version": int(version.version)})
        return
    show(f"models:/{version.name}/{version.version}, alias candidate")
    show(f"use it: bert-pipeline promote models:/{version.name}@candidate")


def promote_by_hand(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="models:/NAME/VERSION or models:/NAME@ALIAS; with --undo models:/NAME."),
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; recorded with the promotion.")] = "no reason given",
    take_back: Annotated[
        bool, typer.Option("--undo", help="Give the alias back to the champion before the last promotion.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record of the promotion as JSON.")] = False,
) -> None:
    """Make a registered version the champion, or undo the last promotion."""
    from orchestration.registry.champion import judge, rounded
    from orchestration.registry.promotion import promote, undo

    named = _parse(model)
    with _mlflow() as (client, store):
        name = named.name
        if take_back:
            if named.version or named.alias:
                raise ValueError(f"{model} names a version; remedy: --undo models:/{name}")
            done = undo(client, name)
        else:
            version = _version(client, named)
            verdict = judge(client, store, name, version)
            done = promote(client, name, version, reason, verdict.champion, comparison=rounded(verdict.compared))
            if not (verdict.better or as_json):
                show(f"the promotion rule would have kept it candidate: {verdict.reason}")
    if as_json:
        show_json(asdict(done))
    else:
        before = _version_or_nobody(done.version_before)
        show(f"champion of {name} is {_version_or_nobody(done.version)}, after {before} (promotion {done.number})")


def champions(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME.")], as_json: Json = False
) -> None:
    """List the promotions of a registered model, with reasons, and its champion."""
    from orchestration.registry.ledger import find_champion, history

    name = _parse(model).name
    with _mlflow() as (client, _):
        champion, promotions = find_champion(client, name), history(client, name)
    if as_json:
        show_json({"champion": champion, "promotions": [asdict(each) for each in promotions]})
    else:
        show(promotion_table(promotions), *champion_lines(name, champion, promotions))


def existing_version(model: str) -> str:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION names, as models:/NAME/VERSION.

    Raises PromotionError or ValueError if there is none.
    """
    from orchestration.registry.champion import version_or_none

    named = _parse(model)
    with _mlflow() as (client, _):
        version = _version(client, named)
        if version_or_none(client, named.name, version) is None:
            raise ValueError(f"{named.name} has no version {version}; remedy: models:/{named.name}@candidate")
    return f"models:/{named.name}/{version}"


def promotion_table(promotions: "Sequence[Promotion]") -> Table:
    """One row for each promotion, the newest last."""
    rows = [
        (
            str(each.number),
            each.at,
            each.version or "-",
            each.version_before or "-",
            f"{each.how}, {each.who}",
            each.reason,
        )
        for each in promotions
    ]
    return Table(("promotion", "at", "champion", "before", "by", "reason"), rows)


def champion_lines(name: str, champion: str | None, promotions: "Sequence[Promotion]") -> Iterator[str]:
    """The current champion, and a warning if it is not the version that the last promotion chose."""
    yield f"champion of {name}: {_version_or_nobody(champion)}"
    if promotions and promotions[-1].version != champion:
        last = promotions[-1]
        why = "moved by hand, or deleted" if last.followed else "the last promotion is running or was interrupted"
        yield (
            f"the champion is not the version that promotion {last.number} chose ({why}); remedy: "
            f"bert-pipeline promote models:/{name}/VERSION"
        )


def _version_or_nobody(version: str | None) -> str:
    return "nobody" if version is None else f"version {version}"


def _parse(model: str) -> Named:
    if found := MODEL.fullmatch(model):
        return Named(**found.groupdict())
    raise ValueError(f"{model!r} names no registered model; remedy: models:/NAME/VERSION, as in models:/bert-demo/1")


def _version(client: "MlflowClient", named: Named) -> str:
    from orchestration.registry.ledger import find_version

    if named.version:
        return named.version
    if named.alias:
        return find_version(client, named.name, named.alias)
    here = f"models:/{named.name}"
    raise ValueError(f"{here} names no version; remedy: {here}/1 or {here}@candidate")


@contextmanager
def _mlflow() -> "Iterator[tuple[MlflowClient, Path]]":
    """A client of the registry, and the artifact store. Raises RuntimeError, in one line, if MLflow fails."""
    with _workshop() as workshop:
        yield workshop.mlflow.client(), Path(workshop.store)


@contextmanager
def _workshop() -> "Iterator[Workshop]":
    """Raises RuntimeError, in one line, if MLflow fails."""
    from mlflow.exceptions import MlflowException

    from bert_pipeline.settings import home
    from orchestration.workshop import resources

    workshop = resources(home())["workshop"]
    try:
        yield workshop
    except MlflowException as error:
        message = str(error).partition("\n")[0]
        raise RuntimeError(
            f"MLflow at {workshop.mlflow.tracking_uri}: {message}; remedy: check that it runs, and MLFLOW_TRACKING_URI"
        ) from error
