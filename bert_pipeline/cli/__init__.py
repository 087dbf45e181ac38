"""The command line `bert-pipeline`: each stage by itself, from explicit directories to an explicit directory.

It needs no orchestrator and no tracker. Answers go to standard output (`--json`: for programs), progress and errors to
standard error. Exit codes: 0 done, 1 an error in one line, 2 a usage error.

`import bert_pipeline.cli` loads typer only; a command imports the library when it runs, so that `--help` is fast.
"""

import sys

import click

from bert_pipeline.cli.app import PROGRAM, command_line
from bert_pipeline.cli.progress import progress_on_stderr
from bert_pipeline.core.printable import one_record, printable

INSTALL = "remedy: pip install bert-pipeline, which brings every package that its commands need"


def main(arguments: list[str] | None = None) -> int:
    """Run one command (default: `sys.argv`) and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((word for word in arguments if not word.startswith("-")), "")
    group = command_line()
    try:
        with progress_on_stderr(), group.make_context(PROGRAM, list(arguments)) as context:
            group.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        return _usage_error(command, error)
    except ModuleNotFoundError as error:
        return _error(command, f"{error}; {INSTALL}")
    except (ValueError, OSError, RuntimeError) as error:
        return _error(command, str(error))
    return 0


def _error(command: str, message: str) -> int:
    print(one_record(f"{PROGRAM} {command}: {message}"), file=sys.stderr)
    return 1


def _usage_error(command: str, error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    where = error.ctx.command_path if error.ctx else f"{PROGRAM} {command}"
    print(printable(f"{where}: {error.format_message()}"), file=sys.stderr)
    print(printable(f"Try '{where} --help' for help."), file=sys.stderr)
    return 2
