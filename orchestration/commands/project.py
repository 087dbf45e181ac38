"""`bert-pipeline init`, `run` and `ui`: write a project, run its graph, and show it in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.cli.options import PROJECT
from bert_pipeline.cli.output import show


def add(app: typer.Typer) -> None:
    """Add the commands to `bert-pipeline`."""
    app.command(rich_help_panel=PROJECT)(init)


def init(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="New or empty folder; its name is the project's.")],
    text: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File or folder with your text; writes the recipe recipes/NAME.toml for it."),
    ] = None,
) -> None:
    """Write a project: a folder for recipes, tasks, studies and everything that is built from them."""
    from bert_pipeline.project import create_project
    from orchestration.local.home import prepare

    root = create_project(folder, text)
    prepare(root / "workspace")
    show(f"{root} is a project now. Next:", f'  cd "{folder}"', "  bert-pipeline run", "  bert-pipeline ui")
