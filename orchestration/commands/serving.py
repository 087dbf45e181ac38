"""`bert-pipeline serve`: answer requests to a registered model on this machine."""

import sys
from typing import Annotated

import typer

from bert_pipeline.cli.options import MODELS
from bert_pipeline.cli.output import show


def add(app: typer.Typer) -> None:
    """Add the command to `bert-pipeline`."""
    app.command(rich_help_panel=MODELS)(serve)


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@champion or models:/NAME/VERSION.")],
    port: Annotated[int, typer.Option(metavar="PORT", help="Port on this machine.")] = 8080,
) -> None:
    """Answer requests to a registered model over HTTP until Ctrl-C, on this machine only.

    It is `mlflow models serve` in this environment. The alias is read once, at the start.
    """
    from bert_pipeline.settings import home
    from orchestration.commands.promotion import existing_version
    from orchestration.local.pages import serve_model

    def say(name: str, address: str) -> None:
        show(f"{name}: {address}/invocations (Ctrl-C stops it)")
        sys.stdout.flush()

    serve_model(home(), existing_version(model), port, say)
