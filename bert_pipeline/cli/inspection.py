"""`plan`, `inspect` and `dropped`: look ahead, and look into artifacts."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.cli.options import INSPECT, Json, recipe_named
from bert_pipeline.cli.output import facts_table, show, show_json


def add(app: typer.Typer) -> None:
    for command in (plan, inspect, dropped):
        app.command(rich_help_panel=INSPECT)(command)


def plan(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a recipe or of a study, or path of a recipe file.")
    ],
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Estimate training time on this GPU only.", show_default="all known"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Worker processes of the data stages.", show_default="BERT_PIPELINE_WORKERS"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate text, disk, memory and time of a recipe or a study before a run.

    Exit with code 1 if the artifacts do not fit on the disk.
    """
    from bert_pipeline.experiments import find_study, study_files
    from bert_pipeline.planning.hardware import HARDWARE, find_hardware
    from bert_pipeline.planning.plan import assert_fits, make_plan
    from bert_pipeline.planning.studies import assert_study_fits, plan_study, show_study
    from bert_pipeline.planning.table import show as plan_for_people
    from bert_pipeline.settings import home

    devices = {hardware: find_hardware(hardware)} if hardware else HARDWARE
    if recipe in study_files():
        of_study = plan_study(find_study(recipe), home(), devices, workers)
        if as_json:
            show_json(of_study)
        else:
            show(*show_study(of_study))
        assert_study_fits(of_study)
        return
    estimate = make_plan(recipe_named(recipe), home(), devices, workers)
    if as_json:
        show_json(estimate)
    else:
        show(plan_for_people(estimate))
    assert_fits(estimate)


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the artifact.")],
    rows: Annotated[int, typer.Option(metavar="N", help="Number of rows to print.")] = 3,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of the tokenizer.", show_default="found beside the artifact"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the facts of an artifact and its first rows, with token ids decoded."""
    from bert_pipeline.report.inspection import inspect

    found = inspect(directory, tokenizer, rows)
    if as_json:
        show_json(found)
        return
    show(f"{found['kind']} {found['fingerprint']}, built {found['made']['at']} in {found['made']['seconds']} s")
    show(facts_table(found["facts"]))
    show(*(json.dumps(row, indent=2, ensure_ascii=False) + "\n" for row in found["rows"]))


def dropped(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a raw_corpus.")],
    document_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="Only the document of this id.", show_default=False)
    ] = "",
    reason: Annotated[
        str, typer.Option(metavar="REASON", help="Only reasons that contain this text.", show_default=False)
    ] = "",
    rows: Annotated[int, typer.Option(metavar="N", help="Number of records to print.")] = 10,
    as_json: Json = False,
) -> None:
    """List the records that the corpus left out and the files that it did not read, with the reason for each."""
    from bert_pipeline.data.corpus.dropped import Query, describe_dropped, find_dropped

    found = find_dropped(directory, Query(document_id, reason), rows)
    if as_json:
        show_json(found)
    else:
        show(*describe_dropped(found, full_text=bool(document_id)))
