"""The command line: parse, call the app, print. Imports nothing heavy until a command runs."""

import atexit
import gc
import sys
import traceback
from io import TextIOWrapper

import typer

from knee_tune.errors import MachineError, UserError, one_line, printable
from knee_tune.urls import without_secrets

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C or SIGTERM."""


def main() -> None:
    """Run the command line; what is nobody's bug gets one line and the exit code of its error."""
    _collect_seldom()
    from knee_tune.cli.commands import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of what a latin-1 terminal cannot show
    try:
        app()
    except (UserError, MachineError) as error:
        typer.secho(f"knee-tune: {one_line(str(error))}", err=True, fg="red")
        sys.exit(error.exit_code)
    except SystemExit as end:  # what Typer makes of Ctrl-C, without a word
        if end.code == INTERRUPTED:
            typer.secho("interrupted; the same command continues", err=True)
        raise
    except Exception:  # ours; what it says of data and servers is not
        typer.echo(printable(without_secrets(traceback.format_exc())), err=True, nl=False)
        sys.exit(1)


def _collect_seldom() -> None:
    """Spare the garbage collector what imports leave behind: a million objects that all stay.

    Looking through them again and again takes a quarter of the time of the imports, and a second
    at the exit.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
