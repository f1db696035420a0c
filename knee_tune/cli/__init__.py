"""The command line: parse, call the app, print. Imports nothing heavy until a command runs."""

import atexit
import gc
import sys

import typer

from knee_tune.errors import UserError

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C or SIGTERM."""


def main() -> None:
    """Run the command line; bad input gets one line and exit code 2."""
    _collect_seldom()
    from knee_tune.cli.commands import app

    try:
        app()
    except UserError as error:
        typer.secho(f"knee-tune: {error}", err=True, fg="red")
        sys.exit(2)
    except SystemExit as end:  # what Typer makes of Ctrl-C, without a word
        if end.code == INTERRUPTED:
            typer.secho("interrupted; the same command continues", err=True)
        raise


def _collect_seldom() -> None:
    """Spare the garbage collector what imports leave behind: a million objects that all stay.

    Looking through them again and again takes a quarter of the time of the imports, and a second
    at the exit.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
