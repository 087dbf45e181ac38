"""`bert-pipeline init`, `run` and `ui`: write a project, run its graph, and show it in a browser."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.cli.options import PROJECT
from bert_pipeline.cli.output import show


def add(app: typer.Typer) -> None:
    """Add the commands to `bert-pipeline`."""
    app.command(rich_help_panel=PROJECT)(init)
    app.command(rich_help_panel=PROJECT)(run)
    app.command(rich_help_panel=PROJECT)(ui)


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


def run(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Name of a recipe [default: the only one of the project, else demo]."),
    ] = None,
) -> None:
    """Build everything for a recipe, from text to a registered model.

    Existing artifacts are kept, and a training that was stopped resumes.
    """
    from bert_pipeline.experiments import find_recipe
    from bert_pipeline.settings import home
    from orchestration.local.display import Lines, Live
    from orchestration.local.run import run_graph
    from orchestration.report import report

    name = recipe or _default_recipe()
    find_recipe(name)  # a wrong name or an invalid file is reported before anything starts
    if sys.stderr.isatty():
        with Live() as live:
            run_graph(name, home(), live)
    else:
        run_graph(name, home(), Lines())
    show(report(name, home()))


def ui(
    dagster_port: Annotated[int, typer.Option(metavar="PORT", help="Port of Dagster on this machine.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(metavar="PORT", help="Port of MLflow on this machine.")] = 5000,
) -> None:
    """Show the graph, its runs and its models in a browser: start Dagster and MLflow until Ctrl-C.

    Both listen on this machine only.
    """
    from bert_pipeline.settings import home
    from orchestration.local.pages import serve

    def say(line: str) -> None:
        show(line)
        sys.stdout.flush()

    say("Starting Dagster and MLflow; Ctrl-C stops both.")
    serve(home(), dagster_port, mlflow_port, lambda name, address: say(f"{name}: {address}"))


def _default_recipe() -> str:
    from bert_pipeline.recipe_files import toml_files
    from bert_pipeline.settings import recipe_folders

    own = [path.stem for folder in recipe_folders() for path in toml_files(folder)]
    if len(own) > 1:
        raise ValueError(f"this project has {len(own)} recipes; remedy: name one of {', '.join(own)}")
    return own[0] if own else "demo"
