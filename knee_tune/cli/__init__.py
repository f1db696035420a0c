"""The command line: parse, call the app, print. Imports nothing heavy until a command runs."""

import atexit
import gc
import logging
import sys
import traceback
from io import TextIOWrapper
from typing import NoReturn

import typer
from typer.exceptions import TyperException

from knee_tune.errors import CONTINUES, MachineError, UserError, disk_trouble, one_line, printable
from knee_tune.urls import without_secrets

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C or SIGTERM."""


def main() -> None:
    """Run the command line; what is nobody's bug gets one line and the exit code of its error."""
    _collect_seldom()
    from typer import rich_utils

    from knee_tune.cli.commands import app
    from knee_tune.cli.flags import TypedFormatter, as_typed

    command = typer.main.get_group(app)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(TypedFormatter())
    rich_utils.RANGE_STRING = ""  # 80 columns of help have no room for it; an error tells it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of what a latin-1 terminal cannot show
    try:
        code = command(standalone_mode=False)  # its own mode frames what is wrong in a box
    except (UserError, MachineError) as error:
        _end(as_typed(str(error)), error.exit_code)
    except TyperException as error:  # in the options themselves
        _end(_advised(error), UserError.exit_code)
    except Exception as error:
        if trouble := disk_trouble(error):
            _end(f"{trouble}; {CONTINUES}", MachineError.exit_code)
        # Ours; what it says of data and servers is not.
        typer.echo(printable(without_secrets(traceback.format_exc())), err=True, nl=False)
        sys.exit(1)
    if code == INTERRUPTED:  # what Typer makes of Ctrl-C, without a word
        typer.secho("interrupted; the same command continues", err=True)
    sys.exit(code or 0)


def _end(what: str, code: int) -> NoReturn:
    if what:
        typer.secho(f"knee-tune: {one_line(what)}", err=True, fg="red")
    sys.exit(code)


def _advised(error: TyperException) -> str:
    """What it says and where to read on; empty where a group of commands showed its help."""
    what = error.format_message().strip().rstrip(".").replace("Input should", "must")
    context = getattr(error, "ctx", None)
    return f"{what}; see {context.command_path} --help" if what and context else what


def _collect_seldom() -> None:
    """Spare the garbage collector what imports leave behind: a million objects that all stay.

    Looking through them again and again takes a quarter of the time of the imports, and a second
    at the exit.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
