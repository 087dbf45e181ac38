"""`download-pubmed`, `download-blurb` and `convert-bc5cdr`: text and evaluation data from public sources."""

from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.cli.options import DATA, Json
from bert_pipeline.cli.output import show_facts


def add(app: typer.Typer) -> None:
    for command in (download_pubmed, download_blurb, convert_bc5cdr):
        app.command(command.__name__.replace("_", "-"), rich_help_panel=DATA)(command)


def download_pubmed(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory of the mirror; verified files in it are kept.")],
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Download from another mirror.", show_default="NLM's server")
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", help="Number of parallel connections.")] = 3,
    as_json: Json = False,
) -> None:
    """Download the PubMed baseline and update files.

    Later calls download only new files. Each file is verified by NLM's MD5; partial downloads resume.
    """
    from bert_pipeline.data.sources.pubmed.mirror import BASE_URL
    from bert_pipeline.data.sources.pubmed.mirror import download_pubmed as download

    show_facts(download(out, base_url or BASE_URL, parallel), as_json)


def download_blurb(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory that gets a folder for each data set.")],
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Data sets by folder name.", show_default="all")
    ] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Confirm that you have read the terms that the command prints.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download the BLURB data sets that are public, and verify each file.

    For the other data sets the command prints where to request them.
    """
    from bert_pipeline.evaluation.tasks.download import download_blurb as download

    show_facts(download(out, task or (), accept_terms), as_json)


def convert_bc5cdr(
    pubtator: Annotated[
        list[Path], typer.Option(metavar="PATH...", help="The original PubTator files, or their folder.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory that gets BC5CDR-chem and BC5CDR-disease.")],
    as_json: Json = False,
) -> None:
    """Convert the original BC5CDR PubTator files to BLURB's files, byte for byte."""
    from bert_pipeline.evaluation.tasks.pubtator import convert_bc5cdr as convert

    show_facts(convert(pubtator, out), as_json)
