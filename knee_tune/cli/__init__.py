"""The command line: parse, call the app, print. Imports nothing heavy until a command runs."""

import sys

import typer

from knee_tune.errors import MachineError, UserError

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C or SIGTERM."""


def main() -> None:
    """Run the command line; what is nobody's bug gets one line and the exit code of its error."""
    from knee_tune.cli.commands import app

    try:
        app()
    except (UserError, MachineError) as error:
        typer.secho(f"knee-tune: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except SystemExit as end:  # what Typer makes of Ctrl-C, without a word
        if end.code == INTERRUPTED:
            typer.secho("interrupted; the same command continues", err=True)
        raise
