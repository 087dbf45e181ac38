"""`bert-pipeline lineage` and `bert-pipeline reproduce`: what a registered model was made from."""

import argparse
import json
from pathlib import Path
from typing import Any

from bert_pipeline.settings import home

MODEL = "models:/NAME@champion, models:/NAME@candidate or models:/NAME/VERSION"


def add(commands: Any) -> None:
    """Add both to the sub-parsers of `bert-pipeline`."""
    lineage = commands.add_parser("lineage", help="print what a registered model was made from, each link verified")
    lineage.add_argument("model", metavar="MODEL", help=MODEL)
    lineage.add_argument("--json", action="store_true")
    lineage.set_defaults(run=_lineage)

    reproduce = commands.add_parser("reproduce", help="write what it takes to build a registered model again")
    reproduce.add_argument("model", metavar="MODEL", help=MODEL)
    reproduce.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to make")
    reproduce.set_defaults(run=_reproduce)


def _lineage(options: argparse.Namespace) -> None:
    from orchestration.lineage.chain import describe
    from orchestration.lineage.tree import show
    from orchestration.workshop import resources

    workshop = resources(home())["workshop"]
    told = describe(options.model, workshop)
    print(json.dumps(told) if options.json else show(told))
    if faults := told["faults"]:
        raise ValueError(f"{len(faults)} link(s) of the chain are broken; they are named at its end, with the remedy")


def _reproduce(options: argparse.Namespace) -> None:
    from orchestration.lineage.chain import reproduce
    from orchestration.workshop import resources

    reproduce(options.model, resources(home())["workshop"], options.out)
    print(f"{options.out}/README.md has the three commands that build {options.model} again")
