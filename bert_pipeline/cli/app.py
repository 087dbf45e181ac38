"""All commands of `bert-pipeline`: the commands of this package, and those that other packages add.

A plug-in is an entry point of the group `bert_pipeline.commands`: a function `add(app: typer.Typer)` that registers
commands on `app`. Like every `add` here, it imports heavy libraries only inside its commands.
"""

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated

import click
import typer

from bert_pipeline.cli import artifacts, data, evaluation, inspection, stages, studies
from bert_pipeline.cli.commands import App, Group
from bert_pipeline.core.printable import one_record

PROGRAM = "bert-pipeline"
PLUGINS = "bert_pipeline.commands"

Add = Callable[[typer.Typer], None]


def command_line() -> click.Group:
    """The group of all commands. A plug-in that fails is reported on standard error and left out."""
    group = _group(_global_options, stages.add, inspection.add, evaluation.add, studies.add, data.add, artifacts.add)
    for plugin in entry_points(group=PLUGINS):
        try:
            commands = _group(plugin.load()).commands
            if taken := commands.keys() & group.commands.keys():
                raise ValueError(f"{', '.join(sorted(taken))}: a command of this name exists")
            group.commands.update(commands)
        except Exception as error:  # whatever a plug-in does wrong, the other commands work
            argparse = isinstance(error, AttributeError) and error.name == "add_parser"
            reason = "it adds argparse parsers; remedy: register commands on a typer.Typer" if argparse else error
            message = f"{PROGRAM}: the commands of {plugin.value} are not available: {reason}"
            print(one_record(message), file=sys.stderr)
    return group


def _group(*adders: Add) -> click.Group:
    app = App(cls=Group, add_completion=False, rich_markup_mode=None, no_args_is_help=True, suggest_commands=False)
    for add in adders:
        add(app)
    return typer.main.get_group(app)


def _global_options(app: typer.Typer) -> None:
    def bert_pipeline(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_print_version, is_eager=True, help="Print version and commit; exit."),
        ] = False,
    ) -> None:
        """Train domain BERTs from scratch: one command for each stage, from text to an evaluated model."""

    app.callback()(bert_pipeline)


def _print_version(wanted: bool) -> None:
    if wanted:
        from bert_pipeline.store.provenance import PACKAGE, code_of

        code = code_of(PACKAGE)
        print(f"{PROGRAM} {code['version'] or 'of unknown version'}, commit {code['commit'] or 'unknown'}")
        raise typer.Exit
