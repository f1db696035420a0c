"""Commands that look: at a study, its report, Optuna Dashboard, the tasks, the machine."""

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from knee_tune.cli.console import ConsoleLines, PlainConsole, open_in_browser
from knee_tune.cli.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    OpenOption,
    StorageOption,
    StudyArgument,
    TrackingOption,
    path_of,
)
from knee_tune.errors import UserError, one_line, printable

if TYPE_CHECKING:
    from knee_tune.commands.doctor import Check
    from knee_tune.commands.look import TaskInfo


def status(
    study: StudyArgument = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every trial, not only the best and the newest.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="What runs now: who trains it, how far, how fast. Ends with Ctrl-C."
        ),
    ] = False,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """How a study stands: trials, the winner, steps trained.

    The winner is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.cli.summary import print_status
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import keep_looking, look_at

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    if watch:
        from knee_tune.cli.status_watch import watch_status

        if every or json:
            raise UserError("`watch`: shows what runs now; leave `all` and `json` out")
        watch_status(PlainConsole(), keep_looking(places, study))
        return
    record = look_at(places, study)
    if json:
        typer.echo(json_module.dumps(record.status_as_json()))
    else:
        print_status(PlainConsole(), record, every=every)


Setting = Literal["torch", "hf", "torchtitan", "megatron", "nanotron", "lightning", "yaml", "json"]
"""What the winner's schedule is written for."""


def best(
    study: StudyArgument = None,
    as_: Annotated[
        Setting | None,
        typer.Option(
            "--as", help="Print its schedule as a setting to paste; notes go to standard error."
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            parser=path_of,
            metavar="DIR",
            help="Write its model into a new folder, as other programs and tasks read it (bert).",
        ),
    ] = None,
    row: Annotated[
        int | None, typer.Option(min=1, help="With --save: the row of a comparison, from 1.")
    ] = None,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """The winner so far: the seed LR and explore fraction to use, its schedule as a setting, or its
    model.

    It is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import look_at_search

    if save is not None:
        from knee_tune.commands.export import save_model

        places = Places.of(Home(home), storage=storage, tracking_uri="none")
        saved = save_model(places, study, save, row=row)
        typer.echo(f"{saved.name} is in {save}")
        return
    if row is not None:
        raise UserError("`row`: goes with `save`; leave it out")

    if as_ is not None and json:
        raise UserError(
            "`as`: prints a schedule, `json` the winner's numbers; give one of them "
            "(`as` json is the schedule as JSON)"
        )
    record = look_at_search(Places.of(Home(home), storage=storage, tracking_uri="none"), study)
    winner = record.winner
    if winner is None:
        raise UserError(f"study {record.name}: no trial is complete yet")
    if as_ is not None:
        from knee_tune.commands.report import setting_to_use

        setting = setting_to_use(record, as_)
        typer.echo(setting.text)
        typer.echo(setting.note, err=True)
    elif json:
        typer.echo(json_module.dumps(record.best_as_json()))
    else:
        typer.echo(
            f"{winner.setting}: {record.metric} {winner.value:.4g} "
            f"({winner.evidence} of {record.name})"
        )


def report(
    study: StudyArgument = None,
    form: Annotated[
        Literal["html", "md", "json"],
        typer.Option("--format", help="html: one file with figures. md: text. json: all numbers."),
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=path_of,
            metavar="PATH",
            help="File to write, or - to print. (default: HOME/reports/STUDY.FORMAT)",
        ),
    ] = None,
    show: OpenOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Write what a study has found out: the setting to use, how sure that is, what it cost.

    The setting is what fresh seeds have confirmed (--confirm), otherwise the best of the search.
    """
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.report import study_report, text_of, usual_path, write_report

    printed = out == Path("-")
    if show and printed:
        raise UserError("--open: needs a file; leave out --out -")
    places = Places.of(Home(home), storage=storage, tracking_uri=None)
    found = study_report(places, study)
    if printed:
        typer.echo(text_of(found, form), nl=False)
        return
    path = write_report(found, out or usual_path(places, found.study, form), form)
    typer.echo(printable(f"report: {path}"))
    if show:
        open_in_browser(path)


def dashboard(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="Name of the study to open first.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Open Optuna Dashboard on 127.0.0.1."""
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import serve

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    serve(places, study, port=port, on_line=ConsoleLines(PlainConsole()).line)


def tasks(
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,  # every command takes it: tasks are the same in all of them
) -> None:
    """What can be trained, and in which variants."""
    from dataclasses import asdict

    from knee_tune.commands.look import list_tasks

    infos = list_tasks()
    if json:
        typer.echo(json_module.dumps({"tasks": [asdict(info) for info in infos]}))
    else:
        print_tasks(PlainConsole(), infos)


def print_tasks(console: Console, tasks: "Sequence[TaskInfo]") -> None:
    """Every task with its presets, the default one marked; what is long goes on indented."""
    for task in tasks:
        presets = Table.grid(padding=(0, 2, 0, 0))
        for preset, description in task.presets.items():
            default = " (default)" if preset == task.default_preset else ""
            presets.add_row(f"{preset}{default}", description)
        heading = Table.grid(padding=(0, 2, 0, 0))
        heading.add_row(Text(task.name, "bold"), task.description)
        console.print(heading, Padding(presets, (0, 0, 0, 2)))


def doctor(
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Check the set-up: libraries, devices, places, servers, data. Exit code 1 if one is amiss."""
    from dataclasses import asdict

    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import check_up

    checks = check_up(Places.of(Home(home), storage=storage, tracking_uri=tracking_uri))
    if json:
        typer.echo(json_module.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        print_checks(PlainConsole(), checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def print_checks(console: Console, checks: "Sequence[Check]") -> None:
    """One line per finding; advice below what is amiss."""
    for check in checks:
        mark = ("ok  ", "green") if check.ok else ("no  ", "red")
        found = Text.assemble(mark, (check.name, "bold"), f": {one_line(check.detail)}")
        console.print(found, soft_wrap=True)
        if not check.ok and check.advice:
            console.print(f"      {check.advice}", markup=False, soft_wrap=True)
