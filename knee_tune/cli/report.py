"""``knee-tune report``: what a study has found out, as a page to read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from knee_tune.cli.lines import open_in_browser
from knee_tune.cli.options import DEFAULT_HOME, HomeOption, StorageOption, StudyArgument, path_of


class Format(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MD = "md"
    JSON = "json"


def report(
    study: StudyArgument = None,
    form: Annotated[
        Format,
        typer.Option("--format", help="html: one file with figures. md: text. json: all numbers."),
    ] = Format.HTML,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path_of,
            metavar="PATH",
            help="File to write, or - to print. (default: HOME/reports/STUDY.FORMAT)",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Write what a study has found out: the setting to use, how sure that is, what it cost.

    The setting is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.app.home import Home, Places
    from knee_tune.app.report import study_report, text_of, usual_path, write_report
    from knee_tune.errors import UserError, printable

    printed = out == Path("-")
    if show and printed:
        raise UserError("--open: needs a file; leave out --out -")
    places = Places.of(Home(home), storage=storage, tracking_uri=None)
    found = study_report(places, study)
    if printed:
        typer.echo(text_of(found, form.value), nl=False)
        return
    path = write_report(found, out or usual_path(places, found.study, form.value), form.value)
    typer.echo(printable(f"report: {path}"))
    if show:
        open_in_browser(path)
