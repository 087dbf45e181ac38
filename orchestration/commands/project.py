"""`bert-pipeline init`, `run` and `ui`: write a project, run its graph, and show it in a browser."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bert_pipeline.cli.options import PROJECT
from bert_pipeline.cli.output import show

if TYPE_CHECKING:
    from bert_pipeline.project import NewProject


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
    minutes: Annotated[float, typer.Option(metavar="M", min=0.1, help="With --text: minutes of pretraining.")] = 30,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --text: one GPU that will train, such as A100-80GB (`plan --hardware` names all) "
            "[default: this machine, whose speed is measured].",
        ),
    ] = None,
    task: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --text: folder of an evaluation task, which is copied."),
    ] = None,
    language: Annotated[
        str, typer.Option(metavar="L", help="With --text: drop documents in other languages than this (such as en).")
    ] = "",
) -> None:
    """Write a project: a folder for recipes, tasks, studies and everything that is built from them.

    With --text, the recipe fits the text, the machine and the minutes: init reads a sample of the text, times training,
    and chooses the size of the model with the lowest predicted loss. Each choice has its reason as a comment.
    """
    from bert_pipeline.project import NewProject
    from orchestration.local.home import prepare

    project = NewProject.check(folder, text, task)
    root = project.write(*_fitted(project, minutes, hardware, language)) if text else project.write()
    prepare(root / "workspace")
    recipe = [f"  cat recipes/{root.name}.toml"] if text else []
    show(f"{root} is a project now. Next:", f'  cd "{folder}"', *recipe, "  bert-pipeline run", "  bert-pipeline ui")


def _fitted(project: "NewProject", minutes: float, hardware: str | None, language: str) -> tuple[str, str]:
    """The recipe and the accelerate config for the project's text."""
    from bert_pipeline.fitting.choice import choose, recipe_text
    from bert_pipeline.fitting.fields import choose_fields
    from bert_pipeline.fitting.machine import config_of_gpus, suitable_config
    from bert_pipeline.planning.hardware import find_hardware
    from bert_pipeline.recipe import CorpusRecipe
    from bert_pipeline.settings import with_accelerate_config

    gpu = find_hardware(hardware) if hardware else None
    accelerate = config_of_gpus(1) if gpu else suitable_config()
    text_fields, id_field = choose_fields(str(project.text))
    corpus = CorpusRecipe(path=str(project.text), text_fields=text_fields, id_field=id_field, language=language)
    with with_accelerate_config(accelerate):
        choice = choose(corpus, minutes, project.task.name if project.task else "", gpu)
    return recipe_text(choice, project.text_path), accelerate


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
    from orchestration.local.pages import serve_pages

    def say(line: str) -> None:
        show(line)
        sys.stdout.flush()

    say("Starting Dagster and MLflow; Ctrl-C stops both.")
    serve_pages(home(), dagster_port, mlflow_port, lambda name, address: say(f"{name}: {address}"))


def _default_recipe() -> str:
    from bert_pipeline.recipe_files import toml_files
    from bert_pipeline.settings import recipe_folders

    own = [path.stem for folder in recipe_folders() for path in toml_files(folder)]
    if len(own) > 1:
        raise ValueError(f"this project has {len(own)} recipes; remedy: name one of {', '.join(own)}")
    return own[0] if own else "demo"
