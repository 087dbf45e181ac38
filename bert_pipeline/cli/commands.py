"""How the commands parse and explain themselves, where that differs from typer.

- A repeatable option also takes several values in a row: `--learning-rate 1e-5 3e-5` means
  `--learning-rate 1e-5 --learning-rate 3e-5`. Click has no options with `nargs="+"`, so `several_values` rewrites the
  arguments before click parses them.
- Help is plain text, with commands and options under the heading of their `rich_help_panel`, in a terminal and on the
  reference page alike.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_type_hints

import click
import typer
from typer.core import TyperCommand, TyperGroup

from bert_pipeline.cli.options import HEADINGS

COLUMNS = 100
"""Maximum width of the help."""

Records = dict[str, list[tuple[str, str]]]
"""Heading: (term, explanation) of each line below it."""


class App(typer.Typer):
    """Its commands parse and explain themselves as described above."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any) -> Callable:
        return super().command(name, cls=cls or Command, **options)


class Formatter(click.HelpFormatter):
    def write_heading(self, heading: str) -> None:
        super().write_heading(click.style(heading, bold=True))  # click.echo removes it where the output is no terminal


class Context(click.Context):
    formatter_class = Formatter


class Command(TyperCommand):
    context_class = Context

    def __init__(self, name: str | None, **options: Any) -> None:
        super().__init__(name, **options)
        self._explain_arguments()

    def _explain_arguments(self) -> None:
        """Set the help of arguments: click 8.5 sets it to None after typer 0.25 has set it."""
        annotations = get_type_hints(self.callback, include_extras=True)
        for each in self.params:
            [about] = getattr(annotations.get(each.name or ""), "__metadata__", [None])[-1:]
            if isinstance(each, click.Argument) and isinstance(about, typer.models.ArgumentInfo):
                each.help = about.help

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = [name for each in self.params if getattr(each, "multiple", False) for name in each.opts]
        return super().parse_args(ctx, several_values(args, repeatable))

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: `format_options` writes the arguments, too."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write(_parameters(self, ctx), formatter)


class Group(TyperGroup):
    context_class = Context

    def __init__(self, **options: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": COLUMNS}
        super().__init__(**options | {"context_settings": settings})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: Records = {heading: [] for heading in HEADINGS}
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", None)
            heading = heading if isinstance(heading, str) else "Other commands"
            records.setdefault(heading, []).append((name, command.get_short_help_str(limit=COLUMNS)))
        _write(records | _parameters(self, ctx), formatter)


def several_values(arguments: Sequence[str], repeatable: Iterable[str]) -> list[str]:
    """Repeat an option before each of its values: `--task A B` becomes `--task A --task B`."""
    repeatable, option = set(repeatable), ""
    rewritten: list[str] = []
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in repeatable else ""
        elif option and rewritten[-1] != option:
            rewritten.append(option)
        rewritten.append(argument)
    return rewritten


def help_of(name: str, command: click.Command, width: int = COLUMNS) -> str:
    """The help of a command as plain text."""
    context = Context(command, info_name=name, terminal_width=width, help_option_names=["-h", "--help"])
    return click.unstyle(command.get_help(context))


def _parameters(command: click.Command, ctx: click.Context) -> Records:
    """Arguments first, then options by heading; options without a heading come last."""
    records: Records = {}
    others: Records = {}
    for parameter in command.get_params(ctx):
        if record := parameter.get_help_record(ctx):
            default = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or default
            (others if heading == "Options" else records).setdefault(heading, []).append(record)
    return records | others


def _write(records: Records, formatter: click.HelpFormatter) -> None:
    for heading, rows in records.items():
        if rows:
            with formatter.section(heading):
                formatter.write_dl(rows)
