"""`bert-pipeline lineage` and `bert-pipeline reproduce`: what a registered model was built from."""

from pathlib import Path
from typing import Annotated

import typer

from bert_pipeline.cli.models import REGISTRY, Kind, resolve_models
from bert_pipeline.cli.options import MODELS, Json
from bert_pipeline.cli.output import show, show_json
from bert_pipeline.settings import home

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="models:/NAME/VERSION, models:/NAME@champion or models:/NAME@candidate."),
]


def add(app: typer.Typer) -> None:
    """Add both commands to `bert-pipeline`, and the registry to the models that other commands take."""
    resolve_models(REGISTRY, _directory)
    app.command(rich_help_panel=MODELS)(lineage)
    app.command(rich_help_panel=MODELS)(reproduce)


def _directory(model: str, kind: Kind, task: str) -> Path:
    from orchestration.lineage.chain import directory_of
    from orchestration.workshop import resources

    return directory_of(model, f"{kind}/{task}" if task else kind, resources(home())["workshop"])


def lineage(model: Model, as_json: Json = False) -> None:
    """Show what a registered model was built from, down to its source files.

    Every link is verified; exit with code 1 if one is broken.
    """
    from orchestration.lineage.chain import describe
    from orchestration.lineage.tree import as_text
    from orchestration.workshop import resources

    chain = describe(model, resources(home())["workshop"])
    if as_json:
        show_json(chain)
    else:
        show(as_text(chain))
    if faults := chain["faults"]:
        raise ValueError(f"{len(faults)} link(s) of the chain are broken; the answer lists them last, with remedies")


def reproduce(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Empty or new directory to write to.")],
) -> None:
    """Write the recipe, versions and checksums that rebuild a registered model bit for bit."""
    from orchestration.lineage.chain import reproduce
    from orchestration.workshop import resources

    reproduce(model, resources(home())["workshop"], out)
    show(f"{out}/README.md has the three commands that rebuild {model}")
