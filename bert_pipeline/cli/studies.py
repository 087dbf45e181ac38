"""`study`: run the recipes of a study, and build its page."""

from typing import Annotated

import typer

from bert_pipeline.cli.options import EVALUATE, Json
from bert_pipeline.cli.output import show, show_json


def add(app: typer.Typer) -> None:
    app.command(rich_help_panel=EVALUATE)(study)


def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study.")],
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="First train and evaluate the recipes that are missing, one after the other; resumes."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare the arms of a study and build its page.

    Exit with code 1 and name the missing recipes if some are not trained and evaluated yet.
    """
    from bert_pipeline.settings import store
    from bert_pipeline.studies.build import make_study, run_missing, standings_of
    from bert_pipeline.studies.page import PAGE, scores_table

    if run:
        run_missing(name, store())
    made = make_study(name, store())
    if as_json:
        show_json(made.facts | {"path": str(made.path)})
        return
    for task, standings in standings_of(made.facts).items():
        show(f"{task}, in percent", scores_table(standings))
    show(*made.facts["answer"], f"page: {made.path / PAGE}")
